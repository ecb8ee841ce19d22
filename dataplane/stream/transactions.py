"""A stream's transactions as its owner knows them: which are open, which were aborted, and so what a reader of
committed records alone may see.

    producer 7:  data ── data ───────── abort marker          aborted: (7, first, marker)
    producer 8:         data ── data ─────────── data …       open since: first
                        ▲ last stable offset: nothing from here on is decided

The state is a fold of the batches' headers and of the markers, and travels with the producers' (hand-over, objects'
parts). Aborted transactions may be many, so that each part of an object tells only those whose marker came since the
part before; an owner keeps the newest in memory, and a reader of old records finds the others in the objects
(`aborted_in_objects`).

A marker carries the *round* of its transaction: the how-manieth of its transactional id. A marker sent again is known
by it, however late it comes, and so is a batch that would open a transaction which is over (KIP-890 bumps the
producer's epoch for that, which only the newest clients take part in).
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from dataplane.ledger.state import Extent
from dataplane.stream.batch import CONTROL, TRANSACTIONAL, Buffer
from dataplane.stream.encode import decode_batch, encode_batch
from providers.base.errors import Corrupt, Full, Invalid, NotFound, Unavailable

OPEN_MAX = 5_000
"""Transactions open at the same time a partition; another waits for one of them to end."""
ABORTED_KEPT = 1_000
"""Aborted transactions kept in memory once objects tell them too."""
ABORTED_ONLY_HERE_MAX = 10_000
"""Aborted transactions that no object tells yet: they travel with a move. With more, new ones wait for an upload."""
VANISHED_MAX = 8
"""Objects that may vanish under one read: each time the ledger has changed."""
ALLOWED_MAX = 5_000
"""Transactions that the coordinator has vouched for and whose first batch has not come."""

_KEY = struct.Struct(">hh")
_VALUE = struct.Struct(">hiq")
_ABORT, _COMMIT = 0, 1


class InvalidTransaction(Invalid):
    """A batch of a transaction that is not open, or not any more."""


class Marker(NamedTuple):
    """The end of a transaction. `round` and `coordinator_epoch`: whose decision, and which."""

    commit: bool
    coordinator_epoch: int
    round: int


class Aborted(NamedTuple):
    """An aborted transaction: its producer, its first offset here, and its marker's offset."""

    producer_id: int
    first: int
    last: int


def encode_marker(producer_id: int, producer_epoch: int, marker: Marker, timestamp_ms: int) -> bytes:
    """The control batch that ends a transaction. Key and value are Kafka's (version 0), the round follows the value,
    where Kafka's readers do not look.
    """
    key = _KEY.pack(0, _COMMIT if marker.commit else _ABORT)
    value = _VALUE.pack(0, marker.coordinator_epoch, marker.round)
    return encode_batch(
        [(key, value)],
        timestamp_ms,
        attributes=CONTROL | TRANSACTIONAL,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
    )


def parse_marker(batch: Buffer) -> Marker:
    """The marker in a control batch.

    Raises:
        Corrupt: it is not one of ours.
    """
    try:
        [(_, (key, value))] = decode_batch(memoryview(batch))
        _, kind = _KEY.unpack(key)
        _, coordinator_epoch, number = _VALUE.unpack(value or b"")
    except (struct.error, ValueError) as error:
        raise Corrupt("a control batch that is no transaction marker") from error
    return Marker(kind == _COMMIT, coordinator_epoch, number)


class Transactions:
    """See the module. One a producer table, and at the same offset."""

    def __init__(self, since: int = 0) -> None:
        self._open: dict[int, tuple[int, int]] = {}  # producer → first offset, epoch; in the order of first offsets
        self._aborted: list[Aborted] = []  # by marker's offset
        self._since = since  # all with a marker from here on are in `_aborted`
        self._told = since  # objects tell those with a marker below
        self._allowed: dict[int, tuple[int, int]] = {}  # producer → epoch, round

    # ── admission ───────────────────────────────────────────────────────────────────────────────────────────────────

    def is_open(self, producer_id: int, epoch: int) -> bool:
        """This producer epoch has a transaction open here."""
        known = self._open.get(producer_id)
        return known is not None and known[1] == epoch

    def allow(self, producer_id: int, epoch: int, number: int) -> None:
        """The coordinator says that this is the producer's transaction now, and that this partition is in it."""
        self._allowed.pop(producer_id, None)
        self._allowed[producer_id] = (epoch, number)
        if len(self._allowed) > ALLOWED_MAX:
            del self._allowed[next(iter(self._allowed))]

    def allowed(self, producer_id: int, epoch: int, ended_round: int) -> bool:
        """The coordinator has vouched for a transaction of this producer epoch, and it is not over here."""
        known = self._allowed.get(producer_id)
        return known is not None and known[0] == epoch and known[1] > ended_round

    def check(self, producer_id: int, epoch: int, transactional: bool, ended_round: int) -> None:
        """Whether a producer's batch may come now. `ended_round`: of the last marker of this producer here.

        Raises:
            InvalidTransaction: no transaction of it is open, and none was allowed; or it has one open and this batch is
                outside of it.
            Full: too many are open, or were aborted since the last upload.
        """
        if not transactional:
            if producer_id in self._open:
                raise InvalidTransaction(f"producer {producer_id} sent a batch outside of its open transaction")
            return
        if self.is_open(producer_id, epoch):
            return
        if not self.allowed(producer_id, epoch, ended_round):
            raise InvalidTransaction(f"producer {producer_id} epoch {epoch} has no transaction with this partition")
        if len(self._open) >= OPEN_MAX:
            raise Full(f"{OPEN_MAX} transactions are open on this partition")
        if (
            len(self._aborted) + len(self._open) >= ABORTED_ONLY_HERE_MAX
            and self._only_here() + len(self._open) >= ABORTED_ONLY_HERE_MAX
        ):
            raise Full("many transactions were aborted since the last upload")

    # ── the fold ────────────────────────────────────────────────────────────────────────────────────────────────────

    def goes_on(self, producer_id: int, epoch: int, base_offset: int) -> None:
        """A batch of a transaction."""
        known = self._open.get(producer_id)
        if known is None:
            self._open[producer_id] = (base_offset, epoch)
            self._allowed.pop(producer_id, None)
        elif known[1] != epoch:
            self._open[producer_id] = (known[0], epoch)

    def ended(self, producer_id: int, commit: bool, offset: int) -> None:
        """A marker at `offset`."""
        known = self._open.pop(producer_id, None)
        self._allowed.pop(producer_id, None)
        if known is not None and not commit:
            self._aborted.append(Aborted(producer_id, known[0], offset))

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def first_open(self) -> int | None:
        """First offset of the oldest open transaction, None when none is open."""
        return next(iter(self._open.values()))[0] if self._open else None

    def started(self, producer_id: int) -> int | None:
        """First offset of the producer's open transaction, None when it has none."""
        known = self._open.get(producer_id)
        return known[0] if known is not None else None

    @property
    def since(self) -> int:
        """Aborted transactions with a marker from here on are all known; of others, ask the objects."""
        return self._since

    def aborted(self, start: int, end: int) -> list[Aborted]:
        """Of those known: what was aborted of the offsets [start, end)."""
        if not self._aborted or self._aborted[-1].last < start:
            return []
        return [a for a in self._aborted if a.last >= start and a.first < end]

    # ── memory and travel ───────────────────────────────────────────────────────────────────────────────────────────

    def told(self, end: int) -> None:
        """An object's part that ends at `end` tells, with the parts before it, every marker below."""
        self._told = max(self._told, end)
        surplus = 0
        while len(self._aborted) - surplus > ABORTED_KEPT and self._aborted[surplus].last < self._told:
            surplus += 1
        if surplus:
            self._since = self._aborted[surplus - 1].last + 1
            del self._aborted[:surplus]

    def _only_here(self) -> int:
        return sum(1 for a in self._aborted if a.last >= self._told)

    def also(self, told: Any) -> None:
        """Take in what objects' parts (`joined`) tell, so that the next dump tells it too."""
        if isinstance(told, dict):
            aborted = {Aborted(*one) for one in told["aborted"]} | set(self._aborted)
            self._aborted = sorted(aborted, key=lambda a: a.last)
            self._told = min(self._told, told["since"])

    def dump(self) -> dict[str, Any] | None:
        """What no object tells yet, as JSON values; None when there is nothing to tell."""
        aborted = [list(a) for a in self._aborted if a.last >= self._told]
        if not aborted and not self._open:
            return None
        opened = [[producer, first, epoch] for producer, (first, epoch) in self._open.items()]
        return {"open": opened, "aborted": aborted, "since": self._told}

    @staticmethod
    def load(plain: dict[str, Any] | None, at: int) -> Transactions:
        """The inverse of `dump`, which was taken at offset `at`."""
        if plain is None:
            return Transactions(at)
        loaded = Transactions(min(int(plain["since"]), at))
        loaded._open = {producer: (first, epoch) for producer, first, epoch in plain["open"]}
        loaded._aborted = [Aborted(*one) for one in plain["aborted"]]
        return loaded

    def copy(self) -> Transactions:
        other = Transactions(self._since)
        other._told, other._open, other._aborted = self._told, dict(self._open), list(self._aborted)
        return other


Snapshot = Callable[[Extent], Awaitable[Any]]
"""Reads the producers' state at an extent's end, None where it is not told."""


async def aborted_in_objects(
    extents: Callable[[], Sequence[Extent]], start: int, end: int, snapshot: Snapshot, since: int
) -> list[Aborted]:
    """What was aborted of the offsets [start, end), as the objects' parts tell, up to markers at offset `since` (from
    there on memory knows). `extents`: as they are at the moment of the call; one may vanish, merged into another.

    Raises:
        Corrupt, NotFound, Unavailable: an object cannot be read.
    """
    for _ in range(VANISHED_MAX):
        before = list(extents())
        try:
            return await _aborted_told(before, start, end, snapshot, since)
        except NotFound:
            if list(extents()) == before:
                raise
    raise Unavailable("objects vanish under one read again and again")


async def _aborted_told(
    extents: Sequence[Extent], start: int, end: int, snapshot: Snapshot, since: int
) -> list[Aborted]:
    found: dict[Aborted, None] = {}
    for extent in extents:
        if extent.end <= start:
            continue
        told = await snapshot(extent)
        if told is None:
            continue  # a later part tells what came in this one
        transactions = told if isinstance(told, dict) else {"open": (), "aborted": ()}
        for one in transactions["aborted"]:
            aborted = Aborted(*one)
            if aborted.last >= start and aborted.first < end:
                found[aborted] = None
        stable = min((first for _, first, _ in transactions["open"]), default=extent.end)
        if stable >= end or extent.end >= since:
            break  # whatever began below `end` has its marker below this part's end, or memory knows it
    return list(found)


def joined(snapshots: Sequence[Any]) -> Any:
    """The producers' state at the end of several consecutive parts that become one: the last one's, with the aborted
    transactions of all. `snapshots` in offset order, without those of parts that tell nothing.
    """
    if not snapshots:
        return None
    aborted = {tuple(a): None for s in snapshots if isinstance(s, dict) for a in s["aborted"]}
    last = snapshots[-1]
    if not aborted:
        return last
    since = min(s["since"] for s in snapshots if isinstance(s, dict))
    told = last if isinstance(last, dict) else {"producers": last, "open": []}
    return {**told, "aborted": [list(a) for a in sorted(aborted, key=lambda a: a[2])], "since": since}
