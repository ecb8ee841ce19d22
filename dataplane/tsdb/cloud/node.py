"""One node of a cloud database: it follows the manifest, and owns the database when that falls to it.

    follower ──► decide ──► owned in the manifest ──► earlier WALs recovered ──► tenure: serves writes
        ▲                                                                            │
        └──────────── another epoch in the manifest, WAL fenced, or bucket gone ─────┘

A turn every quarter of the lease; each says one sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dataplane.tsdb.cloud.flushing import TenureSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import database_owned
from dataplane.tsdb.cloud.ownership import Peers, Watch, Word, ask_all, decide
from dataplane.tsdb.cloud.recovery import recover_logs
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.cloud.tenure import Tenure
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Corrupt, Fenced, Unavailable, YunheError

log = logging.getLogger(__name__)
READ_TRIED_MAX = 60
"""Tries to read the manifest when a node starts, before it says that the bucket does not answer."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Of one node."""

    lease_ms: float = 3_000
    """Silence of the owner after which another takes over."""
    tenure: TenureSettings = field(default_factory=TenureSettings)

    @property
    def beat_ms(self) -> float:
        """Between two turns."""
        return self.lease_ms / 4


class Node:
    """See the module."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        files: SstFiles,
        peers: Peers,
        *,
        clock: Clock,
        rng: Rng,
        settings: NodeSettings = NodeSettings(),
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.files = files
        self.tenure: Tenure | None = None
        """While this node takes writes."""
        self.said = ""
        """By the last turn."""
        self.on_change: Callable[[Tenure | None], None] = lambda tenure: None
        """Called when this node begins or ceases to own the database."""
        self._peers = peers
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._claim = ""
        self._recovers = False
        self._watch = Watch(name, settings.lease_ms, clock.monotonic_ms())
        self._watch.heard_ms = clock.monotonic_ms()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the manifest and begin to follow.

        Raises:
            Unavailable: the bucket does not answer. Corrupt, Internal: the manifest cannot be understood.
        """
        try:
            await self.manifest.open()
        except Unavailable:
            await self._read_on()
        self._loop = asyncio.create_task(self._run())

    async def _read_on(self) -> None:
        """Of a long manifest one of many reads may fail: what was read until then is kept, and the rest follows."""
        for attempt in range(READ_TRIED_MAX):
            await self._clock.sleep_ms(self._settings.beat_ms)
            try:
                await self.manifest.poll()
                return
            except Unavailable:
                if attempt + 1 == READ_TRIED_MAX:
                    raise

    async def close(self, *, hand_over: bool = True) -> None:
        """Stop; `hand_over`: see `Tenure.close`."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        tenure, self.tenure = self.tenure, None
        if tenure is not None:
            self.on_change(None)
            await tenure.close(hand_over=hand_over)
        await self.manifest.close()

    @property
    def watch(self) -> Watch:
        return self._watch

    def word(self) -> Word:
        """What this node says to a peer that asks."""
        tenure = self.tenure
        serves = tenure is not None and tenure.dead is None and tenure.epoch == self.manifest.state.epoch
        hears = self._watch.hears(self._clock.monotonic_ms())
        return Word(self.name, self._watch.epoch, serves, self._recovers, hears)

    async def _run(self) -> None:
        while True:
            try:
                said = await self.turn()
            except Corrupt as error:
                said = f"nothing is served: {error}"
                log.error("not-recovered: %s", error)
            except YunheError as error:
                said = f"waits: {error}"
            if said != self.said:
                log.info("turn", extra={"node": self.name, "said": said})
            self.said = said
            await self._clock.sleep_ms(self._settings.beat_ms)

    async def turn(self) -> str:
        """One look at the manifest and the peers, and what follows from it.

        Raises:
            Unavailable: the bucket refuses for now. Corrupt: an earlier owner's WAL is damaged.
        """
        await self.manifest.poll()
        await self._look()
        state = self.manifest.state
        if self.tenure is not None:
            return f"owns epoch {self.tenure.epoch}"
        if self._claim and state.claim == self._claim:
            return await self._begin(state.epoch)
        words = await ask_all(self._peers, self._clock, self._settings.beat_ms)
        now = self._clock.monotonic_ms()
        self._watch.heard(words, now)
        mine, why = decide(self._watch.seen([self.name, *self._peers.names], now), self._settings.lease_ms)
        if not mine:
            return why
        return await self._take_over(why)

    async def _look(self) -> None:
        """Lay the epoch down if it is over."""
        state = self.manifest.state
        self._watch.now(state.epoch, state.owner, self._clock.monotonic_ms())
        tenure = self.tenure
        if tenure is not None and (tenure.dead is not None or tenure.epoch != state.epoch):
            tenure.end(Fenced(f"{state.owner} owns the database in epoch {state.epoch}", actual=state.epoch))
            self.tenure, self._claim = None, ""
            self.on_change(None)
            await tenure.close(hand_over=False)

    async def _take_over(self, why: str) -> str:
        before = self.manifest.state.epoch
        claim = self._claim = self._rng.token()
        try:
            won = await self.manifest.commit_one(
                lambda state: database_owned(before + 1, self.name, claim) if state.epoch == before else None
            )
        except (Conflict, Fenced):
            won = False
        state = self.manifest.state
        self._watch.now(state.epoch, state.owner, self._clock.monotonic_ms())
        if not won:
            return f"{state.owner} was first to own epoch {state.epoch}"
        log.warning("takes-over", extra={"node": self.name, "epoch": state.epoch, "because": why})
        return await self._begin(before + 1)

    async def _begin(self, epoch: int) -> str:
        """Recover what is owed, and serve. Where the bucket fails, the next turn begins again under the same epoch."""
        self._recovers = True
        try:
            rows = await recover_logs(
                self.manifest, self.files, epoch, clock=self._clock, settings=self._settings.tenure.wal
            )
            self.tenure = await Tenure.open(
                epoch, self.manifest, self.files, clock=self._clock, settings=self._settings.tenure
            )
        except Fenced:
            self._claim = ""
            raise
        finally:
            self._recovers = False
        self.on_change(self.tenure)
        return f"owns epoch {epoch}, {rows} rows recovered"
