"""How the control plane reaches a cell: its bucket, its ledger, its agents' mailboxes, its volumes; there is no other
way in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from controlplane.apply.render import Places
from dataplane.contract.assignment import AgentReport, Assignment
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.entry import Command, Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.mailbox import MailboxState, open_mailbox, open_reports, publish
from dataplane.ledger.state import CellState
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound
from providers.base.objects import ObjectStore
from providers.base.registry import open_store, open_volumes
from providers.base.volumes import BlockVolumes

S = TypeVar("S")

WRITER = "controlplane"
TOUCHED = "probes/touched"
"""A name that need not exist: asking for it shows that the bucket answers."""


class Locator(Protocol):
    """Knows where a cloud's storage is."""

    def places(self, cloud: str) -> Places:
        """Raises Unavailable when the cloud is not running here."""
        ...


class _Log(Generic[S]):
    """A log of the cell, opened by its first reader."""

    def __init__(self, ledger: Ledger[S]) -> None:
        self.ledger = ledger
        self._opened = False
        self._opening = asyncio.Lock()

    async def open(self) -> bool:
        """Read what there is, once. True: that was now. Raises Unavailable."""
        async with self._opening:
            if self._opened:
                return False
            await self.ledger.open()
            self._opened = True
            return True

    async def look(self) -> None:
        """Read what is new. Raises Unavailable."""
        if not await self.open():
            await self.ledger.poll()


class Cell:
    """One open cell; its ledger is that of one cluster."""

    def __init__(self, store: ObjectStore, places: Places, cluster: str, *, clock: Clock, rng: Rng) -> None:
        self.store = store
        self.places = places
        self._cluster = cluster
        self._clock = clock
        self._rng = rng
        self._ledger = _Log(Ledger(store, cluster, CellMachine(), Writer(WRITER, rng.token()), clock=clock, rng=rng))
        self._mailboxes: dict[str, _Log[MailboxState]] = {}
        self._reports: dict[str, _Log[list[AgentReport]]] = {}
        self._volumes: BlockVolumes | None = None

    @property
    def bucket_name(self) -> str:
        """The bucket, as status remembers that it was verified."""
        bucket = self.places.bucket
        return f"{bucket.provider}:{bucket.bucket}@{bucket.endpoint or bucket.region}"

    async def ensure_buckets(self) -> None:
        """Create the cell's buckets where they are missing.

        Raises:
            Invalid: a name is taken or refused. Unavailable: no answer.
        """
        await self.store.ensure_bucket()
        for address in self.places.express.values():
            express = open_store(address, clock=self._clock, rng=self._rng)
            try:
                await express.ensure_bucket()
            finally:
                await express.close()

    async def touch(self) -> None:
        """One small read.

        Raises:
            Unavailable: the bucket does not answer.
        """
        try:
            await self.store.head(TOUCHED)
        except NotFound:
            pass  # it answered

    @property
    def state(self) -> CellState:
        """What the cell has decided, as of the last refresh."""
        return self._ledger.ledger.state

    async def decide(self, decision: Callable[[CellState], Sequence[Command]]) -> Sequence[Command]:
        """Append what `decision` wants of the newest state; it is asked again whenever somebody else was first. Returns
        the commands, empty when there was nothing to do.

        Raises:
            Conflict: the cell's rules rejected a command; decide again.
            Unavailable: the bucket does not answer; the command may have been appended.
        """
        await self._ledger.open()
        wanted: Sequence[Command] = ()
        refusal: Exception | None = None

        def ask(state: CellState) -> Sequence[Command]:
            # An error of one decision must not fail others that share the entry.
            nonlocal wanted, refusal
            try:
                wanted, refusal = decision(state), None
            except Exception as error:
                wanted, refusal = (), error
            return wanted

        appended = await self._ledger.ledger.append(ask)
        if refusal is not None:
            raise refusal
        if appended is None:
            return ()
        rejections = [reason for reason in appended.rejections if reason is not None]
        if rejections:
            raise Conflict(f"the cell rejected it: {'; '.join(rejections)}")
        return wanted

    async def refresh(self, agents: Sequence[str]) -> None:
        """Read what is new in the ledger, in the agents' mailboxes and in their reports, all at once.

        Raises:
            Unavailable: the bucket does not answer.
        """
        boxes = [self._box(self._mailboxes, open_mailbox, agent) for agent in agents]
        reports = [self._box(self._reports, open_reports, agent) for agent in agents]
        # A group, not gather: nothing is left running when one of them fails.
        try:
            async with asyncio.TaskGroup() as group:
                for look in (self._ledger.look, *(box.look for box in boxes), *(log.look for log in reports)):
                    group.create_task(look())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    def newest_assignment(self, agent: str) -> Assignment | None:
        """The assignment with the greatest number in the agent's mailbox, as of the last refresh."""
        mailbox = self._mailboxes.get(agent)
        return mailbox.ledger.state.newest if mailbox is not None else None

    def report(self, agent: str) -> AgentReport | None:
        """What the agent said last, as of the last refresh; None before its first report."""
        reports = self._reports.get(agent)
        return reports.ledger.state[-1] if reports is not None and reports.ledger.state else None

    async def publish(self, assignment: Assignment) -> None:
        """Append an assignment to its agent's mailbox.

        Raises:
            Conflict: a greater number is there already.
            Unavailable: the bucket does not answer; it may have been appended.
        """
        mailbox = self._box(self._mailboxes, open_mailbox, assignment.agent)
        await mailbox.open()
        await publish(mailbox.ledger, assignment)

    def _box(self, boxes: dict[str, _Log[S]], opener: Callable[..., Ledger[S]], agent: str) -> _Log[S]:
        """One of an agent's two logs."""
        if agent not in boxes:
            writer = Writer(WRITER, self._rng.token())
            boxes[agent] = _Log(opener(self.store, agent, writer, clock=self._clock, rng=self._rng))
        return boxes[agent]

    async def volumes(self) -> BlockVolumes:
        """The cloud's volume API.

        Raises:
            Invalid: it has none here.
        """
        if self.places.volumes is None:
            raise Invalid("this cloud has no block volumes here")
        if self._volumes is None:
            self._volumes = open_volumes(self.places.volumes, clock=self._clock)
        return self._volumes

    async def close(self) -> None:
        """Release connections."""
        logs: list[_Log[Any]] = [self._ledger, *self._mailboxes.values(), *self._reports.values()]
        for log in logs:
            await log.ledger.close()
        if self._volumes is not None:
            await self._volumes.close()
        await self.store.close()


async def open_cell(places: Places, cluster: str, *, clock: Clock, rng: Rng) -> Cell:
    """Open a cell's bucket. The cloud's SDK is imported only now, in a thread: it takes up to a second, and other cells
    go on meanwhile.

    Raises:
        Invalid: its credentials or its address are unusable.
    """
    store = await asyncio.to_thread(open_store, places.bucket, clock=clock, rng=rng)
    return Cell(store, places, cluster, clock=clock, rng=rng)
