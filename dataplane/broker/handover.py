"""Planned moves: own partitions are handed over, many in one ledger entry.

    freeze ──► all under way is acked: the end ──► one entry closes and reassigns the batch ──► closed here, open there
                                                                    └── refused: thawed, and served on

A partition is frozen only while its own batch is under way, so that handing 500 over pauses none of them for longer
than handing a batch over does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from dataplane.broker.partitions import PartitionSet
from dataplane.ledger.commands import NodeEpoch, partition_moved
from dataplane.ledger.entry import Command
from dataplane.ledger.state import CellState
from dataplane.stream.partition import NotOwner, Partition
from dataplane.stream.producers import HANDOVER_PRODUCERS_MAX
from providers.base.clock import Clock
from providers.base.errors import Invalid, OutcomeUnknown, Unavailable

log = logging.getLogger(__name__)

BATCH_MAX = 64
"""Partitions in one entry: they are paused together, for as long as an entry and their opening elsewhere take."""
BATCH_PRODUCERS_MAX = 4 * HANDOVER_PRODUCERS_MAX
"""Idempotent producers in one entry, at about 250 bytes each: a quarter of what an entry may hold. Many streams of many
producers travel in several."""
UNSENT_MS_MAX = 1_000
"""How long a batch may be frozen before the store is asked to take its entry: longer than other entries, and reading
the ledger, take in front of it. Then it is thawed, and a later move may have more luck."""


class AppendEach(Protocol):
    """`Node.append_each`."""

    def __call__(
        self, decide: Callable[[CellState], Sequence[Command] | None], *, unsent_ms_max: float
    ) -> Awaitable[tuple[str | None, ...] | None]: ...


class Handover:
    """See the module."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        state: Callable[[], CellState],
        partitions: PartitionSet,
        append: AppendEach,
        refresh: Callable[[], Awaitable[None]],
        clock: Clock,
        retry_ms: float,
    ) -> None:
        self._me = me
        self._state = state
        self._partitions = partitions
        self._append = append
        self._refresh = refresh
        self._clock = clock
        self._retry_ms = retry_ms
        self._moving: set[int] = set()

    async def move(self, stream: int, target: int) -> str | None:
        """Hand one partition over; None when done, else why not. Only its un-uploaded tail is uploaded, afterwards;
        nothing is copied.

        Raises:
            NotOwner: not open here.
            Unavailable: as `move_all`.
        """
        if self._partitions.get(stream) is None:
            raise NotOwner(f"stream {stream} is not open here")
        return (await self.move_all({stream: target})).get(stream)

    async def move_all(self, targets: Mapping[int, int]) -> dict[int, str]:
        """Hand partitions over, node by stream, in as many entries as their size asks for; why not, of those that were
        not. An entry whose outcome is not known is asked after until it is: its partitions stay frozen meanwhile.

        Raises:
            Unavailable: the ledger cannot be read now; those that have not moved yet are not frozen.
        """
        refused: dict[int, str] = {}
        waiting: Sequence[tuple[int, int]] = [
            (stream, target) for stream, target in targets.items() if target != self._me.node
        ]
        while waiting:
            batch, waiting = self._next_batch(waiting)
            # Partitions stay frozen until the ledger has answered: it is asked once before, when not to answer costs
            # nothing. Else moves that begin with an outage stop the acks of their partitions until the outage ends.
            await self._refresh()
            refused |= await self._move_batch(batch)
        return refused

    def _next_batch(
        self, waiting: Sequence[tuple[int, int]]
    ) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """The first of them, as many as one entry may hold, and the rest."""
        producers = 0
        for count, (stream, _) in enumerate(waiting[:BATCH_MAX]):
            partition = self._partitions.get(stream)
            if partition is None:
                continue
            producers += min(len(partition.acked_producers()), HANDOVER_PRODUCERS_MAX)
            if count and producers > BATCH_PRODUCERS_MAX:
                return waiting[:count], waiting[count:]
        return waiting[:BATCH_MAX], waiting[BATCH_MAX:]

    async def _move_batch(self, batch: Iterable[tuple[int, int]]) -> dict[int, str]:
        refused: dict[int, str] = {}
        frozen: dict[int, tuple[Partition, int]] = {}
        for stream, target in batch:
            partition = self._partitions.get(stream)
            if partition is None:
                refused[stream] = "not open here any more"
            elif stream in self._moving:
                # Two moves of one partition must not overlap: what the first one's refusal thaws goes on being acked,
                # beyond the end that the second has already sent.
                refused[stream] = "another move of it is under way"
            else:
                frozen[stream] = partition, target
        self._moving |= frozen.keys()
        try:
            return refused | await self._move_frozen(frozen)
        finally:
            self._moving -= frozen.keys()

    async def _move_frozen(self, frozen: Mapping[int, tuple[Partition, int]]) -> dict[int, str]:
        refused: dict[int, str] = {}
        ends = await asyncio.gather(*(p.freeze() for p, _ in frozen.values()), return_exceptions=True)
        commands: dict[int, Command] = {}
        for (stream, (partition, target)), end in zip(frozen.items(), ends, strict=True):
            if isinstance(end, NotOwner):
                refused[stream] = end.message
                continue
            if isinstance(end, BaseException):
                raise end
            producers = partition.acked_producers().dump(HANDOVER_PRODUCERS_MAX)
            commands[stream] = partition_moved(
                stream, partition.epoch, source=self._me, target=target, end=end, producers=producers
            )
        refusals = await self._append_for_sure(commands) if commands else {}
        for stream in commands:
            partition, _ = frozen[stream]
            now = self._state().streams.get(stream)
            if now is not None and now.epoch == partition.epoch and now.open.owner == self._me:
                partition.thaw()
                refused[stream] = refusals.get(stream) or "the state has changed meanwhile"
        return refused

    async def _append_for_sure(self, commands: Mapping[int, Command]) -> dict[int, str]:
        """Append, and ask again while the outcome is not known; why the fold refused what it refused, or why nothing
        was appended."""
        wanted: list[int] = []
        sent = False

        def decide(state: CellState) -> list[Command]:
            # Asked again after a lost answer: what was accepted then is not this node's any more.
            wanted.clear()
            for stream_id, command in commands.items():
                stream = state.streams.get(stream_id)
                if stream is not None and stream.epoch == command["stream_epoch"] and stream.open.owner == self._me:
                    wanted.append(stream_id)
            return [commands[stream_id] for stream_id in wanted]

        while True:
            try:
                outcomes = await self._append(decide, unsent_ms_max=UNSENT_MS_MAX)
            except Unavailable as error:
                sent = sent or isinstance(error, OutcomeUnknown)
                if not sent:
                    return dict.fromkeys(commands, error.message)
                log.warning("move-waits", extra={"streams": len(commands), "error": str(error)})
                await self._clock.sleep_ms(self._retry_ms)
                continue
            except Invalid as error:  # nothing was appended
                return dict.fromkeys(commands, error.message)
            return {s: why for s, why in zip(wanted, outcomes or (), strict=True) if why is not None}


def share_out(state: CellState, partitions: Iterable[Partition], nodes: Iterable[int]) -> dict[int, int]:
    """A new owner among `nodes` for each partition: the busiest first, each to whoever leads fewest then, so that
    traffic and counts are both about even. None when there are no nodes.
    """
    load = {b.node: 0 for b in state.live() if b.node in set(nodes)}
    if not load:
        return {}
    for stream in state.streams.values():
        if stream.open.node in load:
            load[stream.open.node] += 1
    targets: dict[int, int] = {}
    for partition in sorted(partitions, key=lambda p: (-p.traffic_bytes, p.id)):
        node = min(load, key=lambda n: (load[n], n))
        targets[partition.id] = node
        load[node] += 1
    return targets
