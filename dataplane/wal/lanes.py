"""The WAL side on S3 Express: append lanes, because an appendable object admits one request in flight and a broker
needs more.

    <cluster>/wal/<node>/<epoch>/lane-0/0000000001   header | block 2 | block 4 | ... | rolled
                                 lane-0/0000000002   header | block 904 | ...
                                 lane-1/0000000001   header | block 1 | block 3 | ... | seal   <- a fencer's
                                 lane-1/collected/0000000001   before the first delete among objects 1-64 of the lane

Block n goes to lane n mod N. Rules (design §5, *Append lanes*): a lane object begins with a header created only if
absent; success for n only after success for all numbers below on all lanes; an append whose answer was lost, or whose
offset was wrong, is resolved by the content at its offset; before an object's part limit the owner appends `rolled`,
then creates the next object, whose name a fencer takes otherwise. Nothing is listed: a reader finds the last object of
a lane by the `collected` markers (created before any delete among the objects of their segment, never removed), as the
ledger's readers do.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from dataplane.wal.base import Started, WalIdentity
from dataplane.wal.codec import MARK_BYTES, Kind, encode_mark
from dataplane.wal.objects import create
from dataplane.wal.sides import OrderGate, RetrySettings
from providers.base.clock import Clock
from providers.base.errors import (
    Fenced,
    Full,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
    YunheError,
)
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

SEGMENT_OBJECTS = 64
"""Lane objects that one `collected` marker stands for. Part of the format: readers count on it."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """Settings of append lanes. Readers take the number of lanes from the lanes' headers."""

    lanes: int = 2
    """Objects appended to in parallel. Two overlap one append's latency with the next group commit; each more divides
    the group commits further."""
    parts_max: int = 9000
    """Requests to one object, its creation included, before the lane rolls. S3 Express admits 10,000; a seal needs
    one."""
    object_bytes_max: int = 64 << 20
    """Bytes of one object before the lane rolls: what trimming can give back at once."""
    retry: RetrySettings = field(default_factory=RetrySettings)

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.parts_max < 3:
            raise Invalid("a lane WAL needs at least one lane, and three parts an object (header, block, rolled)")


def lane_key(identity: WalIdentity, lane: int, index: int) -> str:
    """Name of object `index` (from 1) of a lane."""
    return f"{identity.prefix}/lane-{lane}/{index:010d}"


def collected_key(identity: WalIdentity, lane: int, segment: int) -> str:
    """Name of the marker of a lane's objects (segment - 1) * 64 + 1 to segment * 64."""
    return f"{identity.prefix}/lane-{lane}/collected/{segment:010d}"


def segment_of(index: int) -> int:
    """The segment, from 1, that object `index` belongs to."""
    return (index - 1) // SEGMENT_OBJECTS + 1


@dataclass(slots=True)
class _Lane:
    """The owner's state of one lane: the object appended to, and the rolled ones that are not deleted yet, oldest
    first, each with its last block."""

    lane: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    index: int = 1
    size: int = 0
    parts: int = 0
    last_number: int = 0
    rolled: list[tuple[int, int]] = field(default_factory=list)
    markers: int = 0


class LaneSide:
    """The owner's end. `Side` of `base.py`; named `express`."""

    def __init__(
        self, store: ObjectStore, identity: WalIdentity, *, clock: Clock, settings: LaneSettings | None = None
    ) -> None:
        """The store is shared, and stays open."""
        self._store = store
        self._identity = identity
        self._clock = clock
        self._settings = settings or LaneSettings()
        self._lanes = [_Lane(lane) for lane in range(self._settings.lanes)]
        self._gate = OrderGate()
        self._floor = 1
        self.alone = False
        self._collector: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return "express"

    @property
    def window_max(self) -> int:
        return self._settings.lanes

    def room_bytes(self) -> int | None:
        return None

    async def open(self) -> None:
        await asyncio.gather(*(self._create_object(lane) for lane in self._lanes))

    def begin(self, number: int) -> None:
        self._gate = OrderGate(number)

    async def allocate(self, size: int) -> memoryview | None:
        return None

    def start(self, number: int, block: memoryview, done: Started) -> bool:
        return False  # a request takes a task

    async def write(self, number: int, block: memoryview) -> bool:
        self._gate.check()
        data = bytes(block)
        lane = self._lanes[number % len(self._lanes)]
        try:
            async with lane.lock:
                self._gate.check()
                full = lane.size + len(data) + MARK_BYTES > self._settings.object_bytes_max and lane.last_number > 0
                if full or lane.parts + 2 > self._settings.parts_max:
                    await self._roll(lane)
                await self._append(lane, data)
                lane.last_number = number
        except YunheError as error:
            self._gate.fail(error)
            raise
        await self._gate.succeed(number)
        return True

    # ---- one lane

    async def _create_object(self, lane: _Lane) -> None:
        key = lane_key(self._identity, lane.lane, lane.index)
        header = encode_mark(Kind.LANE_HEADER, self._identity, lane.index, len(self._lanes))
        found = await create(self._store, key, header, retry=self._settings.retry, clock=self._clock)
        if found is not None:
            raise Fenced(f"{key} is taken, and not by this epoch's header: the WAL was taken over", key=key)
        lane.size, lane.parts, lane.last_number = len(header), 1, 0

    async def _roll(self, lane: _Lane) -> None:
        """Close the object by a last append, so that a fencer knows which name the lane goes on under; only then create
        that."""
        await self._append(lane, encode_mark(Kind.ROLLED, self._identity, lane.index))
        rolled = (lane.index, lane.last_number)
        lane.index += 1
        await self._create_object(lane)
        # Only now may it be deleted: a reader has to find some object of the lane, from which `rolled` leads on.
        lane.rolled.append(rolled)

    async def _append(self, lane: _Lane, data: bytes) -> None:
        """Append at the lane's end, the same bytes at the same offset until they are known to be there."""
        retry = self._settings.retry
        key = lane_key(self._identity, lane.lane, lane.index)
        last: YunheError | None = None
        began_ms = self._clock.monotonic_ms()
        for attempt in range(retry.attempts_max):
            try:
                await self._store.append(key, lane.size, data)
                return self._grew(lane, len(data))
            except (WrongOffset, OutcomeUnknown) as error:
                last = error
                # After an answer, there will be one to the question what is there, too.
                patient = self.alone or isinstance(error, WrongOffset)
                left_ms = None if patient else retry.left_ms(began_ms, self._clock)
                if left_ms != 0 and await self._landed(key, lane.size, data, left_ms):
                    return self._grew(lane, len(data))
            except NotFound as error:
                raise Unavailable(f"{key} is gone, and this epoch's blocks with it", key=key) from error
            except (Unavailable, Full) as error:
                last = error
            if not self.alone and retry.left_ms(began_ms, self._clock) == 0:
                break
            await self._clock.sleep_ms(retry.pause_ms(attempt))
        raise OutcomeUnknown(f"{key} did not take an append at {lane.size}: {last}", key=key) from last

    def _grew(self, lane: _Lane, size: int) -> None:
        lane.size += size
        lane.parts += 1

    async def _landed(self, key: str, offset: int, data: bytes, left_ms: float | None) -> bool:
        """What is at `offset`: these very bytes (True), nothing or no answer in time (False: not concluded), or
        somebody else's.

        Raises:
            Fenced: a seal, or whatever else this epoch did not write there. The object's size proves nothing: the seal
            made it grow, too.
        """
        try:
            async with asyncio.timeout(None if left_ms is None else left_ms / 1000):
                found = await self._store.get(key, start=offset, length=len(data))
        except (Unavailable, TimeoutError):
            return False
        except NotFound as error:
            raise Unavailable(f"{key} is gone, and this epoch's blocks with it", key=key) from error
        if found and found != data:
            raise Fenced(f"{key} was sealed at {offset}: the WAL was taken over", key=key, offset=offset)
        return bool(found)

    # ---- trimming

    async def trim(self, floor: int) -> None:
        """Deletes rolled objects all of whose blocks are below the floor, in the background; what fails is tried again
        with the next trim."""
        self._floor = max(self._floor, floor)
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        for lane in self._lanes:
            while lane.rolled and lane.rolled[0][1] < self._floor:
                index = lane.rolled[0][0]
                try:
                    while lane.markers < segment_of(index):
                        await self._mark_collected(lane, lane.markers + 1)
                        lane.markers += 1
                    await self._store.delete([lane_key(self._identity, lane.lane, index)])
                except YunheError as error:
                    log.debug("wal lane delete failed, tried again with the next trim: %s", error)
                    return
                lane.rolled.pop(0)

    async def _mark_collected(self, lane: _Lane, segment: int) -> None:
        key = collected_key(self._identity, lane.lane, segment)
        await create(self._store, key, b"", retry=self._settings.retry, clock=self._clock)

    async def close(self) -> None:
        """Ends the collector: what it leaves is below the floor, and harmless."""
        self._gate.fail(Unavailable("the WAL is closed"))
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
