"""One transactional id: what may happen to it, decided over values. Who writes the outcome down is `transactions.py`.

Empty ──add──► Ongoing ──end──────────► PrepareCommit ──all markers──► CompleteCommit ─┐
  ▲              ▲  └────end, too old,─► PrepareAbort ───all markers──► CompleteAbort ─┤
  │              │       new instance                                                  │
  │              └────────────────────────────── add ──────────────────────────────────┤
  └───────────────────────────── init (epoch + 1) ─────────────────────────────────────┘

A transition is a new value; it counts once it is durable. Rules: KIP-98, KIP-360 (a producer may bump its own epoch),
KIP-588 (and goes on after a transaction that took too long), and Kafka's own codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError

EPOCH_LAST = 32_766
"""With this epoch a producer gets a new id at its next start; the one after it is left for an abort."""
PARTITIONS_MAX = 10_000
"""Partitions of one transaction."""
NO_EPOCH = -1

TopicPartition = tuple[str, int]


class TransactionState(StrEnum):
    """As Kafka's tools call them."""

    EMPTY = "Empty"
    ONGOING = "Ongoing"
    PREPARE_COMMIT = "PrepareCommit"
    PREPARE_ABORT = "PrepareAbort"
    COMPLETE_COMMIT = "CompleteCommit"
    COMPLETE_ABORT = "CompleteAbort"


PREPARED = (TransactionState.PREPARE_COMMIT, TransactionState.PREPARE_ABORT)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transactional id and its newest transaction. `round`: the how-manieth it is. Times are wall-clock ms."""

    id: str
    producer_id: int
    epoch: int
    timeout_ms: int
    state: TransactionState = TransactionState.EMPTY
    partitions: frozenset[TopicPartition] = frozenset()
    round: int = 0
    began_ms: int = -1
    changed_ms: int = 0
    last_producer_id: int = -1
    last_epoch: int = NO_EPOCH
    """Epoch that the producer itself named when it was given the present one: an InitProducerId sent again is known by
    it."""

    @property
    def commits(self) -> bool:
        return self.state is TransactionState.PREPARE_COMMIT

    def dump(self) -> bytes:
        """As a record's value."""
        partitions = [[topic, partition] for topic, partition in sorted(self.partitions)]
        plain = [
            *(self.producer_id, self.epoch, self.timeout_ms, self.state.value, partitions, self.round),
            *(self.began_ms, self.changed_ms, self.last_producer_id, self.last_epoch),
        ]
        return json.dumps(plain, separators=(",", ":")).encode()

    @staticmethod
    def load(transactional_id: str, value: bytes) -> Transaction:
        """The inverse of `dump`."""
        producer_id, epoch, timeout_ms, state, partitions, *rest = json.loads(value)
        where = frozenset((topic, partition) for topic, partition in partitions)
        return Transaction(transactional_id, producer_id, epoch, timeout_ms, TransactionState(state), where, *rest)


def needs_producer_id(known: Transaction | None) -> bool:
    """The next `initialised` will ask for a fresh producer id."""
    return known is None or known.epoch >= EPOCH_LAST


def initialised(
    known: Transaction | None,
    transactional_id: str,
    *,
    timeout_ms: int,
    producer: tuple[int, int],
    fresh: int,
    now_ms: int,
) -> Transaction:
    """A producer starts, or bumps its epoch: then `producer` is its id and epoch, else (-1, -1). `fresh`: a producer id
    nobody has. The outcome may be the abort of what a former instance left open: then it has to be asked again.

    Raises:
        KafkaError: PRODUCER_FENCED, CONCURRENT_TRANSACTIONS.
    """
    if known is None:
        return Transaction(transactional_id, fresh, 0, timeout_ms, changed_ms=now_ms)
    named = producer[1] != NO_EPOCH
    if named and producer[0] not in (known.producer_id, known.last_producer_id):
        raise _fenced(known)
    if known.state in PREPARED:
        raise _concurrent(known)
    again = named and producer[1] == known.last_epoch
    if named and not again and producer != (known.producer_id, known.epoch):
        raise _fenced(known)
    if known.state is TransactionState.ONGOING:
        return _aborting(known, NO_EPOCH if not named else known.epoch, now_ms)
    if again:
        return known
    last = known.epoch if named else NO_EPOCH
    bumped = replace(
        known,
        timeout_ms=timeout_ms,
        state=TransactionState.EMPTY,
        partitions=frozenset(),
        began_ms=-1,
        changed_ms=now_ms,
        last_epoch=last,
    )
    if needs_producer_id(known):
        return replace(bumped, producer_id=fresh, epoch=0, last_producer_id=known.producer_id)
    return replace(bumped, epoch=known.epoch + 1, last_producer_id=-1)


def added(
    known: Transaction | None, producer: tuple[int, int], partitions: Iterable[TopicPartition], now_ms: int
) -> Transaction:
    """Partitions join the transaction, which begins with the first of them.

    Raises:
        KafkaError: INVALID_PRODUCER_ID_MAPPING, PRODUCER_FENCED, CONCURRENT_TRANSACTIONS, INVALID_REQUEST.
    """
    known = _of(known, producer)
    if known.state in PREPARED:
        raise _concurrent(known)
    more = frozenset(partitions)
    if known.state is TransactionState.ONGOING:
        if more <= known.partitions:
            return known
        more |= known.partitions
    if len(more) > PARTITIONS_MAX:
        raise KafkaError(ErrorCode.invalid_request.value, f"a transaction has {PARTITIONS_MAX} partitions at most")
    if known.state is TransactionState.ONGOING:
        return replace(known, partitions=more, changed_ms=now_ms)
    return replace(
        known,
        state=TransactionState.ONGOING,
        partitions=more,
        round=known.round + 1,
        began_ms=now_ms,
        changed_ms=now_ms,
        last_epoch=NO_EPOCH,
        last_producer_id=-1,
    )


def ended(known: Transaction | None, producer: tuple[int, int], commit: bool, now_ms: int) -> Transaction:
    """The producer commits or aborts.

    Raises:
        KafkaError: INVALID_PRODUCER_ID_MAPPING, PRODUCER_FENCED, CONCURRENT_TRANSACTIONS, INVALID_TXN_STATE.
    """
    known = _of(known, producer)
    match known.state:
        case TransactionState.ONGOING if commit:
            return replace(known, state=TransactionState.PREPARE_COMMIT, changed_ms=now_ms)
        case TransactionState.ONGOING:
            return replace(known, state=TransactionState.PREPARE_ABORT, changed_ms=now_ms)
        case TransactionState.PREPARE_COMMIT if commit:
            raise _concurrent(known)
        case TransactionState.PREPARE_ABORT if not commit:
            raise _concurrent(known)
        case TransactionState.COMPLETE_COMMIT if commit:
            return known
        case TransactionState.COMPLETE_ABORT if not commit:
            return known
    what = "commit" if commit else "abort"
    raise KafkaError(ErrorCode.invalid_txn_state.value, f"{known.id} is {known.state} and cannot {what}")


def too_old(known: Transaction, now_ms: int) -> bool:
    """Its transaction has been open for longer than its producer wanted."""
    return known.state is TransactionState.ONGOING and now_ms - known.began_ms > known.timeout_ms


def given_up(known: Transaction, now_ms: int) -> Transaction:
    """Abort what took too long; its producer is fenced until it bumps its epoch."""
    return _aborting(known, known.epoch, now_ms)


def forgotten(known: Transaction, now_ms: int, expiry_ms: int) -> bool:
    """Nobody has used it for so long that its id may be forgotten."""
    idle = known.state not in (TransactionState.ONGOING, *PREPARED)
    return idle and now_ms - known.changed_ms > expiry_ms


def completed(known: Transaction, now_ms: int) -> Transaction:
    """Every partition has its marker."""
    state = TransactionState.COMPLETE_COMMIT if known.commits else TransactionState.COMPLETE_ABORT
    return replace(known, state=state, partitions=frozenset(), changed_ms=now_ms)


def round_of(known: Transaction | None, producer: tuple[int, int], partition: TopicPartition) -> int:
    """The round of the open transaction that `partition` is in.

    Raises:
        KafkaError: INVALID_PRODUCER_ID_MAPPING, INVALID_PRODUCER_EPOCH, CONCURRENT_TRANSACTIONS, INVALID_TXN_STATE.
    """
    try:
        known = _of(known, producer)
    except KafkaError as error:
        if error.code == ErrorCode.producer_fenced.value:
            raise KafkaError(ErrorCode.invalid_producer_epoch.value, error.message) from error
        raise
    if known.state in PREPARED:
        raise _concurrent(known)
    if known.state is not TransactionState.ONGOING or partition not in known.partitions:
        raise KafkaError(ErrorCode.invalid_txn_state.value, f"{partition[0]}-{partition[1]} is not in {known.id}")
    return known.round


def _aborting(known: Transaction, last_epoch: int, now_ms: int) -> Transaction:
    """With an epoch that nobody else has: whoever still writes under the present one is refused."""
    return replace(
        known,
        state=TransactionState.PREPARE_ABORT,
        epoch=known.epoch + 1,
        last_epoch=last_epoch,
        last_producer_id=-1,
        changed_ms=now_ms,
    )


def _of(known: Transaction | None, producer: tuple[int, int]) -> Transaction:
    if known is None or known.producer_id != producer[0]:
        raise KafkaError(
            ErrorCode.invalid_producer_id_mapping.value, f"producer {producer[0]} is not this transactional id's"
        )
    if known.epoch != producer[1]:
        raise _fenced(known)
    return known


def _fenced(known: Transaction) -> KafkaError:
    return KafkaError(
        ErrorCode.producer_fenced.value, f"{known.id} is producer {known.producer_id} epoch {known.epoch}"
    )


def _concurrent(known: Transaction) -> KafkaError:
    return KafkaError(ErrorCode.concurrent_transactions.value, f"{known.id} is still {known.state}")
