"""The recoverer's end of append lanes: seal the end of every lane, then read them all and merge by number.

A lane's objects are consecutive from some first one, not yet collected, to the last. A late duplicate of an old request
may re-create a collected object; such a ghost lies below the first one and holds nothing that is needed, so that the
highest name found is the place to start from, and reading goes back from the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from dataplane.wal.base import Block, WalIdentity
from dataplane.wal.codec import MARK_BYTES, Header, Kind, Miss, decode_block, encode_mark, is_mark, mark_value, verify
from dataplane.wal.lanes import SEGMENT_OBJECTS, LaneSettings, collected_key, lane_key
from dataplane.wal.object_reader import ask
from dataplane.wal.objects import create
from providers.base.clock import Clock
from providers.base.errors import Corrupt, NotFound, Unavailable, WrongOffset, invariant
from providers.base.objects import ObjectStore

T = TypeVar("T")

_PROBE_PARALLEL = 16
_PROBE_ATTEMPTS_MAX = 100
_SUCCESSOR_AFTER_RACES = 4
"""After so many lost races for the end, the fencer takes the next object's name, so that the owner cannot roll and the
race ends with the object."""
_SEAL_ATTEMPTS_MAX = 20_000
"""Twice the parts that an object can have: a bound for the race above."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A lane object, parsed."""

    blocks: tuple[tuple[int, memoryview], ...]
    end: Kind | None
    """ROLLED or SEAL; None when it ends in a block or its header."""


class LaneReader:
    """`WalReader` of `base.py` over append lanes."""

    def __init__(
        self,
        store: ObjectStore,
        victim: WalIdentity,
        *,
        own_key: int,
        clock: Clock,
        settings: LaneSettings | None = None,
    ) -> None:
        """`own_key` is written into seals and tombstones, for whoever looks at the bucket."""
        self._store = store
        self._victim = victim
        self._own_key = own_key
        self._clock = clock
        self._settings = settings or LaneSettings()
        self._last: dict[int, int] | None = None
        """Last object of each lane, 0 for a lane that was never opened; None: not fenced yet."""

    @property
    def name(self) -> str:
        return "express"

    # ---- fencing

    async def fence(self) -> None:
        # Lane 0 first: its header says how many there are. An owner that cannot create it has acked nothing.
        last = {0: await self._close_lane(0)}
        if last[0]:
            header = await self._ask(
                lambda: self._store.get(lane_key(self._victim, 0, last[0]), start=0, length=MARK_BYTES)
            )
            if not is_mark(header, Kind.LANE_HEADER, self._victim):
                raise Corrupt(f"{lane_key(self._victim, 0, last[0])} does not begin with a lane's header")
            others = range(1, mark_value(header))
            last.update(zip(others, await asyncio.gather(*map(self._close_lane, others)), strict=True))
        self._last = last

    async def _close_lane(self, lane: int) -> int:
        """Make the lane end: returns the index of its last object, 0 if it has none."""
        index = max(1, await self._highest(lane))
        races = failures = 0
        while races < _SEAL_ATTEMPTS_MAX:
            end = await self._end_of(lane, index)
            if end is None:
                # The successor of a rolled object, or the first object of a lane that was never opened: the name is
                # taken, so that its owner cannot.
                if await self._take(lane, index) is None:
                    return index - 1
                continue
            size, kind = end
            if kind is Kind.SEAL:
                return index
            if kind is Kind.ROLLED:
                index += 1
                continue
            if kind is Kind.TOMBSTONE:
                if index == 1:
                    return 0
                before = await self._end_of(lane, index - 1)
                if before is None:
                    raise Corrupt(
                        f"{lane_key(self._victim, lane, index - 1)} is gone, and is the last object of its lane"
                    )
                if before[1] in (Kind.ROLLED, Kind.SEAL):
                    return index - 1
                index -= 1  # a fencer took the successor's name during a race (see below), and has not sealed yet
                continue
            try:
                seal = encode_mark(Kind.SEAL, self._victim, index, self._own_key)
                await self._store.append(lane_key(self._victim, lane, index), size, seal)
                return index
            except WrongOffset:
                races += 1  # the owner, another fencer or a duplicate of this very request was first: look again
                if races == _SUCCESSOR_AFTER_RACES:
                    await self._take(lane, index + 1)
            except Unavailable:
                if failures == self._settings.retry.attempts_max:
                    raise
                await self._clock.sleep_ms(self._settings.retry.pause_ms(failures))
                failures += 1
        raise Unavailable(
            f"lane {lane} of node {self._victim.node_id} could not be sealed: its owner appends without end"
        )

    async def _take(self, lane: int, index: int) -> bytes | None:
        """Put a tombstone under the name: None, or the bytes that are there already."""
        tombstone = encode_mark(Kind.TOMBSTONE, self._victim, index, self._own_key)
        key = lane_key(self._victim, lane, index)
        return await create(self._store, key, tombstone, retry=self._settings.retry, clock=self._clock)

    async def _end_of(self, lane: int, index: int) -> tuple[int, Kind | None] | None:
        """Size of an object and the mark that it ends in, if it ends in one; None: no such object."""
        key = lane_key(self._victim, lane, index)
        try:
            size = (await self._ask(lambda: self._store.head(key))).size
            tail = await self._ask(lambda: self._store.get(key, start=max(0, size - MARK_BYTES), length=MARK_BYTES))
        except NotFound:
            return None
        header = verify(tail)
        if isinstance(header, Miss) or not header.belongs_to(self._victim) or header.number != index:
            return size, None
        kind = Kind(header.kind)
        return size, kind if kind in (Kind.ROLLED, Kind.SEAL, Kind.TOMBSTONE) else None

    async def _highest(self, lane: int) -> int:
        """Highest name of the lane that exists and need not be looked beyond: the last object, or one from which
        `rolled` leads there. 0: none."""
        markers = 0
        for _ in range(_PROBE_ATTEMPTS_MAX):
            markers = await self._markers(lane, markers)
            # With marker m and no marker m + 1: objects below segment m are not needed, those behind it are all there,
            # and the last one is never deleted.
            first = max(0, markers - 1) * SEGMENT_OBJECTS + 1
            end = markers * SEGMENT_OBJECTS + 2
            highest = 0
            for start in range(first, end, _PROBE_PARALLEL):
                indexes = range(start, min(start + _PROBE_PARALLEL, end))
                found = await asyncio.gather(*(self._exists(lane_key(self._victim, lane, index)) for index in indexes))
                highest = max([highest, *(index for index, there in zip(indexes, found, strict=True) if there)])
            # Looked at behind the names: the owner may have gone on collecting meanwhile, and absent then means
            # nothing.
            if not await self._exists(collected_key(self._victim, lane, markers + 1)):
                return highest
        raise Unavailable(
            f"lane {lane} of node {self._victim.node_id} is being collected faster than it can be looked at"
        )

    async def _markers(self, lane: int, known: int) -> int:
        """How many `collected` markers there are, found by doubling and halving: they are created in order and never
        removed."""
        markers, step = known, 1
        while await self._exists(collected_key(self._victim, lane, markers + step)):
            markers, step = markers + step, step * 2
        while step > 1:
            step //= 2
            if await self._exists(collected_key(self._victim, lane, markers + step)):
                markers += step
        return markers

    async def _exists(self, key: str) -> bool:
        try:
            await self._ask(lambda: self._store.head(key))
        except NotFound:
            return False
        return True

    # ---- reading

    async def read(self, floor: int) -> AsyncIterator[Block]:
        invariant(self._last is not None, "lanes are fenced before they are read")
        assert self._last is not None
        last = sorted(self._last.items())
        lanes = await asyncio.gather(*(self._read_lane(lane, index, floor) for lane, index in last))
        number = floor
        while True:
            data = lanes[number % len(lanes)].pop(number, None)
            if data is None:
                break
            block = decode_block(data, self._victim, number)
            if isinstance(block, Miss):
                raise Corrupt(f"block {number} in lane {number % len(lanes)} is damaged: {block}", number=number)
            yield block
            number += 1
        beyond = max((last for lane in lanes for last in lane), default=0)
        if beyond >= number + len(lanes):
            raise Corrupt(
                f"block {number} is missing from its lane: block {beyond}, issued after its ack, is there",
                number=number,
            )

    async def _read_lane(self, lane: int, last: int, floor: int) -> dict[int, memoryview]:
        """The lane's blocks from `floor` on, by number. Goes back from the last object to the first that is needed."""
        blocks: dict[int, memoryview] = {}
        for index in range(last, 0, -1):
            data = await self._object(lane, index)
            parsed = None if data is None else self._parse(lane, index, data)
            if index == last and (parsed is None or parsed.end is None):
                raise Corrupt(f"{lane_key(self._victim, lane, index)} was the closed end of its lane, and is not")
            if parsed is None:
                break
            blocks.update({number: block for number, block in parsed.blocks if number >= floor})
            if parsed.blocks and parsed.blocks[0][0] <= floor:
                break
        return blocks

    async def _object(self, lane: int, index: int) -> bytes | None:
        try:
            return await self._ask(lambda: self._store.get(lane_key(self._victim, lane, index)))
        except NotFound:
            return None

    def _parse(self, lane: int, index: int, data: bytes) -> _Read:
        key = lane_key(self._victim, lane, index)
        view = memoryview(data)
        if not is_mark(view, Kind.LANE_HEADER, self._victim):
            raise Corrupt(f"{key} does not begin with a lane's header", key=key)
        at = MARK_BYTES
        blocks: list[tuple[int, memoryview]] = []
        while at < len(view):
            header = verify(view[at:])
            if not isinstance(header, Header) or not header.belongs_to(self._victim):
                raise Corrupt(f"{key} is damaged at byte {at}", key=key, offset=at)
            if header.kind in (Kind.ROLLED, Kind.SEAL):
                return _Read(tuple(blocks), Kind(header.kind))
            blocks.append((header.number, view[at : at + header.length]))
            at += header.length
        return _Read(tuple(blocks), None)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await ask(call, retry=self._settings.retry, clock=self._clock)

    async def release(self) -> None:
        """Nothing to give back. Sealed objects stay for ever: without its seal, a lane's name could be created and
        appended to by requests still under way."""

    async def close(self) -> None:
        """Nothing is held."""
