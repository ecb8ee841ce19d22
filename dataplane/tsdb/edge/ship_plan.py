"""Which files are sent next, and which of those sent make a batch: functions of values.

Priority, then age; but where a table merges rows, the cloud takes the later file's, and a batch's files have one place
in that order. So of such a table no file is in a batch while an older one that it overlaps in time is on its way, in
the same batch or another: it waits for that one's ack. Files that do not overlap, as those of a clock that goes on,
never wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dataplane.contract.codec import to_json
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema


@dataclass(slots=True, eq=False)
class Pending:
    """A file that the cloud is not known to have."""

    meta: FileMeta
    priority: int
    merges: bool
    """Whether its table merges rows, so that the order of files means something."""
    seen_ms: float
    """When the shipper first saw it, by the monotonic clock."""
    there: bool = False
    """Whether it is in the bucket."""
    unsure: bool = False
    """Whether it may be there: an earlier life may have sent it."""
    batch: int = 0
    """Number of the open batch that it is in."""
    refusals: int = 0
    """Batches with it that were refused without saying which file is at fault: it goes behind the others."""
    not_before_ms: float = 0.0
    """Until then it is in no batch, for it was refused so."""

    @property
    def order(self) -> tuple[int, int, int, str]:
        return (self.refusals, -self.priority, self.meta.sequence, self.meta.file_id)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one batch."""

    files: int
    bytes: int
    described_bytes: int
    """Of what is said of its files and their schemas, as JSON."""


def batch_of(
    pending: Iterable[Pending], limits: Limits, schemas: Mapping[tuple[str, str], TableSchema], now_ms: float
) -> list[Pending]:
    """Files for the next batch, out of all that wait, are on their way or in open batches; empty: none is ready."""
    chosen: list[Pending] = []
    size = described = 0
    with_schema: set[tuple[str, str]] = set()
    for file in sorted(_ready(pending, now_ms), key=lambda file: file.order):
        named = (file.meta.table, file.meta.fingerprint)
        words = len(to_json(file.meta)) + (0 if named in with_schema else len(to_json(schemas[named])))
        over = size + file.meta.size > limits.bytes or described + words > limits.described_bytes
        if len(chosen) >= limits.files or (chosen and over):
            break
        chosen.append(file)
        with_schema.add(named)
        size, described = size + file.meta.size, described + words
    return chosen


def _ready(pending: Iterable[Pending], now_ms: float) -> list[Pending]:
    ready: list[Pending] = []
    merging: dict[str, list[Pending]] = {}
    for file in pending:
        if file.merges:
            merging.setdefault(file.meta.table, []).append(file)
        elif file.there and not file.batch and file.not_before_ms <= now_ms:
            ready.append(file)
    for files in merging.values():
        older = _Times()
        for file in sorted(files, key=lambda file: file.meta.sequence):
            if not file.batch:
                if not file.there or file.not_before_ms > now_ms or older.overlap(file.meta):
                    break  # and those behind it with it: what follows is looked at once this one is on its way
                ready.append(file)
            older.add(file.meta)
    return ready


class _Times:
    """What times files cover. One that is later than all of them, as most are, is compared with none."""

    def __init__(self) -> None:
        self._files: list[FileMeta] = []
        self._last = 0

    def add(self, meta: FileMeta) -> None:
        self._last = max(meta.time_max, self._last) if self._files else meta.time_max
        self._files.append(meta)

    def overlap(self, meta: FileMeta) -> bool:
        if not self._files or meta.time_min > self._last:
            return False
        return any(meta.time_min <= other.time_max and other.time_min <= meta.time_max for other in self._files)


class Fault(StrEnum):
    """What is done about a file that the cloud found at fault."""

    AGAIN = "again"
    """The bucket's object is, not ours: it is sent again under a fresh id."""
    ASIDE = "aside"
    """It is kept, and not sent again."""


def fault(wants_fresh_id: bool, intact: bool, copies: int, copies_max: int) -> Fault:
    """`wants_fresh_id`: the cloud says so; `intact`: the file on the flash is what was written; `copies`: how often
    that was done before."""
    return Fault.AGAIN if wants_fresh_id and intact and copies < copies_max else Fault.ASIDE


def over_bound(aside: Iterable[tuple[str, int]], bytes_max: int) -> list[str]:
    """Of files set aside, oldest first, each with its bytes: those that go, so that the rest is within `bytes_max`."""
    files = list(aside)
    excess = sum(size for _, size in files) - bytes_max
    gone = []
    for file_id, size in files:
        if excess <= 0:
            break
        gone.append(file_id)
        excess -= size
    return gone
