"""`ReplicaLog` over a node: a stream in object storage, as the node's ledger has it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from dataplane.broker.node_log import kafka_error
from dataplane.ledger.state import CellState, Stream
from dataplane.stream.reader import ObjectReader
from dataplane.stream.replica import Replica
from dataplane.stream.transactions import Aborted
from providers.base.errors import Unavailable, YunheError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reads(Protocol):
    """Of a `Node`, what this needs."""

    @property
    def state(self) -> CellState: ...

    @property
    def reader(self) -> ObjectReader: ...

    async def refresh(self) -> None: ...


class NodeReplica:
    """See `ReplicaLog`."""

    def __init__(self, stream: Stream, node: Reads) -> None:
        self._node = node
        self.stream = stream.id
        # Of a topic that is deleted meanwhile, what was known last: its objects are there for a while.
        self._replica = Replica(lambda: node.state.streams.get(stream.id, stream), node.reader)

    @property
    def leader_epoch(self) -> int:
        return self._replica.epoch

    @property
    def start_offset(self) -> int:
        return self._replica.start_offset

    @property
    def high_watermark(self) -> int:
        return self._replica.high_watermark

    def end(self, offset: int) -> int:
        return self._replica.end(offset)

    async def stable_end(self, offset: int) -> int:
        return await _told(self._replica.stable_end(offset))

    async def read(self, offset: int, bytes_max: int, end: int, *, minimum_one: bool) -> bytes:
        return await _told(self._replica.read(offset, bytes_max, end, minimum_one=minimum_one))

    async def aborted(self, start: int, end: int) -> Sequence[Aborted]:
        return await _told(self._replica.aborted(start, end))

    async def bytes_ahead(self, offset: int, enough: int) -> int:
        return await _told(self._replica.bytes_ahead(offset, enough))

    async def refresh(self) -> None:
        try:
            await self._node.refresh()
        except Unavailable as error:
            log.debug("bucket-unavailable", extra={"error": str(error)})


async def _told(work: Awaitable[T]) -> T:
    try:
        return await work
    except YunheError as error:
        raise kafka_error(error) from error
