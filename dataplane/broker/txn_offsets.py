"""Offsets that consumers' groups commit inside of transactions: pending until the transaction ends, visible if it is
committed.

Both are records of the group's partition of the offsets topic, so that whoever coordinates the group next knows them:
keys [null, "pending", producer, group, topic, partition] and [null, "end", producer].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.group import Committed, Group
from dataplane.stream.encode import KeyValue

if TYPE_CHECKING:
    from dataplane.broker.groups import GroupCoordinator, OffsetKey, Shard

ENDED_MAX = 5_000
"""Producers whose last ended transaction is remembered; the longest silent is forgotten first."""
PENDING_MAX = 100_000
"""Pending offsets of one partition of the offsets topic."""


class PendingOffsets:
    """Of one shard: what is pending, and which transactions are over."""

    def __init__(self) -> None:
        self._pending: dict[int, dict[tuple[str, str, int], tuple[int, Committed]]] = {}
        self._ended: dict[int, int] = {}

    @staticmethod
    def is_key(parsed: Any) -> bool:
        """A record's key, parsed, is one of these."""
        return isinstance(parsed, list) and parsed[0] is None

    def replay(self, parsed: Any, value: bytes | None, groups: dict[str, Group]) -> None:
        """A record of the offsets topic, read back."""
        _, kind, producer_id, *where = parsed
        number, *rest = json.loads(value or b"[0]")
        if kind == "end":
            self.end(producer_id, number, bool(rest[0]), groups)
        else:
            group, topic, partition = where
            self.add(producer_id, number, group, {(topic, partition): Committed(*rest)})

    def records(self) -> list[KeyValue]:
        """All that a snapshot must hold."""
        ended = [_end_record(producer, number, False) for producer, number in self._ended.items()]
        pending = [
            _pending_record(producer, number, group, (topic, partition), committed)
            for producer, theirs in self._pending.items()
            for (group, topic, partition), (number, committed) in theirs.items()
        ]
        return ended + pending

    def may_add(self, producer_id: int, number: int, count: int) -> None:
        """Whether a transaction may still commit offsets.

        Raises:
            KafkaError: INVALID_TXN_STATE: it is over; INVALID_COMMIT_OFFSET_SIZE: too many are pending.
        """
        if number <= self._ended.get(producer_id, 0):
            raise KafkaError(ErrorCode.invalid_txn_state.value, f"the transaction of producer {producer_id} is over")
        if sum(map(len, self._pending.values())) + count > PENDING_MAX:
            raise KafkaError(ErrorCode.invalid_commit_offset_size.value, "too many offsets are pending")

    def add(self, producer_id: int, number: int, group: str, offsets: Mapping[OffsetKey, Committed]) -> None:
        """They are durable, and pending."""
        theirs = self._pending.setdefault(producer_id, {})
        for (topic, partition), committed in offsets.items():
            theirs[group, topic, partition] = (number, committed)

    def close(self, producer_id: int, number: int) -> bool:
        """From now on nothing joins this transaction; False when it was ended before."""
        if number < self._ended.get(producer_id, 0):
            return False
        self._ended.pop(producer_id, None)
        self._ended[producer_id] = number
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        return True

    def end(self, producer_id: int, number: int, commit: bool, groups: dict[str, Group]) -> None:
        """The end is durable: what is pending becomes the groups' offsets, or nothing."""
        self.close(producer_id, number)
        theirs = self._pending.get(producer_id, {})
        for where, (pending_number, committed) in list(theirs.items()):
            if pending_number > number:
                continue
            del theirs[where]
            if commit and pending_number == number:
                group, topic, partition = where
                groups.setdefault(group, Group(group)).offsets[topic, partition] = committed
        if not theirs:
            self._pending.pop(producer_id, None)


class TxnOffsets:
    """Over the group coordinator, whose shards and log these share."""

    def __init__(self, coordinator: GroupCoordinator) -> None:
        self._coordinator = coordinator

    async def commit(
        self, shard: Shard, group: str, producer_id: int, number: int, offsets: Mapping[OffsetKey, Committed]
    ) -> None:
        """Make offsets pending; durable when this returns.

        Raises:
            KafkaError: they are not.
        """
        shard.pending.may_add(producer_id, number, len(offsets))
        records = [_pending_record(producer_id, number, group, key, c) for key, c in offsets.items()]
        await self._coordinator.write(shard, records, lambda: shard.pending.add(producer_id, number, group, offsets))

    async def end(self, partition: int, producer_id: int, number: int, commit: bool) -> None:
        """End a transaction's part in a partition of the offsets topic; durable when this returns.

        Raises:
            KafkaError: it is not.
        """
        shard = self._coordinator.shard_of(partition)
        if shard.pending.close(producer_id, number):
            await self._coordinator.write(
                shard,
                [_end_record(producer_id, number, commit)],
                lambda: shard.pending.end(producer_id, number, commit, shard.groups),
            )


def _key(*parts: object) -> bytes:
    return json.dumps([None, *parts], separators=(",", ":")).encode()


def _end_record(producer_id: int, number: int, commit: bool) -> KeyValue:
    return _key("end", producer_id), json.dumps([number, commit]).encode()


def _pending_record(producer_id: int, number: int, group: str, key: OffsetKey, committed: Committed) -> KeyValue:
    value = [number, committed.offset, committed.leader_epoch, committed.metadata]
    return _key("pending", producer_id, group, *key), json.dumps(value, separators=(",", ":")).encode()
