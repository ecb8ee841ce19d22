"""Group commit: queues appends, makes numbered blocks of them, writes each to every side, acks in order.

    append ──► queue ──► block n (at most `window` unacked) ──► sides ──► durable in all members, n - 1 acked ──► ack

Natural group commit: with no linger, a block is sealed as soon as the window has a place, and takes all that has queued
up by then. One side failing is put to the ledger (`MembershipChange`), and nothing is acked on the remaining side alone
before the ledger has accepted that. A WAL that is fenced, or has no side left, is dead: for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from dataplane.wal.base import Done, MembershipChange, Side, WalIdentity, WalRecord
from dataplane.wal.codec import HEADER_BYTES, block_length, encode_block, record_bytes
from dataplane.wal.commit_settings import CommitSettings as CommitSettings
from dataplane.wal.flight import Append, Flight
from dataplane.wal.latency import AckLatency
from dataplane.wal.linger import Linger
from dataplane.wal.membership import Return
from dataplane.wal.proposals import Proposals
from dataplane.wal.staging import Staging
from dataplane.wal.written import WrittenSides
from providers.base.clock import Clock
from providers.base.errors import Fenced, Full, Internal, Invalid, NotFound, Unavailable, YunheError, invariant
from providers.base.volumes import BLOCK_BYTES

log = logging.getLogger(__name__)

PROBED_PART = 8
"""Probes may fill one part in so many of the WAL: without traffic nothing is uploaded, and so nothing trimmed."""


class GroupCommit:
    """`Wal` of `base.py` over one or two sides."""

    def __init__(
        self,
        identity: WalIdentity,
        sides: Sequence[Side],
        *,
        clock: Clock,
        change: MembershipChange | None = None,
        on_dead: Callable[[YunheError], None] | None = None,
        settings: CommitSettings | None = None,
    ) -> None:
        """`sides`: the membership that the ledger states. `change` is needed with two sides. `on_dead` is called once,
        when the WAL dies other than by `close`."""
        if not sides:
            raise Invalid("a WAL needs at least one side")
        if len(sides) > 1 and change is None:
            raise Invalid("a WAL of two sides needs a way to change its membership")
        self._identity = identity
        self._sides = WrittenSides(sides, self._forget)
        self.membership = self._sides.membership
        self._clock = clock
        self._on_dead = on_dead
        self._settings = settings or CommitSettings()
        self._proposals = Proposals(
            self.membership,
            change,
            clock=clock,
            attempts_max=self._settings.change_attempts_max,
            pause_ms=self._settings.change_pause_ms,
            floor=lambda: self._floor,
            next_ack=lambda: self._acked + 1,
            accepted=self._members_changed,
            die=self.die,
        )
        self._block_bytes = 0
        self._record_bytes_max = 0
        self._window = min(side.window_max for side in sides)
        self._queue: deque[Append] = deque()
        self._queued_bytes = 0
        self._flights: deque[Flight] = deque()
        self._flight_bytes = 0
        self._staging = Staging()
        self.latency = AckLatency()
        self.written_bytes = 0
        """Of all blocks so far, each counted once, on however many sides it is."""
        self.on_membership: Callable[[], None] = lambda: None
        """Called when a side was lost, or the ledger has accepted another membership."""
        self._next = 1
        self._acked = 0
        self._floor = 1
        self._kept: deque[tuple[int, int]] = deque()
        self._kept_bytes = 0
        self._no_room: set[tuple[str, int]] = set()
        self._error: YunheError | None = None
        self._closing = False
        self._pump_handle: asyncio.Handle | None = None
        self._linger = Linger(self._settings.linger_ms, self._schedule_pump)
        self._rejoining: asyncio.Task[None] | None = None
        self._fits = 0  # bytes of further appends that need no look at the room
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- what the owner sees

    @property
    def identity(self) -> WalIdentity:
        return self._identity

    @property
    def last_acked(self) -> int:
        return self._acked

    @property
    def unacked_bytes(self) -> int:
        return self._queued_bytes + self._flight_bytes

    @property
    def bytes_used(self) -> int:
        return self._kept_bytes

    @property
    def members(self) -> tuple[str, ...]:
        """Sides of the membership, as far as the ledger's answers are known."""
        return self.membership.members

    @property
    def next_block(self) -> int:
        """Number of the next block."""
        return self._next

    def ack_ms(self) -> float | None:
        age_ms = self._clock.monotonic_ms() - self._flights[0].begun_ms if self._flights else None
        return self.latency.window(age_ms)

    def probe(self) -> None:
        idle = not (self._error or self._closing or self._flights or self._queue)
        if idle and self._kept_bytes * PROBED_PART <= self._settings.bytes_max and self._sides.fits(BLOCK_BYTES):
            self._submit([], 0)

    @property
    def dead(self) -> YunheError | None:
        """Why no append will ever be acked again; None while the WAL lives."""
        return self._error

    async def open(self) -> None:
        """Open every side. One of two that cannot be reached is put to the ledger at once.

        Raises:
            Fenced: taken over already, or the ledger refuses the change.
            Unavailable: no side can be opened, or it is unknown what the ledger says.
        """
        sides = self._sides.now
        results = await asyncio.gather(*(side.open() for side in sides), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, (Unavailable, NotFound)):
                raise result
        # Of one that is not there now, too: it may come back.
        rooms = [room for side in sides if (room := side.room_bytes()) is not None]
        for side, result in zip(sides, results, strict=True):
            if isinstance(result, YunheError):
                self._sides.drop(side, result)
        if self._sides.now != sides:
            if self.membership.over:
                self.die(self._sides.why_lost)
            await self._proposals.run()
            if self._error is not None:
                raise self._error
        whole = min([self._settings.bytes_max, *rooms])
        # Blocks are small beside the whole, so that one always fits once everything is trimmed, wherever the ring
        # stands.
        self._block_bytes = min(self._settings.block_bytes, whole // 8)
        self._record_bytes_max = whole // 4
        await self._staging.open(self._sides.now, block_length(self._block_bytes), self._window)

    def submit(self, record: WalRecord, done: Done) -> None:
        if self._error is not None or self._closing:
            _fail(done, self._error or Unavailable("the WAL is being closed"))
            return
        size = record_bytes(record)
        if size > self._fits:
            self._check(size)
        self._fits -= size
        if not self._queued_bytes:
            self._idle.clear()
        self._queue.append(Append(record, size, done))
        self._queued_bytes += size
        if self._pump_handle is None and self._may_begin():
            self._schedule_pump()

    def _check(self, size: int) -> None:
        """Whether a record of `size` bytes fits, and how many more do. That holds as long as nothing but appends
        happens: whatever changes it sets `_fits` to 0.

        Raises:
            Invalid: it never will.
            Full: not now.
        """
        if size > self._record_bytes_max:
            raise Invalid(
                f"a record of {size} bytes does not fit a WAL of {self._settings.bytes_max} bytes",
                hint="raise the WAL's `bytes_max`, or lower the topic's `max.message.bytes`",
            )
        self._check_room(size)
        self._fits = size
        if self._queued_bytes:
            more = self._settings.queue_bytes_max // 64
            with contextlib.suppress(Full):
                self._check_room(size + more)
                self._fits = min(size + more, self._record_bytes_max)

    def _check_room(self, size: int) -> None:
        queued = self._queued_bytes + size
        if self._no_room or self._kept_bytes + queued + HEADER_BYTES > self._settings.bytes_max:
            raise Full("the WAL is full until more of it is in object storage", used=self._kept_bytes)
        if self.unacked_bytes and self.unacked_bytes + size > self._settings.queue_bytes_max:
            raise Full("the WAL's queue is full", unacked_bytes=self.unacked_bytes)
        if not self._sides.fits(block_length(queued) + BLOCK_BYTES):
            raise Full("the WAL has no room until more of it is in object storage", used=self._kept_bytes)

    async def trim(self, floor: int) -> None:
        invariant(floor <= self._acked + 1, "only acked blocks are trimmed", floor=floor, acked=self._acked)
        if floor <= self._floor or self._error is not None:
            return
        self._floor = floor
        try:
            await self._sides.trim(floor)
        except Fenced as error:
            self.die(error)
            return
        while self._kept and self._kept[0][0] < self._floor:
            self._kept_bytes -= self._kept.popleft()[1]
        self._proposals.consider()
        self._schedule_pump()

    async def close(self) -> None:
        self._closing = True
        if self._error is None:
            self._schedule_pump()
            try:
                await asyncio.wait_for(self._idle.wait(), self._settings.close_flush_ms / 1000)
            except TimeoutError:
                log.warning("wal closed with unacked appends unacked_bytes=%d", self.unacked_bytes)
            self._end(Unavailable("the WAL is closed"))
        await self._sides.over()
        tasks = [task for task in (self._proposals.task, self._rejoining) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for side in self._sides.everything():
            try:
                await side.close()
            except YunheError as error:
                log.warning("wal side close failed side=%s error=%s", side.name, error)

    # ---- queue to blocks

    def _schedule_pump(self) -> None:
        """Let the pump run once this turn of the loop is over, so that all appends of the turn share a block."""
        if self._pump_handle is None:
            self._pump_handle = asyncio.get_running_loop().call_soon(self._pump)

    def _may_begin(self) -> bool:
        """Whether another block may be under way. Beyond two, only one that is worth a write of its own: small records
        do better in each other's company."""
        under_way = len(self._flights)
        return under_way < self._window and (under_way < 2 or self._queued_bytes >= self._settings.wide_bytes)

    def _pump(self) -> None:
        self._pump_handle = None
        begun = 0  # bytes whose writes begin once this turn of the loop is over: no side counts them yet
        while self._queue and self._may_begin() and self._error is None:
            if self._queued_bytes < self._block_bytes and not self._closing and self._linger.waits():
                return
            count, size = 0, 0
            for append in self._queue:
                if count and size + append.size > self._block_bytes:
                    break
                count, size = count + 1, size + append.size
            begun += block_length(size)
            if not self._sides.fits(begun):
                return  # until something is trimmed
            appends = [self._queue.popleft() for _ in range(count)]
            self._queued_bytes -= size
            self._linger.reset()
            self._submit(appends, size)

    def _submit(self, appends: Sequence[Append], size: int) -> None:
        number = self._next
        self._next += 1
        self._fits = 0
        length = block_length(size)
        data, staging = self._staging.take(length)
        records = [append.record for append in appends]
        encode_block(data, self._identity, number, records, unacked=number - 1 - self._acked)
        flight = Flight(number, data, appends, size, staging, self._clock.monotonic_ms())
        self._flights.append(flight)
        self._flight_bytes += size
        self._kept.append((number, len(data)))
        self._kept_bytes += len(data)
        self.written_bytes += len(data)
        for side in self._sides.now:
            flight.writing += 1
            if not side.start(number, data, functools.partial(self._started, side, flight)):
                self._sides.begun(side, asyncio.create_task(self._write(side, flight)))

    def _started(self, side: Side, flight: Flight, kept: bool) -> None:
        """The end of a started write; nobody waits for it any more if the WAL is over, or the side lost."""
        if self._error is None and side in self._sides.now:
            if not kept:
                self._sides.begun(side, asyncio.create_task(self._write(side, flight)))
                return
            try:
                self._written(side, flight)
            except Exception as error:
                self.die(Internal(f"the WAL's writer failed: {error!r}"))

    def _forget(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.die(Internal(f"the WAL's writer failed: {error!r}"))

    async def _write(self, side: Side, flight: Flight) -> None:
        """Write one block to one side. Retries that may succeed soon are the side's own; here only the wait for
        room."""
        try:
            for _ in range(self._settings.full_attempts_max):
                self._fits = 0  # the block takes its place now
                try:
                    if not await side.write(flight.number, flight.data):
                        flight.staging = None
                    break
                except Full as error:
                    self._no_room.add((side.name, flight.number))
                    self._fits = 0
                    log.warning("wal side has no room side=%s error=%s", side.name, error)
                    await self._clock.sleep_ms(self._settings.full_pause_ms)
            else:
                raise Unavailable(f"the side {side.name} has had no room for too long")
        except (Unavailable, NotFound) as error:
            self.lose(side, error)
            return
        except YunheError as error:
            self.die(error)
            return
        finally:
            self._no_room.discard((side.name, flight.number))
        self._written(side, flight)

    def _written(self, side: Side, flight: Flight) -> None:
        flight.durable.add(side.name)
        flight.writing -= 1
        if not flight.writing and flight.staging is not None:
            self._staging.give_back(flight.staging)
        self._advance()

    # ---- acks

    def _advance(self) -> None:
        """Ack, in order, what is durable in every member."""
        needed = self.membership.needed
        while self._flights and self._error is None and needed(self._flights[0].number) <= self._flights[0].durable:
            flight = self._flights.popleft()
            self._acked = flight.number
            self._flight_bytes -= flight.queued_bytes
            self.latency.add(self._clock.monotonic_ms() - flight.begun_ms)
            for append in flight.appends:
                append.done(flight.number, None)
        if not self._flights and not self._queue:
            self._idle.set()
        elif self._queue:
            self._schedule_pump()

    # ---- a side is lost, a side comes back

    def lose(self, side: Side, error: YunheError) -> None:
        """It failed: it is not written again, and the ledger is asked to go on without it."""
        if self._error is None and side in self._sides.now:
            self._sides.drop(side, error)
            self._members_changed()
            self._proposals.consider()

    def _members_changed(self) -> None:
        self._sides.mark()
        self._advance()  # a side that is out may have been all that was waited for
        self.on_membership()
        if self.membership.over:
            self.die(self._sides.why_lost)

    def keep(self, bring_back: Coroutine[Any, Any, None]) -> None:
        """Have lost sides brought back (`rejoin.py`) for as long as the WAL lives."""
        self._rejoining = asyncio.create_task(bring_back)
        self._rejoining.add_done_callback(self._forget)

    async def abandon(self, name: str) -> None:
        """Close the lost instance of a side, before another is opened."""
        await self._sides.abandon(name)

    def admit(self, side: Side, instance: int) -> Return:
        """An opened, empty instance of a missing side gets every block from now on, and acks of them wait for it.
        `vouch` has to follow."""
        back = Return(side.name, instance, self._next)
        self._fits = 0
        self._sides.admit(side, back)
        return back

    def vouch(self, back: Return) -> None:
        """A reader would find where the side begins: it becomes a member as soon as it has all that is needed."""
        self.membership.ready(back)
        self._proposals.consider()

    def waits_for(self, side: Side) -> bool:
        """Whether the first unacked block is missing on `side` alone."""
        first = self._flights[0] if self._flights else None
        return first is not None and self.membership.needed(first.number) - first.durable == {side.name}

    # ---- the end

    def die(self, error: YunheError) -> None:
        if self._error is not None:
            return
        self._end(error)
        if self._on_dead is not None:
            self._on_dead(error)

    def _end(self, error: YunheError) -> None:
        """Fail all that is unacked, and stop: no ack is given after this."""
        self._error = error
        self._proposals.end()
        self._sides.cancel()
        if self._rejoining is not None and self._rejoining is not asyncio.current_task():
            self._rejoining.cancel()
        ended: list[Append] = []
        for flight in self._flights:
            ended.extend(flight.appends)
        ended.extend(self._queue)
        self._flights.clear()
        self._queue.clear()
        self._queued_bytes = self._flight_bytes = 0
        self._idle.set()
        for append in ended:
            _fail(append.done, error)


def _fail(done: Done, error: YunheError) -> None:
    """Give each waiter an error of its own: an exception that is raised in many places gathers all their tracebacks."""
    done(0, type(error)(error.message, hint=error.hint, **error.fields))
