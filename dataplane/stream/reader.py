"""Historical reads: record batches from stream-set objects, through caches of indexes and of blocks.

Every byte is checked before it is served; a block that fails its checksum raises `Corrupt` and is not cached.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Collection
from typing import Any

from dataplane.ledger.state import Extent
from dataplane.stream.disk_cache import DiskCache
from dataplane.stream.objects import (
    TAIL_BYTES,
    Index,
    IndexEntry,
    check_block,
    parse_footer,
    parse_index,
    parse_producers,
)
from providers.base.errors import Corrupt
from providers.base.objects import ObjectStore

INDEXES_CACHED_MAX = 1_000
PRODUCERS_CACHED_MAX = 32
"""Readers of committed records look at the same few again and again."""
SCAN_BYTES = 4 << 20
"""About what a scan reads in one request."""


class ObjectReader:
    """Reads one bucket's stream-set objects. `cache_bytes_max` bounds the block cache in memory; `disk` is a second
    one, behind it."""

    def __init__(self, store: ObjectStore, cache_bytes_max: int, disk: DiskCache | None = None) -> None:
        self._store = store
        self._disk = disk
        self._cache_bytes_max = cache_bytes_max
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self.bytes_held = 0
        """Of the blocks in memory."""
        self._producers: OrderedDict[tuple[str, int], Any] = OrderedDict()

    async def blocks(self, extent: Extent, stream: int, offset: int, bytes_max: int) -> list[bytes]:
        """Data blocks of `stream` from the one that holds `offset`, until `bytes_max` bytes are reached or the extent
        ends; at least one.

        Raises:
            Corrupt: a checksum does not hold.
            NotFound, Unavailable: as the store says.
        """
        found: list[bytes] = []
        for entry in (await self.index(extent)).blocks_of(stream, offset, extent.end):
            block = await self.block(extent.object, entry)
            found.append(block)
            bytes_max -= len(block)
            if bytes_max <= 0:
                break
        return found

    async def producers(self, extent: Extent, stream: int) -> Any:
        """The producers' state at the extent's end, None when the object does not carry it."""
        index = await self.index(extent)
        for entry in reversed(index.blocks_of(stream, extent.start, extent.end)):
            if entry.end == extent.end and entry.producers_position >= 0:
                at = index.producers_at + entry.producers_position
                if (key := (extent.object, at)) not in self._producers:
                    framed = await self._store.get(extent.object, start=at, length=entry.producers_size)
                    self._producers[key] = parse_producers(framed)
                    if len(self._producers) > PRODUCERS_CACHED_MAX:
                        self._producers.popitem(last=False)
                return self._producers[key]
        return None

    async def scan(self, extent: Extent, stream: int, start: int) -> AsyncGenerator[tuple[IndexEntry, bytes], None]:
        """All data blocks of `stream` in the extent from the one that holds `start` on, in order, past the caches: few
        requests, and a piece of SCAN_BYTES at a time in memory.

        Raises, while it is read:
            Corrupt: a checksum does not hold. NotFound, Unavailable: as the store says.
        """
        entries = deque((await self.index(extent)).blocks_of(stream, start, extent.end))
        while entries:
            piece = [entries.popleft()]
            size = piece[0].size
            # A stream's blocks lie one behind the other.
            while entries and size < SCAN_BYTES and entries[0].position == piece[0].position + size:
                size += entries[0].size
                piece.append(entries.popleft())
            data = await self._store.get(extent.object, start=piece[0].position, length=size)
            for entry in piece:
                at = entry.position - piece[0].position
                yield entry, check_block(entry, data[at : at + entry.size])

    async def bytes_of(self, extent: Extent, stream: int) -> int:
        """How many bytes of the object are the stream's.

        Raises:
            Corrupt, NotFound, Unavailable: as `index`.
        """
        return sum(e.size for e in (await self.index(extent)).blocks_of(stream, extent.start, extent.end))

    def forget(self, names: Collection[str]) -> None:
        """Nothing refers to these objects any more: their place in the caches is worth more to others."""
        for name in names:
            self._indexes.pop(name, None)
        for key in [key for key in self._producers if key[0] in names]:
            del self._producers[key]
        for key in [key for key in self._blocks if key[0] in names]:
            self.bytes_held -= len(self._blocks.pop(key))
        if self._disk is not None:
            self._disk.forget(names)

    async def index(self, extent: Extent) -> Index:
        """The object's index, by one read of its tail, or two for a very large one."""
        cached = self._indexes.get(extent.object)
        if cached is not None:
            self._indexes.move_to_end(extent.object)
            return cached
        tail_at = max(0, extent.size - TAIL_BYTES)
        tail = await self._store.get(extent.object, start=tail_at)
        place = parse_footer(tail, extent.size)
        if place.position >= tail_at:
            begin = place.position - tail_at
            data = tail[begin : begin + place.size]
        else:
            data = await self._store.get(extent.object, start=place.position, length=place.size)
        index = parse_index(data, place)
        self._indexes[extent.object] = index
        if len(self._indexes) > INDEXES_CACHED_MAX:
            self._indexes.popitem(last=False)
        return index

    async def block(self, name: str, entry: IndexEntry) -> bytes:
        """One data block of object `name`, which the index says is there.

        Raises:
            Corrupt: its checksum does not hold. NotFound, Unavailable: as the store says.
        """
        key = (name, entry.position)
        cached = self._blocks.get(key)
        if cached is not None:
            self._blocks.move_to_end(key)
            return cached
        block = await self._on_disk(name, entry)
        if block is None:
            block = check_block(entry, await self._store.get(name, start=entry.position, length=entry.size))
            if self._disk is not None:
                self._disk.put(name, entry.position, block)
        if key not in self._blocks:
            self._blocks[key] = block
            self.bytes_held += len(block)
        while self.bytes_held > self._cache_bytes_max and len(self._blocks) > 1:
            _, evicted = self._blocks.popitem(last=False)
            self.bytes_held -= len(evicted)
        return block

    async def _on_disk(self, name: str, entry: IndexEntry) -> bytes | None:
        """The block if the disk has it whole."""
        data = await self._disk.get(name, entry.position, entry.size) if self._disk is not None else None
        if self._disk is None or data is None:
            return None
        try:
            return check_block(entry, data)
        except Corrupt:
            self._disk.drop(name, entry.position)
            return None
