"""The judge: what was acked against what is read back. It knows numbers, partitions and offsets, and nothing of how
they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Acked = Mapping[int, Mapping[int, int | None]]
"""Partition → record number → the offset that its ack named. None: the client was told that the record is kept, not
where (librdkafka's answer to a repeat that the broker no longer knows the offset of).
"""

Read = Mapping[int, Sequence[tuple[int, int | None]]]
"""Partition → (offset, record number), in the order read. None: bytes that nobody sent to this partition."""

EXAMPLES_MAX = 5
"""Enough to begin looking; the counts say the rest."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Counts over all partitions. `unacked_present`: records that are there though their ack never came, which is
    allowed.
    """

    acked: int
    acked_lost: int
    duplicated: int
    reordered: int
    corrupt: int
    unacked_present: int
    examples: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not (self.acked_lost or self.duplicated or self.reordered or self.corrupt)


def judge(acked: Acked, read: Read) -> Judgement:
    """Judge each partition for itself. An acked record that is not at the offset acked is lost, whether it is gone or
    another is there. One that comes twice is duplicated. One that comes after a later one, or at an offset below the
    one before it, is reordered. What was not sent to the partition is corrupt.
    """
    lost = duplicated = reordered = corrupt = unacked = 0
    examples: list[str] = []
    for partition in sorted(set(acked) | set(read)):
        promised = acked.get(partition, {})
        places: dict[int, set[int]] = {}
        newest_number = newest_offset = -1
        for offset, number in read.get(partition, ()):
            if number is None:
                corrupt += 1
                examples.append(f"partition {partition}: what is at {offset} was not sent there")
            elif number in places:
                duplicated += 1
                examples.append(f"partition {partition}: record {number} comes again at {offset}")
            elif number < newest_number:
                reordered += 1
                examples.append(f"partition {partition}: record {number} comes after {newest_number}, at {offset}")
            elif offset <= newest_offset:
                reordered += 1
                examples.append(f"partition {partition}: offset {offset} comes after {newest_offset}")
            if number is not None:
                places.setdefault(number, set()).add(offset)
                newest_number = max(newest_number, number)
            newest_offset = max(newest_offset, offset)
        for number, acked_at in promised.items():
            found_at = places.get(number)
            if found_at is None or (acked_at is not None and acked_at not in found_at):
                lost += 1
                where = f"it is at {min(found_at)}" if found_at else "it is nowhere"
                promise = "" if acked_at is None else f" at {acked_at}"
                examples.append(f"partition {partition}: record {number} was acked{promise}, and {where}")
        unacked += len(set(places) - set(promised))
    total = sum(len(numbers) for numbers in acked.values())
    return Judgement(total, lost, duplicated, reordered, corrupt, unacked, tuple(examples[:EXAMPLES_MAX]))
