"""What a node tells admin tools of itself: how many bytes its partitions hold and where, and how far the ledger is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from dataplane.broker.engine import LogDir, Quorum
from dataplane.broker.node import Node
from dataplane.ledger.state import CellState, Extent
from dataplane.stream.reader import ObjectReader
from providers.base.errors import YunheError

INDEXES_MAX = 500
"""Objects whose index one question reads; the parts of further ones are estimated."""
READS_MAX = 8
"""Indexes read at the same time."""


def quorum(node: Node) -> Quorum:
    """The ledger, as this node has read it."""
    return Quorum(node.state.term, node.ledger.seq)


async def log_dirs(node: Node, wanted: Collection[tuple[str, int]] | None) -> list[LogDir]:
    """The WAL and object storage, as far as the node's open partitions are in them; `wanted`: only those, by (topic,
    partition)."""
    in_wal: dict[tuple[str, int], int] = {}
    in_objects: dict[tuple[str, int], int] = {}
    budget = _Budget(node.reader, node.state)
    for partition in node.partitions.everything():
        key = (partition.stream.topic, partition.stream.partition)
        if partition.closed or (wanted is not None and key not in wanted):
            continue
        in_wal[key] = partition.unuploaded_bytes
        sizes = [budget.size(extent, partition.id) for extent in list(partition.stream.extents)]
        in_objects[key] = sum(await asyncio.gather(*sizes))
    total = node.config.broker.wal.bytes_max
    return [LogDir("/wal", in_wal, total, max(total - node.wal_bytes_used, 0)), LogDir("/objects", in_objects)]


class _Budget:
    """The reads of one question."""

    def __init__(self, reader: ObjectReader, state: CellState) -> None:
        self._reader = reader
        self._state = state
        self._left = INDEXES_MAX
        self._gate = asyncio.Semaphore(READS_MAX)

    async def size(self, extent: Extent, stream: int) -> int:
        """Bytes of the stream in that object: as its index says, or an even share of it."""
        async with self._gate:
            if self._left > 0:
                self._left -= 1
                try:
                    index = await self._reader.index(extent)
                    return sum(block.size for block in index.blocks_of(stream, extent.start, extent.end))
                except YunheError:
                    pass  # gone meanwhile, or the bucket is down: a size is no reason to fail
        return extent.size // max(self._state.objects.get(extent.object, 1), 1)
