"""Compaction by key (`cleanup.policy=compact`): which records of a topic stay. Kafka's rules, over batches.

Of each key the newest record stays, and offsets stay as they are. A tombstone stays for `delete.retention.ms` after the
first cleaning that has met it, so that whoever reads from the start sees that its key is gone; batches that may not be
looked into (`records.opaque`, or too large) stay whole, and then no tombstone behind them ever goes: they may hold its
key. Records without a key stay: Kafka refuses them when they are produced, and drops them here; here nobody has looked
before.

Only decided transactions are cleaned. Records of committed ones are as others; those of aborted ones supersede nothing,
and go. Markers stay: as long as anybody is told of an aborted transaction, its marker must say where it ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from dataplane.stream.batch import BatchHeader, Buffer
from dataplane.stream.records import CONTROL, DELETE_HORIZON, TRANSACTIONAL, Record, inflate, rebuilt, records
from dataplane.stream.transactions import Aborted

COMPACT, DELETE = "compact", "delete"
KEYS_MAX = 200_000
"""Keys remembered at once, at about 150 bytes each. With more, a cleaning ends where the memory did, and the next one
goes on there."""
KEY_BYTES = 16
SLICE = 500
"""Records looked at, in a millisecond or two, before others have their turn."""

Rest = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What a compacted topic wants."""

    dirty_ratio_min: float
    """A cleaning begins when this part of the log, in bytes, is not clean."""
    lag_ms: int
    """Younger records stay as they are."""
    tombstones_ms: int
    """How long a tombstone stays after it was first met."""


def policies(configs: Mapping[str, str]) -> set[str]:
    """The policies of a topic; `delete` unless it says otherwise."""
    return set(configs.get("cleanup.policy", DELETE).replace(" ", "").split(","))


def cleaning_of(configs: Mapping[str, str]) -> Cleaning | None:
    """From a topic's configs, which were checked when they were set; None: it is not compacted."""
    if COMPACT not in policies(configs):
        return None
    return Cleaning(
        float(configs.get("min.cleanable.dirty.ratio", "0.5")),
        int(configs.get("min.compaction.lag.ms", "0")),
        int(configs.get("delete.retention.ms", "86400000")),
    )


class Outcomes:
    """Which batches belong to aborted transactions. Asked only of decided ones: what is not aborted is committed."""

    def __init__(self, aborted: Iterable[Aborted] = ()) -> None:
        self._of: dict[int, list[Aborted]] = {}
        for one in sorted(aborted, key=lambda a: a.first):
            self._of.setdefault(one.producer_id, []).append(one)

    def aborted(self, header: BatchHeader) -> bool:
        """Whether its transaction was aborted."""
        if not header.attributes & TRANSACTIONAL or not (found := self._of.get(header.producer_id)):
            return False
        # A producer's transactions follow each other.
        at = bisect_right(found, header.base_offset, key=lambda a: a.first) - 1
        return at >= 0 and header.base_offset < found[at].last


class KeyMap:
    """The newest offset of each key in a part of a log, of records that were committed."""

    def __init__(self, outcomes: Outcomes, keys_max: int = KEYS_MAX) -> None:
        self.outcomes = outcomes
        self._keys_max = keys_max
        self._newest: dict[bytes, int] = {}

    @property
    def full(self) -> bool:
        """No further batch should be noted: those noted are whole."""
        return len(self._newest) >= self._keys_max

    async def note(self, header: BatchHeader, batch: Buffer, rest: Rest) -> None:
        """Take in a batch. Batches come in the order of their offsets.

        Raises:
            Corrupt: its records cannot be read.
        """
        if header.attributes & CONTROL or self.outcomes.aborted(header):
            return
        body = await inflate(batch, header)
        if body is None:
            return
        for i, record in enumerate(records(body, header), 1):
            if record.key is not None:
                self._newest[_digest(record.key)] = record.offset
            if i % SLICE == 0:
                await rest()

    def superseded(self, record: Record) -> bool:
        """Whether a newer record of the same key was noted."""
        return record.key is not None and self._newest.get(_digest(record.key), -1) > record.offset


class Sweep:
    """One pass over the batches of a log, oldest first, below offset `end`, up to which `newest` was filled."""

    def __init__(self, newest: KeyMap, end: int, now_ms: int, tombstones_ms: int, rest: Rest) -> None:
        self._newest = newest
        self._end = end
        self._now_ms = now_ms
        self._tombstones_ms = tombstones_ms
        self._rest = rest
        self._opaque_before = False

    async def batch(self, header: BatchHeader, batch: Buffer, *, last: bool) -> Buffer | None:
        """What becomes of a batch: itself, the same object, if nothing does; None: nothing of it stays. The `last` one
        of an object stays, empty if need be: it says how far the log reaches.

        Raises:
            Corrupt: its records cannot be read.
        """
        if header.base_offset + header.last_offset_delta >= self._end:
            return batch
        if header.attributes & CONTROL or not header.record_count:
            return batch if last or header.attributes & CONTROL else None
        if self._newest.outcomes.aborted(header):
            return await rebuilt(header, [], None) if last else None
        body = await inflate(batch, header)
        if body is None:
            self._opaque_before = True
            return batch
        horizon_ms = header.base_timestamp if header.attributes & DELETE_HORIZON else None
        may_go = horizon_ms is not None and horizon_ms <= self._now_ms and not self._opaque_before
        kept: list[Record] = []
        tombstones = False
        for i, record in enumerate(records(body, header), 1):
            if i % SLICE == 0:
                await self._rest()
            if self._newest.superseded(record):
                continue
            if record.tombstone and record.key is not None:
                if may_go:
                    continue
                tombstones = True
            kept.append(record)
        if not kept and not last:
            return None
        begins = self._now_ms + self._tombstones_ms if tombstones and horizon_ms is None else None
        if len(kept) == header.record_count and begins is None:
            return batch
        return await rebuilt(header, kept, begins)


def _digest(key: bytes) -> bytes:
    return blake2b(key, digest_size=KEY_BYTES).digest()
