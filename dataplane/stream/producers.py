"""Idempotent producers: each batch of a producer id is taken once, and in sequence, whatever is sent again.

The rules are Kafka's (KIP-98, KIP-360): within a producer epoch sequences follow each other; the last five batches are
remembered, and a repeat of one of them is answered with the offsets that it got.

Stricter than Kafka in one place: a producer of whom nothing is known begins with sequence 0. Kafka takes any; but then,
of two requests under way to a partition that is just being opened, the first may be refused (not leader yet) and the
second taken. The first, sent again, is out of order for ever, and librdkafka takes "out of order" below what was acked
for a repeat that succeeded: its records are lost, and nobody is told (seen in a drill).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataplane.stream.batch import BatchHeader
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


class ProducerTable:
    """What is known of a partition's producers at one offset."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def __len__(self) -> int:
        """How many producers are known."""
        return len(self._producers)

    def check(self, header: BatchHeader) -> Remembered | None:
        """The earlier batch that this one repeats; None when it is new and in sequence, or not idempotent.

        Raises:
            OutOfOrderSequence, StaleProducerEpoch: nothing was recorded.
        """
        if header.producer_id < 0:
            return None
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
        expected = (known.batches[-1].last_sequence + 1) % SEQUENCE_MODULUS
        if first != expected:
            raise OutOfOrderSequence(f"producer {header.producer_id} sent sequence {first} where {expected} follows")
        return None

    def record(self, header: BatchHeader, base_offset: int) -> None:
        """Remember a batch that was given `base_offset`."""
        if header.producer_id < 0:
            return
        batch = Remembered(
            header.base_sequence, _last_sequence(header), base_offset, base_offset + header.last_offset_delta
        )
        known = self._producers.pop(header.producer_id, None)
        if known is None or known.epoch != header.producer_epoch:
            known = _Producer(header.producer_epoch, [])
        known.batches = [*known.batches[-BATCHES_REMEMBERED + 1 :], batch]
        # Re-inserted last: the dict's order is by last batch, so that the first is the longest silent.
        self._producers[header.producer_id] = known
        if len(self._producers) > PRODUCERS_MAX:
            del self._producers[next(iter(self._producers))]

    def dump(self, producers_max: int = PRODUCERS_MAX) -> list[Any]:
        """The newest `producers_max` as JSON values: [id, epoch, [[first, last, base, last offset] …]]."""
        newest = list(self._producers.items())[-producers_max:]
        return [
            [i, p.epoch, [[b.first_sequence, b.last_sequence, b.base_offset, b.last_offset] for b in p.batches]]
            for i, p in newest
        ]

    @staticmethod
    def load(plain: Sequence[Any]) -> ProducerTable:
        """The inverse of `dump`."""
        table = ProducerTable()
        for producer_id, epoch, batches in plain:
            table._producers[producer_id] = _Producer(epoch, [Remembered(*b) for b in batches])
        return table

    def copy(self) -> ProducerTable:
        return ProducerTable.load(self.dump())


def _last_sequence(header: BatchHeader) -> int:
    return (header.base_sequence + header.last_offset_delta) % SEQUENCE_MODULUS
