"""The log itself: append, follow, restart from a snapshot, under the rules that keep objects created with put-if-absent
a log (design §4).

    create seq ──► created, or "exists"/unknown: read back, compare ids ──► read the segment's `collected` marker
                       absent: conclude ◄──┴──► present: newest snapshot, which knows each incarnation's last entry

A name is only ever filled, never skipped: an append whose outcome stays unknown is kept, and resolved before anything
else is appended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from dataplane.ledger.entry import ENTRY_BYTES_MAX, Command, Entry, StateMachine, Writer
from dataplane.ledger.names import SEGMENT_ENTRIES, entry_key, marker_key, segment_of, snapshot_key, snapshot_prefix
from dataplane.ledger.settings import LedgerSettings
from dataplane.ledger.waiting import Appended, Unsent, Waiting
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import AlreadyExists, Corrupt, Full, Internal, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore

S = TypeVar("S")

SEGMENTS_LOOKED_BACK = 8
"""Segments that a collector looks at again, below the newest that it may collect: for one that died half-way."""


class Ledger(Generic[S]):
    """One incarnation's view of a log, and its way to append. Not for concurrent use from several event loops."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        machine: StateMachine[S],
        writer: Writer,
        *,
        clock: Clock,
        rng: Rng,
        settings: LedgerSettings | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._machine = machine
        self._writer = writer
        self._clock = clock
        self._rng = rng
        self._settings = settings or LedgerSettings()
        self.state: S = machine.initial()
        self.seq = 0
        """Last entry folded in."""
        self.snapshot_seq = 0
        """Newest snapshot known here; 0: none."""
        self.last_read_ms = clock.monotonic_ms()
        """When the log was last read successfully, an empty poll included."""
        self._last_by: dict[str, tuple[int, str, tuple[str | None, ...]]] = {}
        self._unresolved: Entry | None = None
        self._empty_polls = 0
        self._subscribers: list[Callable[[Entry, Sequence[str | None]], None]] = []
        self._exclusive = asyncio.Lock()
        self._waiting: list[Waiting] = []
        self._appender: asyncio.Task[None] | None = None

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Load the newest snapshot and fold what comes after it.

        Raises:
            Unavailable: the store does not answer. Corrupt, Internal: the log cannot be understood; nothing is skipped.
        """
        async with self._exclusive:
            await self._restart()
            await self._catch_up()

    async def poll(self) -> int:
        """Fold in what is new; returns how many entries that were.

        Raises:
            As `open`.
        """
        async with self._exclusive:
            return await self._catch_up()

    def subscribe(self, callback: Callable[[Entry, Sequence[str | None]], None]) -> None:
        """`callback(entry, outcomes)` after each folded entry. Entries that a restart from a snapshot jumped over are
        not told.
        """
        self._subscribers.append(callback)

    async def _catch_up(self) -> int:
        folded = 0
        ahead = 1
        batch = await self._read(self.seq + 1, ahead)
        while True:
            if not batch:
                self._empty_polls += 1
                if self._empty_polls >= self._settings.empty_polls_per_marker:
                    self._empty_polls = 0
                    if await self._collected(self.seq + 1):
                        await self._restart()
                        batch = await self._read(self.seq + 1, ahead)
                        continue
                self.last_read_ms = self._clock.monotonic_ms()
                return folded
            # Every name asked for is a request to pay: as many ahead as there have been, no more.
            ahead = min(2 * ahead, self._settings.read_ahead)
            # Rule 1: the marker is read after the entries, and before anything is concluded from them. What comes
            # behind them is read meanwhile.
            collected, behind = await asyncio.gather(
                self._collected(batch[0].seq, batch[-1].seq),
                self._read(batch[-1].seq + 1, ahead),
                return_exceptions=True,
            )
            if isinstance(collected, BaseException):
                raise collected
            if collected:
                await self._restart()
                batch = await self._read(self.seq + 1, ahead)
                continue
            for entry in batch:
                self._fold(entry)
            folded += len(batch)
            self._empty_polls = 0
            if isinstance(behind, BaseException):
                raise behind
            batch = behind

    async def _read(self, first: int, count: int) -> list[Entry]:
        """Entries from `first`, consecutive, up to `count`."""
        found = await asyncio.gather(
            *(self._store.get(entry_key(self._prefix, seq)) for seq in range(first, first + count)),
            return_exceptions=True,
        )
        entries: list[Entry] = []
        for seq, data in enumerate(found, first):
            if isinstance(data, NotFound):
                break
            if isinstance(data, BaseException):
                raise data
            entry = Entry.decode(data)
            if entry.seq != seq:
                raise Corrupt(f"ledger entry {seq} of {self._prefix} says that it is {entry.seq}")
            entries.append(entry)
        return entries

    async def _collected(self, *seqs: int) -> bool:
        """Whether anything may have been deleted in the segments of these entries."""
        for segment in sorted({segment_of(seq) for seq in seqs}):
            try:
                # Not head: where that finds nothing, stores ask once more whether the bucket is there at all.
                await self._store.get(marker_key(self._prefix, segment))
                return True
            except NotFound:
                continue
        return False

    def _fold(self, entry: Entry) -> tuple[str | None, ...]:
        if entry.level > self._machine.level_max:
            raise Internal(
                f"ledger entry {entry.seq} has feature level {entry.level}; {self._machine.level_max} is known here",
                hint="upgrade this process; it must not skip what others have decided",
            )
        outcomes = tuple(self._machine.apply(self.state, entry))
        self.seq = entry.seq
        self._last_by.pop(entry.writer.incarnation, None)
        self._last_by[entry.writer.incarnation] = (entry.seq, entry.id, outcomes)
        if len(self._last_by) > self._settings.writers_kept_max:
            del self._last_by[next(iter(self._last_by))]
        for callback in self._subscribers:
            callback(entry, outcomes)
        return outcomes

    # ── snapshots ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _restart(self) -> None:
        """Begin again from the newest snapshot. The one place that lists; a stale list gives an older snapshot, whose
        segment's marker sends the reader here again.
        """
        for _ in range(self._settings.races_max):
            seqs = await self._snapshots()
            if not seqs:
                if await self._collected(1):
                    continue  # there has been a snapshot before anything was collected: the list is stale
                self.state, self.seq, self.snapshot_seq, self._last_by = self._machine.initial(), 0, 0, {}
                return
            newest = seqs[-1]
            try:
                data = await self._store.get(snapshot_key(self._prefix, newest))
            except NotFound:
                continue
            if await self._collected(newest + 1):
                await self._clock.sleep_ms(self._pause_ms(0))
                continue
            plain = _decode_snapshot(data, newest)
            self.state = self._machine.load(plain["state"])
            self.seq = self.snapshot_seq = newest
            self._last_by = {w: (s, i, tuple(o)) for w, s, i, o in plain["writers"]}
            return
        raise Unavailable(f"no usable snapshot of {self._prefix} could be read")

    async def _snapshots(self) -> list[int]:
        prefix = snapshot_prefix(self._prefix)
        found: list[int] = []
        after = ""
        while True:
            page = await self._store.list(prefix, start_after=after, limit=1_000)
            found += [int(info.key[len(prefix) :]) for info in page]
            if len(page) < 1_000:
                return sorted(found)
            after = page[-1].key

    async def snapshot(self) -> int:
        """Store the state as folded now; returns its seq. Anyone may; one is enough. Reads and appends go on meanwhile.

        Raises:
            Unavailable: not stored, or not known to be.
        """
        seq = self.seq
        if seq == self.snapshot_seq:
            return seq
        body = json.dumps(
            {
                "seq": seq,
                "level": self._machine.level_max,
                "state": self._machine.dump(self.state),
                "writers": [[w, s, i, list(o)] for w, (s, i, o) in self._last_by.items()],
            },
            separators=(",", ":"),
        ).encode()
        try:
            await self._store.put(snapshot_key(self._prefix, seq), body, if_absent=True)
        except AlreadyExists:
            pass  # the fold is the same everywhere: whoever stored it stored this
        self.snapshot_seq = max(self.snapshot_seq, seq)
        return seq

    async def collect(self) -> int:
        """Delete whole segments that lie behind the two newest snapshots, markers first; returns how many entries were
        deleted. Reads and appends go on meanwhile.

        Only whole segments: a marker makes everything in its segment untrustworthy, and the newest snapshot's next
        entry must not be.
        """
        seqs = await self._snapshots()
        if len(seqs) < 2:
            return 0
        deleted = 0
        last = segment_of(seqs[-2] + 1) - 1
        for segment in range(max(0, last - SEGMENTS_LOOKED_BACK), last + 1):
            first = segment * SEGMENT_ENTRIES + 1
            try:
                await self._store.head(entry_key(self._prefix, first))
            except NotFound:
                continue
            try:
                await self._store.put(marker_key(self._prefix, segment), b"", if_absent=True)
            except AlreadyExists:
                pass
            keys = [entry_key(self._prefix, seq) for seq in range(first, first + SEGMENT_ENTRIES)]
            await self._store.delete(keys[::-1])  # the first name last: it says that the segment is not finished
            deleted += len(keys)
        if len(seqs) > 2:
            await self._store.delete([snapshot_key(self._prefix, seq) for seq in seqs[:-2]])
        return deleted

    # ── appending ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(
        self, decide: Callable[[S], Sequence[Command] | None], *, term: int = 0, unsent_ms_max: float | None = None
    ) -> Appended | None:
        """Append what `decide` wants of the newest state; it is asked again after each lost race, and None (or nothing)
        means that there is nothing to do.

        Returns once this view has folded the entry, with what the fold made of each command. Concurrent calls share an
        entry: each decides from the state before it, and the fold settles conflicts between them. `unsent_ms_max`: for
        how long it may be that no entry with it was sent; then it is withdrawn.

        Raises:
            Unavailable: nothing was appended. OutcomeUnknown: it may be, or may be yet; this incarnation resolves it
            before it appends anything else.
        """
        if len(self._waiting) >= self._settings.appends_queued_max:
            raise Unavailable("too many appends are waiting for the ledger")
        waiting = Waiting(decide, term, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._appender is None or self._appender.done():
            self._appender = asyncio.create_task(self._append_all())
        return await waiting.outcome(self._clock, unsent_ms_max)

    async def _append_all(self) -> None:
        while self._waiting:
            # One term an entry: the fold compares it.
            term = self._waiting[0].term
            group = [w for w in self._waiting if w.term == term]
            self._waiting = [w for w in self._waiting if w.term != term]
            try:
                async with self._exclusive:
                    results = await self._append_group(group, term)
            except BaseException as error:
                for waiting in group:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for waiting, result in zip(group, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)

    async def _append_group(self, group: Sequence[Waiting], term: int) -> list[Appended | None]:
        if self._unresolved is not None:
            try:
                await self._settle(self._unresolved)
            except OutcomeUnknown as error:
                raise Unavailable(f"nothing was sent, for an earlier {error.message}", hint=error.hint) from error
        deadline = self._clock.monotonic_ms() + self._settings.resolve_timeout_ms
        for race in range(self._settings.races_max):
            await self._catch_up()
            wanted = [self._wanted(w) for w in group]
            commands = tuple(c for cs in wanted for c in cs)
            if not commands:
                return [None] * len(group)
            entry = Entry(self.seq + 1, self._rng.token(), self._writer, term, commands)
            for waiting in group:
                waiting.sent()
            try:
                outcomes = await self._settle(entry)
            except Unsent:
                if self._clock.monotonic_ms() > deadline:
                    raise
                outcomes = None
            if outcomes is None:
                for waiting in group:
                    waiting.unsent()
                if race > 2:
                    await self._clock.sleep_ms(self._pause_ms(min(race, 6)))
                continue
            results: list[Appended | None] = []
            at = 0
            for commands_of_one in wanted:
                mine = outcomes[at : at + len(commands_of_one)]
                at += len(commands_of_one)
                results.append(Appended(entry.seq, entry.id, mine) if commands_of_one else None)
            return results
        raise Unavailable(f"the ledger {self._prefix} is too busy: {self._settings.races_max} races were lost")

    def _wanted(self, waiting: Waiting) -> list[Command]:
        """What one caller wants now. A decision that raises fails its own caller, not the others that share the
        entry.
        """
        if waiting.future.done():
            return []
        try:
            return list(waiting.decide(self.state) or ())
        except Exception as error:
            waiting.future.set_exception(error)
            return []

    async def _settle(self, entry: Entry) -> tuple[str | None, ...] | None:
        """Get `entry` into its place or learn that it never will be there: its outcomes, or None when another has the
        name.

        Raises:
            OutcomeUnknown: not learnt in time; kept for the next call.
            Unsent: the store refused the first attempt of all; it is no entry.
        """
        data = entry.encode()
        if len(data) > ENTRY_BYTES_MAX:
            raise Invalid(f"a ledger entry of {len(data)} bytes is larger than {ENTRY_BYTES_MAX}")
        first = self._unresolved is not entry
        self._unresolved = entry
        deadline = self._clock.monotonic_ms() + self._settings.resolve_timeout_ms
        attempt = 0
        while True:
            try:
                outcome = await self._try(entry, data)
                self._unresolved = None
                return outcome
            except (Unavailable, Full) as error:  # a full bucket is mended by others, and is no decision either
                if first and isinstance(error, Unsent):
                    self._unresolved = None
                    raise
                first = False
                if self._clock.monotonic_ms() > deadline:
                    raise OutcomeUnknown(
                        f"entry {entry.seq} of {self._prefix} was sent and not answered: {error}", id=entry.id
                    ) from error
            await self._clock.sleep_ms(self._pause_ms(attempt))
            attempt += 1

    async def _try(self, entry: Entry, data: bytes) -> tuple[str | None, ...] | None:
        """One attempt to create the name and learn who has it. Raises Unavailable when it did not get so far."""
        key = entry_key(self._prefix, entry.seq)
        found = data
        try:
            await self._store.put(key, data, if_absent=True)
        except AlreadyExists:
            # Also the answer to our own second attempt: only the bytes say whose it is. Collected meanwhile: the marker
            # says so below.
            try:
                found = await self._store.get(key)
            except NotFound:
                found = b""
        except OutcomeUnknown:
            raise
        except Unavailable as error:
            raise Unsent(error.message, hint=error.hint) from error
        # Rule 1: before any conclusion, the marker.
        if await self._collected(entry.seq):
            await self._restart()
            known = self._last_by.get(self._writer.incarnation)
            # Rule 2: the snapshot knows this incarnation's last entry; with one in flight that is an answer.
            return known[2] if known is not None and known[1] == entry.id else None
        if not found:
            raise OutcomeUnknown(f"{key} exists and cannot be read")
        if found != data:
            if Entry.decode(found).id == entry.id:
                raise Internal("an entry's id was used twice", id=entry.id)
            return None
        if self.seq >= entry.seq:
            known = self._last_by.get(self._writer.incarnation)
            return known[2] if known is not None and known[1] == entry.id else None
        while self.seq < entry.seq - 1:
            [between] = await self._read(self.seq + 1, 1)
            self._fold(between)
        return self._fold(entry)

    def _pause_ms(self, attempt: int) -> float:
        settings = self._settings
        return backoff_ms(self._rng, attempt, first_ms=settings.retry_first_ms, max_ms=settings.retry_max_ms)

    async def close(self) -> None:
        """Let an append under way end. The store is shared, and stays open."""
        if self._appender is not None:
            await asyncio.gather(self._appender, return_exceptions=True)


def _decode_snapshot(data: bytes, seq: int) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(data)
        if plain["seq"] != seq:
            raise Corrupt(f"snapshot {seq} says that it is {plain['seq']}")
        return plain
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"snapshot {seq} is damaged: {error}") from error
