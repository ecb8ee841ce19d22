"""Idempotent producers: each batch of a producer id is taken once, and in sequence, whatever is sent again.

The rules are Kafka's (KIP-98, KIP-360): within a producer epoch sequences follow each other; the last five batches are
remembered, and a repeat of one of them is answered with the offsets that it got.

Stricter than Kafka in one place: a producer of whom nothing is known begins with sequence 0. Kafka takes any; but then,
of two requests under way to a partition that is just being opened, the first may be refused (not leader yet) and the
second taken. The first, sent again, is out of order for ever, and librdkafka takes "out of order" below what was acked
for a repeat that succeeded: its records are lost, and nobody is told (seen in a drill).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataplane.stream.batch import CONTROL, TRANSACTIONAL, BatchHeader, Buffer
from dataplane.stream.transactions import Transactions, parse_marker
from providers.base.errors import Invalid

BATCHES_REMEMBERED = 5
"""A producer has at most five requests in flight (Kafka's own limit for idempotence)."""

PRODUCERS_MAX = 5_000
"""Producers remembered a partition; the one silent for the most offsets is forgotten first."""

HANDOVER_PRODUCERS_MAX = 1_000
"""Producers that travel with a planned move, in one ledger entry; older ones are found by reading batches."""

SEQUENCE_MODULUS = 1 << 31
"""Sequence numbers are non-negative int32 and wrap to 0."""


class OutOfOrderSequence(Invalid):
    """A batch whose sequence does not follow the producer's last one."""


class StaleProducerEpoch(Invalid):
    """A producer that a newer one of the same id has replaced."""


class Remembered(NamedTuple):
    """One batch of a producer: its sequences and offsets, both ends included."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    last_offset: int


@dataclass(slots=True)
class _Producer:
    epoch: int
    batches: list[Remembered]
    ended: tuple[int, int] = (0, -1)
    """Round and offset of its last transaction's marker here."""


class ProducerTable:
    """What is known of a partition's producers at one offset."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}
        self.transactions = Transactions()

    def __len__(self) -> int:
        """How many producers are known."""
        return len(self._producers)

    def check(self, header: BatchHeader, batch: Buffer) -> Remembered | None:
        """The earlier batch that this one repeats; None when it is new and in sequence, or not idempotent.

        Raises:
            OutOfOrderSequence, StaleProducerEpoch, InvalidTransaction, Full: nothing was recorded.
        """
        if header.producer_id < 0:
            return None
        if header.attributes & CONTROL:
            return self._check_marker(header, batch)
        earlier = self.repeats(header)
        if earlier is None:
            known = self._producers.get(header.producer_id)
            transactional = bool(header.attributes & TRANSACTIONAL)
            ended_round = known.ended[0] if known is not None else 0
            self.transactions.check(header.producer_id, header.producer_epoch, transactional, ended_round)
        return earlier

    def begins_unasked(self, header: BatchHeader) -> bool:
        """This batch of a transaction would open it here, and the coordinator has not vouched for that yet."""
        producer_id, epoch = header.producer_id, header.producer_epoch
        if self.transactions.is_open(producer_id, epoch):
            return False
        known = self._producers.get(producer_id)
        if self.transactions.allowed(producer_id, epoch, known.ended[0] if known is not None else 0):
            return False
        try:
            return self.repeats(header) is None
        except Invalid:
            return False  # will be refused, and nobody needs to be asked

    def repeats(self, header: BatchHeader) -> Remembered | None:
        """The earlier batch of this producer that this one repeats; None when it is new and in sequence.

        Raises:
            OutOfOrderSequence, StaleProducerEpoch: it is neither.
        """
        known = self._producers.get(header.producer_id)
        if known is None:
            if header.base_sequence != 0:
                raise OutOfOrderSequence(
                    f"producer {header.producer_id} is not known here and begins with {header.base_sequence}, not 0"
                )
            return None
        if header.producer_epoch < known.epoch:
            raise StaleProducerEpoch(
                f"producer {header.producer_id} epoch {header.producer_epoch} was replaced by epoch {known.epoch}"
            )
        first, last = header.base_sequence, _last_sequence(header)
        if header.producer_epoch > known.epoch:
            if first != 0:
                raise OutOfOrderSequence(f"producer {header.producer_id} begins its epoch with sequence {first}, not 0")
            return None
        for batch in known.batches:
            if batch.first_sequence == first and batch.last_sequence == last:
                return batch
        if not known.batches:
            if first != 0:
                raise OutOfOrderSequence(f"producer {header.producer_id} begins with sequence {first}, not 0")
            return None
        expected = (known.batches[-1].last_sequence + 1) % SEQUENCE_MODULUS
        if first != expected:
            raise OutOfOrderSequence(f"producer {header.producer_id} sent sequence {first} where {expected} follows")
        return None

    def _check_marker(self, header: BatchHeader, batch: Buffer) -> Remembered | None:
        known = self._producers.get(header.producer_id)
        if known is None:
            return None
        if parse_marker(batch).round <= known.ended[0]:
            return Remembered(-1, -1, known.ended[1], known.ended[1])
        if header.producer_epoch < known.epoch:
            raise StaleProducerEpoch(
                f"a marker of producer {header.producer_id} epoch {header.producer_epoch} meets epoch {known.epoch}"
            )
        return None

    def record(self, header: BatchHeader, base_offset: int, batch: Buffer) -> None:
        """Remember a batch that was given `base_offset`."""
        if header.producer_id < 0:
            return
        known = self._producers.pop(header.producer_id, None)
        if known is None:
            known = _Producer(header.producer_epoch, [])
        elif known.epoch != header.producer_epoch:
            known = _Producer(header.producer_epoch, [], known.ended)
        if header.attributes & CONTROL:
            marker = parse_marker(batch)
            known.ended = (marker.round, base_offset)
            self.transactions.ended(header.producer_id, marker.commit, base_offset)
        else:
            last = base_offset + header.last_offset_delta
            remembered = Remembered(header.base_sequence, _last_sequence(header), base_offset, last)
            known.batches = [*known.batches[-BATCHES_REMEMBERED + 1 :], remembered]
            if header.attributes & TRANSACTIONAL:
                self.transactions.goes_on(header.producer_id, header.producer_epoch, base_offset)
        # Re-inserted last: the dict's order is by last batch, so that the first is the longest silent.
        self._producers[header.producer_id] = known
        if len(self._producers) > PRODUCERS_MAX:
            del self._producers[next(iter(self._producers))]

    def dump(self, producers_max: int = PRODUCERS_MAX) -> Any:
        """The newest `producers_max` as JSON values: [id, epoch, [[first, last, base, last offset] …], [marker's round,
        offset] where there was one]; where there are transactions, a dict with these as "producers" beside them.
        """
        newest = list(self._producers.items())[-producers_max:]
        producers = [
            [
                *(i, p.epoch),
                [[b.first_sequence, b.last_sequence, b.base_offset, b.last_offset] for b in p.batches],
                *([list(p.ended)] if p.ended[0] else []),
            ]
            for i, p in newest
        ]
        transactions = self.transactions.dump()
        return producers if transactions is None else {"producers": producers, **transactions}

    @staticmethod
    def load(plain: Any, at: int) -> ProducerTable:
        """The inverse of `dump`, which was taken at offset `at`."""
        table = ProducerTable()
        producers = plain["producers"] if isinstance(plain, dict) else plain
        table.transactions = Transactions.load(plain if isinstance(plain, dict) else None, at)
        for producer_id, epoch, batches, *ended in producers:
            table._producers[producer_id] = _Producer(
                epoch, [Remembered(*b) for b in batches], tuple(ended[0]) if ended else (0, -1)
            )
        return table

    def copy(self) -> ProducerTable:
        table = ProducerTable.load(self.dump(), 0)
        table.transactions = self.transactions.copy()
        return table

    def active(self) -> Iterator[tuple[int, int, int]]:
        """Every producer known: id, epoch, last sequence (-1: none)."""
        for producer_id, producer in self._producers.items():
            yield producer_id, producer.epoch, producer.batches[-1].last_sequence if producer.batches else -1


def _last_sequence(header: BatchHeader) -> int:
    return (header.base_sequence + header.last_offset_delta) % SEQUENCE_MODULUS
