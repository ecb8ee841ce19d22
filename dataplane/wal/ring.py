"""The WAL side on a block volume: a ring of blocks behind two superblocks, fenced by the device's reservation.

    0        4096      8192                                                        8192 + capacity
    | super 0 | super 1 | ... free ... | block n | block n+1 | ... | free |
                          ^ space is free only behind the floor that a durable superblock names

A block is a multiple of 4096 bytes and does not wrap: one that does not fit before the end goes to the start of the
ring, and a reader that does not find number n where it should be looks for it there. A stale block of an earlier lap
has a lower number, one of an earlier epoch another epoch: both under the checksum.

Rules (design §5, *Block volumes*): (a) a write is followed by a read of the reservation, issued after the write has
completed; anything but the own key, no holder included, is a loss for good. Where the device's preempt aborts what is
in flight, a write that succeeded is vouched for by that. (d) Space where a write of unknown outcome
may still land is not reused in this epoch, and space of an earlier epoch only once its I/O is known to be over.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

from dataplane.wal.base import Started, WalIdentity
from dataplane.wal.sides import DeviceCalls, RetrySettings
from dataplane.wal.superblock import DATA_START, SUPERBLOCKS, Superblock, read_superblocks
from providers.base.clock import Clock
from providers.base.errors import Conflict, Fenced, Full, Invalid, OutcomeUnknown, Unavailable, YunheError, invariant
from providers.base.volumes import BLOCK_BYTES, BlockDevice, StartedWrites

log = logging.getLogger(__name__)

RING_BYTES_MIN = 16 * BLOCK_BYTES
"""A smaller ring could not hold a few blocks of one record each."""
WRITE_BYTES_MAX = 4 << 20
"""Longer blocks are written in parts: what any path to a device takes in one request."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where a block lies, relative to the start of the data area."""

    number: int
    start: int
    end: int


@dataclass(slots=True)
class _Placed:
    """A block that has its place, and is written for the first time or again."""

    extent: _Extent
    began_ms: float
    known: bool = True
    """Every attempt so far is known to be over."""


class RingSide:
    """The owner's end of a ring. `Side` of `base.py`; named `volume`."""

    def __init__(
        self,
        device: BlockDevice,
        identity: WalIdentity,
        *,
        clock: Clock,
        bytes_max: int,
        drained: bool = False,
        start: int = 1,
        window_max: int = 2,
        retry: RetrySettings | None = None,
    ) -> None:
        """`bytes_max`: size of the ring, at most the device's. `drained`: all I/O of earlier epochs is known to be
        over; not needed where the device's preempt aborts. `start`: no block below it comes. The device is closed with
        the side."""
        self._device = device
        self._starts = device if isinstance(device, StartedWrites) and device.preempt_aborts else None
        self._identity = identity
        self._clock = clock
        self._drained = drained
        self._window = window_max
        self._retry = retry or RetrySettings()
        self._call = DeviceCalls(self._retry, clock)
        usable = min(bytes_max, device.size_bytes)
        self.alone = False
        self._capacity = usable // BLOCK_BYTES * BLOCK_BYTES - DATA_START
        self._extents: deque[_Extent] = deque()
        self._again: dict[int, _Placed] = {}
        self._position = 0
        self._next = start
        self._sequence = 0
        self._floor = start
        self._frozen: int | None = None
        self._lost: Fenced | None = None
        self._trimming = asyncio.Lock()

    @property
    def name(self) -> str:
        return "volume"

    @property
    def window_max(self) -> int:
        return self._window

    def room_bytes(self) -> int | None:
        """The longest block that fits now: a lower bound for what fits altogether. None when waiting for a trim would
        not help (see `_take`)."""
        if self._frozen is not None and self._frozen < self._floor:
            return None
        if not self._extents:
            return self._capacity
        tail = self._extents[0].start
        if self._position > tail:
            return max(self._capacity - self._position, tail - BLOCK_BYTES, 0)
        return max(tail - self._position - BLOCK_BYTES, 0)

    # ---- opening

    async def open(self) -> None:
        if self._capacity < RING_BYTES_MIN:
            raise Invalid(
                f"a ring of {self._capacity} bytes is too small",
                hint=f"`wal.bytes_max` and the volume need at least {RING_BYTES_MIN + DATA_START} bytes",
            )
        await self._call.ask(lambda: self._device.register(self._identity.key))
        await self._take_reservation()
        found = read_superblocks(await self._call.ask(lambda: self._device.read(0, SUPERBLOCKS * BLOCK_BYTES)))
        for superblock in found:
            there = (superblock.epoch, superblock.instance)
            if superblock.node_id == self._identity.node_id and there >= (
                self._identity.epoch,
                self._identity.instance,
            ):
                self._lose(f"it already holds epoch {superblock.epoch}")
        if found and not (self._device.preempt_aborts or self._drained):
            raise Unavailable(
                "writes of an earlier epoch may still land on this volume",
                hint="reuse it once it was detached and that is confirmed; use a spare volume until then",
            )
        # Both slots, so that one that rots later leaves the other, and none of an earlier epoch is ever taken for this
        # one's.
        self._sequence = max((superblock.sequence for superblock in found), default=0)
        for _ in range(SUPERBLOCKS):
            await self._write_superblock(self._floor, 0)
        await self._vouch()

    async def _take_reservation(self) -> None:
        holder = (await self._call.ask(self._device.reservation)).holder
        try:
            if holder is None:
                await self._call.ask(self._device.reserve)
            elif self._identity.supersedes(holder):
                await self._call.ask(lambda: self._device.preempt(holder))
        except Conflict as error:
            self._lose("somebody else took its reservation first", error)
        await self._vouch()

    # ---- writing

    def begin(self, number: int) -> None:
        self._next = number

    async def allocate(self, size: int) -> memoryview | None:
        return await self._call.ask(lambda: self._device.allocate(size))

    async def write(self, number: int, block: memoryview) -> bool:
        if self._lost is not None:
            raise self._lost
        placed = self._again.pop(number, None) or self._place(number, len(block))
        try:
            for at in range(0, len(block), WRITE_BYTES_MAX):
                part = block[at : at + WRITE_BYTES_MAX]
                offset = DATA_START + placed.extent.start + at
                placed.known &= await self._write_durably(offset, part, number, placed.began_ms)
        except Full:
            self._again[number] = placed
            raise
        if not self._device.preempt_aborts:
            await self._vouch()
        elif self._lost is not None:
            raise self._lost
        return placed.known

    def start(self, number: int, block: memoryview, done: Started) -> bool:
        starts = self._starts
        if starts is None or self._lost is not None or number != self._next or len(block) > WRITE_BYTES_MAX:
            return False
        try:
            placed = self._place(number, len(block))
        except (Full, Unavailable):
            return False  # `write` says why
        try:
            starts.start_write(DATA_START + placed.extent.start, block, functools.partial(self._ended, placed, done))
        except YunheError:
            self._again[number] = placed
            return False
        return True

    def _ended(self, placed: _Placed, done: Started, error: YunheError | None) -> None:
        """A started write is over. Whatever went wrong, `write` goes on from it."""
        if error is None and self._lost is None:
            done(True)
            return
        if isinstance(error, Fenced):
            with contextlib.suppress(Fenced):
                self._lose(error.message, error)
        elif isinstance(error, OutcomeUnknown):
            placed.known = False
            self._freeze(placed.extent.number)
        self._again[placed.extent.number] = placed
        done(False)

    def _freeze(self, number: int) -> None:
        """A write of block `number` may land at any time: its space, and what is behind, is not used again."""
        self._frozen = number if self._frozen is None else min(self._frozen, number)

    def _place(self, number: int, length: int) -> _Placed:
        return _Placed(self._take(number, length), self._clock.monotonic_ms())

    def _take(self, number: int, length: int) -> _Extent:
        """Give block `number` its place. The head never meets the tail, so that an empty ring and a full one differ."""
        invariant(number == self._next, "blocks are written in order", number=number, next=self._next)
        start = self._position
        tail = self._extents[0].start if self._extents else None
        if tail is None or start > tail:
            fits_before_end = start + length <= self._capacity
            fits_at_start = length <= self._capacity if tail is None else length < tail
            if not fits_before_end:
                start = 0
            fits = fits_before_end or fits_at_start
        else:
            fits = start + length < tail
        if not fits:
            if self._frozen is not None and self._frozen < self._floor:
                # Everything here is trimmed, and yet a write whose end nobody knows might land: only another epoch,
                # after the drain, gets this space back.
                raise Unavailable(
                    f"a request that was never answered may still write to the ring from block {self._frozen} on",
                    hint="the broker restarts under a new epoch, which reuses the volume once its I/O is over",
                )
            raise Full(f"the ring has no room for {length} bytes", length=length)
        extent = _Extent(number, start, start + length)
        self._extents.append(extent)
        self._position = extent.end
        self._next = number + 1
        return extent

    async def _write_durably(self, offset: int, data: bytes | memoryview, number: int, began_ms: float) -> bool:
        """Write, and write the same bytes again, until the device says they are durable. `number`: from which block on
        space is frozen if an answer is lost. Returns whether every attempt is known to be over."""
        last: Unavailable | None = None
        known = True
        for attempt in range(self._retry.attempts_max):
            try:
                await self._call.once(self._device.write(offset, data))
                return known
            except Fenced as error:
                self._lose(error.message, error)
            except Unavailable as error:
                if isinstance(error, OutcomeUnknown):
                    known = False
                    self._freeze(number)
                last = error
            if not self.alone and self._retry.left_ms(began_ms, self._clock) == 0:
                break
            await self._clock.sleep_ms(self._retry.pause_ms(attempt))
        raise Unavailable(f"the volume did not take block {number}: {last}", number=number) from last

    async def _vouch(self) -> None:
        """Read the reservation, by a request issued now: behind everything that this call is to vouch for.

        Raises:
            Fenced: the holder is not this epoch's key. No holder is a loss too: whoever took it may have gone again.
        """
        holder = (await self._call.ask(self._device.reservation)).holder
        if holder != self._identity.key:
            self._lose(f"its reservation is held by {'nobody' if holder is None else hex(holder)}")
        if self._lost is not None:
            raise self._lost

    def _lose(self, message: str, cause: BaseException | None = None) -> NoReturn:
        node_id, epoch = self._identity.node_id, self._identity.epoch
        if self._lost is None:
            self._lost = Fenced(f"volume of node {node_id}, epoch {epoch}: {message}", node_id=node_id, epoch=epoch)
        raise self._lost from cause

    # ---- trimming

    async def trim(self, floor: int) -> None:
        async with self._trimming:
            if self._lost is not None:
                raise self._lost
            if floor <= self._floor:
                return
            invariant(floor <= self._next, "the floor is not above what was written", floor=floor, next=self._next)
            at = next((extent.start for extent in self._extents if extent.number == floor), self._position)
            await self._write_superblock(floor, at)
            self._floor = floor
            # Only now: a reader starts at the floor of the newest superblock, and everything from there on has to be
            # there.
            free_below = floor if self._frozen is None else min(floor, self._frozen)
            while self._extents and self._extents[0].number < free_below:
                self._extents.popleft()

    async def _write_superblock(self, floor: int, at: int) -> None:
        self._sequence += 1
        data = Superblock(
            node_id=self._identity.node_id,
            epoch=self._identity.epoch,
            sequence=self._sequence,
            floor=floor,
            floor_at=at,
            capacity=self._capacity,
            instance=self._identity.instance,
        ).encode()
        # If its answer is lost, an old superblock may come back over a newer one: then its floor is the one a reader
        # starts at.
        at_ms = self._clock.monotonic_ms()
        await self._write_durably(self._sequence % SUPERBLOCKS * BLOCK_BYTES, data, self._floor, at_ms)

    async def close(self) -> None:
        try:
            await self._call.once(self._device.close())
        except Unavailable as error:
            log.debug("wal volume close failed: %s", error)
