"""What the group commit (`commit.py`) has under way: appends, and the blocks that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataplane.wal.base import Done, WalRecord


class Append(NamedTuple):
    """One record, its bytes in a block, and who is told of its end."""

    record: WalRecord
    size: int
    done: Done


@dataclass(slots=True)
class Flight:
    """A block under way. `durable`: names of the sides that have it. `staging`: the buffer to be used again once all
    `writing` sides have it; never if one of them failed, for its write may still be under way. `begun_ms`: by the
    monotonic clock."""

    number: int
    data: memoryview
    appends: Sequence[Append]
    queued_bytes: int
    staging: memoryview | None
    begun_ms: float
    writing: int = 0
    durable: set[str] = field(default_factory=set)
