"""Retention: from which offset on a stream's records stay. A pure decision over its data blocks in object storage.

As Kafka has it: by time, blocks go whose newest record is older than `retention.ms`; by size, the oldest blocks go as
long as what is left holds at least `retention.bytes`. Only what is in object storage may go. Records without a
timestamp have no age, and stay (Kafka takes the file's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataplane.stream.cleaning import DELETE, policies
from dataplane.stream.objects import IndexEntry

FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Retention:
    """A topic's bounds; None: none."""

    age_ms: int | None
    size_bytes: int | None

    @property
    def bounded(self) -> bool:
        return self.age_ms is not None or self.size_bytes is not None


def retention_of(configs: Mapping[str, str]) -> Retention:
    """From a topic's configs, which were checked when they were set. Without any, records stay for ever: Kafka's own
    default of a week would delete what nobody has asked to be deleted. So they do in a topic that is only compacted."""
    if DELETE not in policies(configs):
        return Retention(None, None)
    age, size = int(configs.get("retention.ms", FOR_EVER)), int(configs.get("retention.bytes", FOR_EVER))
    return Retention(None if age == FOR_EVER else age, None if size == FOR_EVER else size)


def start_by_age(blocks: Sequence[IndexEntry], start: int, age_ms: int, now_ms: int) -> int:
    """The new start: behind the leading blocks that are too old. `blocks` in offset order, from `start` on."""
    for block in blocks:
        if block.max_timestamp < 0 or block.max_timestamp >= now_ms - age_ms:
            break
        start = max(start, block.end)
    return start


def start_by_size(blocks: Sequence[IndexEntry], start: int, size_bytes: int, held_bytes: int) -> int:
    """The new start: behind the leading blocks without which `size_bytes` are still held. `held_bytes`: all that the
    stream holds from the first of `blocks` on, wherever it is."""
    for block in blocks:
        if held_bytes - block.size < size_bytes:
            break
        held_bytes -= block.size
        start = max(start, block.end)
    return start
