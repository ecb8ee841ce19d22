"""Recovered records, written as stream-set objects."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from dataplane.failover.takeover import Replay
from dataplane.ledger.commands import CommittedObject, Range
from dataplane.ledger.object_names import object_key
from dataplane.stream.batch import Buffer, parse_header
from dataplane.stream.objects import Section, build_aside
from dataplane.stream.producers import ProducerTable
from dataplane.stream.upload import OBJECT_BYTES_MAX, put_object
from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

UPLOADS_IN_FLIGHT_MAX = 2
AGAIN_MS = 1_000
"""Pause after all attempts of something failed, where there is reason to begin again."""

T = TypeVar("T")


async def write(
    replays: Sequence[Replay],
    producers: Mapping[tuple[int, int], ProducerTable],
    *,
    store: ObjectStore,
    name_prefix: str,
    clock: Clock,
    first: int = 0,
    goes_on: Callable[[], bool] = lambda: False,
) -> list[CommittedObject]:
    """Write the records, under numbers from `first` on; nothing to write gives no object. `producers`: by stream and
    epoch, the state of the producers at the end of its records, where it is known: the next owner then need not read
    them back. `goes_on`: asked when an object could not be written, whether to begin again with it.

    Raises:
        Unavailable: as `put_object`.
    """
    limit = asyncio.Semaphore(UPLOADS_IN_FLIGHT_MAX)
    ends = {(r.stream, r.epoch): r.end for r in replays}

    async def put(number: int, group: Sequence[Replay]) -> CommittedObject:
        name = object_key(name_prefix, number)
        async with limit:
            sections = []
            for replay in group:
                key = replay.stream, replay.epoch
                sections.append(_section(replay, producers.get(key) if ends[key] == replay.end else None))
            data = await build_aside(sections)
            put_once = functools.partial(put_object, store, name, data, clock)
            await insist(put_once, goes_on, clock, "recovered-not-written", object=name)
        ranges = tuple(Range(r.stream, r.epoch, r.start, r.end) for r in group)
        return CommittedObject(name, len(data), ranges)

    groups = split(replays, OBJECT_BYTES_MAX)
    return list(await asyncio.gather(*(put(number, group) for number, group in enumerate(groups, first))))


async def insist(
    work: Callable[[], Awaitable[T]], goes_on: Callable[[], bool], clock: Clock, event: str, **what: object
) -> T:
    """Do `work`, and again for as long as it is Unavailable and `goes_on`. `event` and `what` go into the log.

    Raises:
        Unavailable: as `work`, and there is no reason to go on.
    """
    while True:
        try:
            return await work()
        except Unavailable as error:
            if not goes_on():
                raise
            log.warning(event, extra={**what, "error": str(error)})
            await clock.sleep_ms(AGAIN_MS)


def split(replays: Sequence[Replay], bytes_max: int) -> list[list[Replay]]:
    """Groups of about `bytes_max` bytes, each stream's records in order (a stream may go on in the next group)."""
    groups: list[list[Replay]] = [[]]
    room = bytes_max
    for replay in replays:
        start, taken = replay.start, 0
        for count, record in enumerate(replay.records, 1):
            room -= len(record.payload)
            if room <= 0 or count == len(replay.records):
                part = Replay(replay.stream, replay.epoch, start, replay.records[taken:count])
                groups[-1].append(part)
                start, taken = part.end, count
            if room <= 0:
                groups.append([])
                room = bytes_max
    return [group for group in groups if group]


def _section(replay: Replay, producers: ProducerTable | None) -> Section:
    batches: list[tuple[int, int, int, Buffer]] = []
    for record in replay.records:
        header = parse_header(record.payload)
        batches.append((record.base_offset, record.base_offset + record.offsets, header.max_timestamp, record.payload))
    dumped = producers.dump() if producers is not None else None
    return Section(replay.stream, replay.start, replay.end, batches, producers=dumped)
