"""Historical reads: record batches from stream-set objects, through caches of indexes and of blocks.

Every byte is checked before it is served; a block that fails its checksum raises `Corrupt` and is not cached.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from dataplane.ledger.state import Extent
from dataplane.stream.objects import (
    TAIL_BYTES,
    Index,
    IndexEntry,
    check_block,
    parse_footer,
    parse_index,
    parse_producers,
)
from providers.base.objects import ObjectStore

INDEXES_CACHED_MAX = 1_000
PRODUCERS_CACHED_MAX = 32
"""Readers of committed records look at the same few again and again."""


class ObjectReader:
    """Reads one bucket's stream-set objects. `cache_bytes_max` bounds the block cache."""

    def __init__(self, store: ObjectStore, cache_bytes_max: int) -> None:
        self._store = store
        self._cache_bytes_max = cache_bytes_max
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._block_bytes = 0
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
            block = await self._block(extent.object, entry)
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

    async def _block(self, name: str, entry: IndexEntry) -> bytes:
        key = (name, entry.position)
        cached = self._blocks.get(key)
        if cached is not None:
            self._blocks.move_to_end(key)
            return cached
        block = check_block(entry, await self._store.get(name, start=entry.position, length=entry.size))
        if key not in self._blocks:
            self._blocks[key] = block
            self._block_bytes += len(block)
        while self._block_bytes > self._cache_bytes_max and len(self._blocks) > 1:
            _, evicted = self._blocks.popitem(last=False)
            self._block_bytes -= len(evicted)
        return block
