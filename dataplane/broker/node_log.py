"""`PartitionLog` over an open partition, and the protocol's codes for errors of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import Appended, Busy, Done, KafkaError
from dataplane.stream.batch import BatchHeader, Buffer
from dataplane.stream.partition import NotOwner, OutOfRange, Partition
from dataplane.stream.producers import OutOfOrderSequence, ProducerTable, StaleProducerEpoch
from dataplane.stream.transactions import Aborted, InvalidTransaction
from providers.base.errors import Corrupt, Fenced, Full, NotFound, Unavailable, YunheError

FINAL = (OutOfOrderSequence, StaleProducerEpoch, InvalidTransaction)
"""Refusals that a client takes for the last word: the owner first makes sure that it still is one."""


class LogOwner(Protocol):
    """What a log needs of its node (`NodeEngine`)."""

    def forward(self, stream: int, batch: Buffer, header: BatchHeader, done: Done) -> bool:
        """Take a batch that was held back on to the partition's new owner; False when that cannot be."""
        ...

    def confirm(self, partition: Partition, error: YunheError, done: Done) -> None:
        """Look into the ledger before a refusal that would be final to the client."""
        ...

    async def confirmed(self, partition: Partition, error: YunheError) -> YunheError: ...


def kafka_error(error: YunheError) -> KafkaError:
    """The protocol's code for an error of ours."""
    match error:
        case OutOfOrderSequence():
            code = ErrorCode.out_of_order_sequence_number
        case StaleProducerEpoch():
            code = ErrorCode.invalid_producer_epoch
        case InvalidTransaction():
            code = ErrorCode.invalid_txn_state
        case OutOfRange():
            code = ErrorCode.offset_out_of_range
        case NotOwner() | Fenced():
            code = ErrorCode.not_leader_or_follower
        case Full():
            code = ErrorCode.request_timed_out  # retriable: the client backs off while the WAL drains
        case Unavailable() | Corrupt() | NotFound():
            code = ErrorCode.kafka_storage_error
        case _:
            code = ErrorCode.unknown_server_error
    return KafkaError(code.value, error.message)


class NodeLog:
    """`PartitionLog` over an open partition."""

    def __init__(self, partition: Partition, engine: LogOwner) -> None:
        self._partition = partition
        self._engine = engine

    @property
    def leader_epoch(self) -> int:
        return self._partition.epoch

    @property
    def start_offset(self) -> int:
        return self._partition.start_offset

    @property
    def high_watermark(self) -> int:
        return self._partition.high_watermark

    @property
    def last_stable_offset(self) -> int:
        return self._partition.last_stable_offset

    @property
    def producers(self) -> ProducerTable:
        return self._partition.admitted_producers()

    def begin(self, batch: bytearray | memoryview, header: BatchHeader, done: Done) -> None:
        def over(first: int, last: int, duplicate: bool, error: Exception | None) -> None:
            if error is None:
                done(first, None)
            elif isinstance(error, FINAL):
                self._engine.confirm(self._partition, error, done)
            elif not isinstance(error, NotOwner) or not self._engine.forward(self._partition.id, batch, header, done):
                done(-1, kafka_error(error) if isinstance(error, YunheError) else KafkaError(-1, str(error)))

        try:
            self._partition.begin(batch, header, over)
        except FINAL as error:
            self._engine.confirm(self._partition, error, done)
        except Full as error:
            raise Busy(ErrorCode.request_timed_out.value, error.message) from error
        except YunheError as error:
            raise kafka_error(error) from error

    async def append(self, batch: bytes) -> Appended:
        try:
            first, last, duplicate = await self._partition.append(batch)
        except FINAL as error:
            # An owner that was paused knows an old end of the producer's sequence, and its refusal would be final to
            # the client. So it looks first whether it still is the owner.
            raise kafka_error(await self._engine.confirmed(self._partition, error)) from error
        except YunheError as error:
            raise kafka_error(error) from error
        return Appended(first, last, self._partition.start_offset, duplicate)

    def read_cached(
        self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False
    ) -> Sequence[Buffer] | None:
        try:
            return self._partition.read_cached(offset, bytes_max, minimum_one=minimum_one, committed=committed)
        except YunheError as error:
            raise kafka_error(error) from error

    async def read(self, offset: int, bytes_max: int, *, minimum_one: bool, committed: bool = False) -> bytes:
        try:
            return await self._partition.read(offset, bytes_max, minimum_one=minimum_one, committed=committed)
        except YunheError as error:
            raise kafka_error(error) from error

    def aborted_known(self, start: int, end: int) -> Sequence[Aborted] | None:
        return self._partition.aborted_known(start, end)

    async def aborted(self, start: int, end: int) -> Sequence[Aborted]:
        try:
            return await self._partition.aborted(start, end)
        except YunheError as error:
            raise kafka_error(error) from error

    def watch(self, wake: Callable[[], None]) -> None:
        self._partition.watch(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        self._partition.unwatch(wake)

    async def wait_for_data(self, offset: int, timeout_ms: float) -> None:
        await self._partition.wait_for_data(offset, timeout_ms)

    async def offset_for_timestamp(self, timestamp_ms: int) -> tuple[int, int] | None:
        try:
            return await self._partition.offset_for_timestamp(timestamp_ms)
        except YunheError as error:
            raise kafka_error(error) from error

    async def newest(self) -> tuple[int, int] | None:
        try:
            return await self._partition.newest()
        except YunheError as error:
            raise kafka_error(error) from error

    @property
    def tiered_offset(self) -> int:
        owed = next((span.uploaded for span in self._partition.stream.spans if span.owed), None)
        return max(self._partition.uploaded if owed is None else owed, self._partition.start_offset)

    def end_offset_of_epoch(self, leader_epoch: int) -> tuple[int, int]:
        stream = self._partition.stream
        for span in reversed(stream.spans):
            if span.epoch <= leader_epoch:
                return span.epoch, self._partition.high_watermark if span.end is None else span.end
        return -1, -1
