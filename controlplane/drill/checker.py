"""The judge: what was acked against what is read back. It knows numbers, partitions and offsets, and nothing of how
they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Acked = Mapping[int, Mapping[int, int]]
"""Partition → record number → the offset that its ack named."""

Read = Mapping[int, Sequence[tuple[int, int]]]
"""Partition → (offset, record number), in the order read."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Counts over all partitions. `unacked_present`: records that are there though their ack never came, which is
    allowed.
    """

    acked: int
    acked_lost: int
    duplicated: int
    reordered: int
    unacked_present: int
    examples: tuple[str, ...]

    @property
    def clean(self) -> bool:
        return not (self.acked_lost or self.duplicated or self.reordered)


def judge(acked: Acked, read: Read) -> Judgement:
    """Judge each partition for itself: an acked record that is not at the offset acked is lost, one that comes twice is
    duplicated, one that comes after a later one is
    reordered."""
    lost = duplicated = reordered = unacked = 0
    examples: list[str] = []
    for partition in sorted(set(acked) | set(read)):
        promised, found = acked.get(partition, {}), read.get(partition, ())
        at = dict(found)
        for number, offset in promised.items():
            if at.get(offset) != number:
                lost += 1
                examples.append(
                    f"partition {partition}: record {number} was acked at {offset}, where {at.get(offset)} is"
                )
        seen: set[int] = set()
        newest = -1
        for offset, number in found:
            if number in seen:
                duplicated += 1
                examples.append(f"partition {partition}: record {number} comes again at {offset}")
            elif number < newest:
                reordered += 1
                examples.append(f"partition {partition}: record {number} comes after {newest}, at {offset}")
            seen.add(number)
            newest = max(newest, number)
        unacked += len(seen - set(promised))
    total = sum(len(numbers) for numbers in acked.values())
    return Judgement(total, lost, duplicated, reordered, unacked, tuple(examples[:5]))
