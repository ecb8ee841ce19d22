"""The recoverer's end of a ring: takes the reservation from its victim by name, then reads.

What it can and cannot tell. Reading ends at the first place where block n is neither at its position nor at the start
of the ring. That is the end of the log, or damage. It is called damage (`Corrupt`) when n is below the ledger's floor,
since the block was acked, or when a whole block within SCAN_BYTES behind the place says that n was acked before it was
made. Damage to blocks that no later one vouches for cannot be told from a torn tail, nor damage that takes all that
follows with it: against those, the volume's own replication stands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from dataplane.wal.base import Block, WalIdentity, key_rank
from dataplane.wal.codec import HEADER_BYTES, Kind, Miss, decode_block, peek, verify
from dataplane.wal.sides import DeviceCalls, RetrySettings
from dataplane.wal.superblock import DATA_START, SUPERBLOCKS, Superblock, read_superblocks
from providers.base.clock import Clock
from providers.base.errors import Conflict, Corrupt, Fenced, Invalid, invariant
from providers.base.volumes import BLOCK_BYTES, BlockDevice

READ_BYTES = 4 << 20
"""Read at once: large enough for a volume's full throughput, small beside the WAL."""
AHEAD_MAX = 4
"""Chunks under way at the same time."""
SCAN_BYTES = 16 << 20
"""How far behind the end later blocks are looked for: twice as many of the usual greatest size as are under way."""
_FENCE_ATTEMPTS_MAX = 10
"""The holder may change between reading and preempting it, once for each competing recoverer."""


class RingReader:
    """`WalReader` of `base.py` over a ring."""

    def __init__(
        self,
        device: BlockDevice,
        victim: WalIdentity,
        *,
        own_key: int,
        clock: Clock,
        retry: RetrySettings | None = None,
    ) -> None:
        """`own_key`: `victim.recovery_key(...)` of the recoverer. The device is closed by `release`."""
        if key_rank(own_key) != key_rank(victim.key) + 1:
            raise Invalid(f"{own_key:#x} is not the key of a recovery of epoch {victim.epoch}", own_key=own_key)
        self._device = device
        self._victim = victim
        self._own_key = own_key
        self._call = DeviceCalls(retry or RetrySettings(), clock)
        self._fenced = False
        self._chunk = b""
        self._chunk_start = 0
        self._ahead: deque[asyncio.Task[bytes]] = deque()
        """The chunks behind the present one, being read while that is decoded."""
        self._ahead_end = 0
        self._depth = 1

    @property
    def name(self) -> str:
        return "volume"

    async def fence(self) -> None:
        await self._call.ask(lambda: self._device.register(self._own_key))
        holder: int | None = None
        for _ in range(_FENCE_ATTEMPTS_MAX):
            holder = (await self._call.ask(self._device.reservation)).holder
            if holder == self._own_key:
                self._fenced = True
                return
            try:
                if holder is None:
                    # The victim died before it reserved, or a recoverer left: the victim never acks again, since no
                    # holder counts as lost; the reservation is taken all the same, so that no opening of its epoch gets
                    # through.
                    await self._call.ask(self._device.reserve)
                elif key_rank(holder) <= key_rank(self._own_key):
                    victim_key = holder
                    await self._call.ask(lambda: self._device.preempt(victim_key))  # noqa: B023 -- awaited in this very turn
                else:
                    break
            except Conflict:
                continue  # the holder changed in between: look again
        node_id, epoch = self._victim.node_id, self._victim.epoch
        raise Fenced(
            f"the volume of node {node_id}, epoch {epoch} is held by {holder or 0:#x}: this recovery was overtaken",
            holder=holder,
        )

    async def read(self, floor: int) -> AsyncIterator[Block]:
        invariant(self._fenced, "a ring is fenced before it is read")
        self._chunk = b""
        superblock = await self._superblock(floor)
        if superblock is None:
            return
        if superblock.floor > floor:
            raise Corrupt(
                f"the ring begins at block {superblock.floor}, and the ledger's floor is {floor}",
                hint="the volume belongs to another log, or the ledger was read before the broker was fenced",
            )
        number, at = superblock.floor, superblock.floor_at
        try:
            while (found := await self._find(superblock, number, at)) is not None:
                block, at = found
                if number >= floor:
                    yield block
                number += 1
            await self._check_end(superblock, number, at, floor)
        finally:
            await self._drop_ahead()

    async def _superblock(self, floor: int) -> Superblock | None:
        """The victim's newest; None when it never opened the ring, so that nothing was acked on it."""
        head = await self._call.ask(lambda: self._device.read(0, SUPERBLOCKS * BLOCK_BYTES))
        own = [superblock for superblock in read_superblocks(head) if superblock.belongs_to(self._victim)]
        if own:
            return max(own, key=lambda superblock: superblock.sequence)
        first = await self._call.ask(lambda: self._device.read(DATA_START, HEADER_BYTES))
        header = peek(first)
        if floor > 1 or (header is not None and header.kind == Kind.BLOCK and header.belongs_to(self._victim)):
            raise Corrupt(f"both superblocks of node {self._victim.node_id}, epoch {self._victim.epoch} are lost")
        return None

    async def _find(self, superblock: Superblock, number: int, at: int) -> tuple[Block, int] | None:
        """Block `number` and the position behind it."""
        for start in (at, 0) if at else (0,):
            if start + HEADER_BYTES > superblock.capacity:
                continue
            header = peek(await self._bytes(superblock, start, HEADER_BYTES))
            if header is None or header.number != number or not header.belongs_to(self._victim):
                continue
            if start + header.length > superblock.capacity:
                continue
            block = decode_block(await self._bytes(superblock, start, header.length), self._victim, number)
            if not isinstance(block, Miss):
                return block, start + header.length
        return None

    async def _check_end(self, superblock: Superblock, number: int, at: int, floor: int) -> None:
        """Block `number` is not there: the end, or damage?"""
        if number < floor:
            raise Corrupt(
                f"block {number} is damaged: the ledger says that all below {floor} were acked", number=number
            )
        # A block is at the start of the ring only if it did not fit behind the last; none is over a quarter of it.
        wrapped = at > 0 and superblock.capacity - at < superblock.capacity // 4
        for start in (at, 0) if wrapped else (at,):
            length = min(SCAN_BYTES, superblock.capacity - start)
            if length <= HEADER_BYTES:
                continue
            data = memoryview(await self._call.ask(lambda: self._device.read(DATA_START + start, length)))  # noqa: B023
            for offset in range(0, length - HEADER_BYTES, BLOCK_BYTES):
                header = peek(data[offset : offset + HEADER_BYTES])
                if header is None or header.kind != Kind.BLOCK or not header.belongs_to(self._victim):
                    continue
                if header.number - header.unacked <= number or offset + header.length > length:
                    continue
                if not isinstance(verify(data[offset : offset + header.length]), Miss):
                    raise Corrupt(
                        f"block {number} is damaged: block {header.number}, made after its ack, is whole",
                        number=number,
                    )

    async def _bytes(self, superblock: Superblock, start: int, length: int) -> memoryview:
        """Bytes of the data area, read in large chunks, and a few chunks ahead."""
        if not self._chunk_start <= start <= self._chunk_start + len(self._chunk):
            await self._drop_ahead()
            self._chunk, self._chunk_start = b"", start
        while (end := self._chunk_start + len(self._chunk)) < start + length:
            self._read_ahead(superblock, end)
            more = await self._ahead.popleft()
            self._chunk, self._chunk_start = self._chunk[start - self._chunk_start :] + more, start
        skip = start - self._chunk_start
        return memoryview(self._chunk)[skip : skip + length]

    def _read_ahead(self, superblock: Superblock, start: int) -> None:
        """Begin to read what lies from `start` on. A short log costs one chunk; a long one finds more under way the
        longer it is, for a volume that is read one request at a time gives a part of its throughput."""
        at = self._ahead_end if self._ahead else start
        while len(self._ahead) < self._depth and at < superblock.capacity:
            size = min(READ_BYTES, superblock.capacity - at)
            self._ahead.append(asyncio.create_task(self._read_chunk(at, size)))
            at += size
        self._ahead_end = at
        self._depth = min(2 * self._depth, AHEAD_MAX)

    async def _read_chunk(self, start: int, size: int) -> bytes:
        return await self._call.ask(lambda: self._device.read(DATA_START + start, size))

    async def _drop_ahead(self) -> None:
        dropped = list(self._ahead)
        self._ahead.clear()
        self._depth = 1
        for task in dropped:
            task.cancel()
        await asyncio.gather(*dropped, return_exceptions=True)

    async def release(self) -> None:
        """Closes the device and keeps the reservation: the next epoch's key outranks it, and given up it could be taken
        by the victim, if that was paused before it opened the ring."""
        await self.close()

    async def close(self) -> None:
        await self._call.once(self._device.close())
