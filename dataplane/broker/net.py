"""The Kafka listener: connections, each answered in the order of its requests, everything bounded.

    bytes ──► frame ──┬─► Produce: appends begun at once, answered by their acks ─┐
                      ├─► Fetch: answered at once from memory, or by a task       ├─► slots, in order ──► bytes
                      └─► anything else: a task                                   ┘

No task and no copy stands between a large produce request and the WAL: its frame is received where its batches stay.
A connection is not read while it has too many requests under way, while its client does not take answers, or while the
WAL has no room for what it sent last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from dataplane.broker import wire
from dataplane.broker.answer_room import AnswerRoom, AnswerShare
from dataplane.broker.answer_slots import Slot
from dataplane.broker.caller import Caller
from dataplane.broker.dispatch import Dispatch
from dataplane.broker.engine import Engine
from dataplane.broker.framing import FrameReceiver
from dataplane.broker.groups import GroupCoordinator
from dataplane.broker.handlers.produce import Appending
from dataplane.broker.handlers.zone_reads import Sent
from dataplane.broker.limits import Limits
from dataplane.broker.receive_memory import ReceiveMemory
from dataplane.broker.receiving import FrameMemory
from dataplane.broker.request_meter import RequestMeter
from dataplane.broker.sasl import Login
from dataplane.broker.security import NoStore, Security
from dataplane.broker.server_settings import ServerSettings as ServerSettings
from dataplane.broker.tls import TlsListener
from dataplane.broker.transaction_services import TransactionServices
from dataplane.broker.wire_fetch import FetchAnswer, encode_fetch
from dataplane.broker.wire_primitives import Malformed
from dataplane.broker.wire_repeated import ProduceDecoder
from dataplane.contract.security import SecuritySpec
from dataplane.stream.batch import Buffer
from providers.base.clock import Clock, Rng

log = logging.getLogger(__name__)

ROOM_AGAIN_MS = 2
"""How often a connection that waits for room in the WAL looks again: a fast volume's few group commits."""
JOIN_BELOW_BYTES = 64 << 10
"""Answers shorter than this together are sent as one piece."""


class KafkaServer:
    """Serves an engine over TCP."""

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock,
        rng: Rng,
        settings: ServerSettings | None = None,
        security: Security | None = None,
    ) -> None:
        """`security`: None, for a server that keeps nobody out."""
        self.settings = settings or ServerSettings()
        self.clock = clock
        self.security = security = security or Security(SecuritySpec(), NoStore(), clock=clock, rng=rng)
        self.coordinator = GroupCoordinator(engine, clock=clock)
        self.transactions = TransactionServices(engine, self.coordinator, clock)
        self.meter = RequestMeter()
        self.dispatch = Dispatch(engine, self.coordinator, clock, rng, security, self.transactions, self.meter.refused)
        self._server: asyncio.Server | None = None
        self._tls: TlsListener | None = None
        self.connections: set[Connection] = set()
        self.logging_in: set[Caller] = set()
        self.hosts: Counter[str] = Counter()
        """Connections by the host that they come from."""
        self.frames: FrameMemory
        self._clearer = ThreadPoolExecutor(1, thread_name_prefix="receive-memory")
        self.memory = ReceiveMemory(clearer=self._clearer)
        self.answers = AnswerRoom(self.settings.answers_bytes_max)
        self._sweeper: asyncio.TimerHandle | None = None
        self._read_before = dataclasses.asdict(self.dispatch.fetch.meter)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port.

        Raises:
            OSError: the port cannot be had.
        """
        loop = asyncio.get_running_loop()
        given = self.settings
        self.frames = FrameMemory(given.frames_bytes_max, given.frame_patience_ms / 1000, given.frame_timeout_ms / 1000)
        self._sweep()
        if self.security.tls is not None:
            self._tls = TlsListener(self.security.tls, lambda: Connection(self), self.clock)
            return self._tls.start(host, port)
        self._server = await loop.create_server(lambda: Connection(self), host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
            self.frames.close()
        if self._tls is not None:
            await self._tls.close()
            self.frames.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.transactions.coordinator.close()
        await self.coordinator.close()
        tasks = [task for connection in self.connections for task in connection.tasks]
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._clearer.shutdown(wait=False)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        idle_since_s = loop.time() - self.settings.idle_max_ms / 1000
        for connection in list(self.connections):
            if connection.idle_since_s < idle_since_s and not connection.busy:
                connection.abort()
        self.memory.give_back_unused()
        read = dataclasses.asdict(self.dispatch.fetch.meter)
        if read != self._read_before:
            self._read_before = read
            log.info("consumers-read", extra=read)
        self._sweeper = loop.call_later(self.settings.idle_max_ms / 10_000, self._sweep)


class Connection(FrameReceiver):
    """See the module."""

    def __init__(self, server: KafkaServer) -> None:
        self._server = server
        self._settings = server.settings
        self._dispatch = server.dispatch
        self._meter = server.meter
        self._now_ms = server.clock.monotonic_ms
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        caller = Caller(server.security, server.clock, server.logging_in, resume=self._take_frames, abort=self.abort)
        super().__init__(server.memory, server.frames, server.settings, caller)
        self._decoder = ProduceDecoder()
        self._slots: deque[Slot] = deque()
        self._flushing = False
        self._unsent_bytes = 0  # of answers that the transport does not have yet
        self._stalled: Appending | None = None
        self._fetching = False  # by a task; its answer may pin as much as a client takes at once, so one at a time
        self._sent = Sent()
        self._answers = AnswerShare(server.answers)
        self._writing_paused = False
        self._reading_paused = False
        self._cutter: asyncio.TimerHandle | None = None
        self.idle_since_s = self._loop.time()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """A request is under way."""
        return bool(self._slots) or self._frame is not None or self._unhandled is not None

    # ── the transport's side ────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        peer = transport.get_extra_info("peername")
        self._host = str(peer[0]) if peer else ""
        server, settings = self._server, self._settings
        if (
            len(server.connections) >= settings.connections_max
            or server.hosts[self._host] >= settings.connections_per_host_max
            or not self._caller.connected(transport, settings.login_timeout_ms, settings.logging_in_max)
        ):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(settings.write_bytes_max)
        server.connections.add(self)
        server.hosts[self._host] += 1

    def eof_received(self) -> bool:
        return False  # what is under way has no reader: closed

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._server.connections:
            self._server.connections.discard(self)
            self._server.hosts[self._host] -= 1
            if not self._server.hosts[self._host]:
                del self._server.hosts[self._host]
        self._forget_frames()
        self._caller.gone()
        self._answers.clear()
        self._dispatch.produce.gone(self._decoder)
        self._transport = None
        self._stalled = None
        self._slots.clear()
        for task in self.tasks:
            task.cancel()
        if self._cutter is not None:
            self._cutter.cancel()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._cutter = self._loop.call_later(self._settings.write_timeout_ms / 1000, self.abort)

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._cutter is not None:
            self._cutter.cancel()
            self._cutter = None
        self._taken()
        self._take_frames()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    # ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _blocked(self) -> bool:
        return (
            self._writing_paused
            or self._stalled is not None
            or self._fetching
            or self._unsent_bytes > self._settings.write_bytes_max
            or len(self._slots) >= self._settings.requests_in_flight_max
            or self._caller.blocked
        )

    def _waits_for_wal(self) -> bool:
        return self._stalled is not None

    def _refuse(self, error: Malformed) -> None:
        log.info("malformed-request", extra={"peer": self._caller.session.host, "error": str(error)})
        self._meter.aborted += 1
        self.abort()

    def _throttle(self) -> None:
        blocked = self._blocked() or self._waits_for_room
        if self._transport is not None and blocked != self._reading_paused and not self._transport.is_closing():
            self._reading_paused = blocked
            (self._transport.pause_reading if blocked else self._transport.resume_reading)()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handle(self, frame: memoryview, *, kept: bool) -> None:
        """Begin a request. `kept`: the frame's memory is not used again."""
        slot = Slot(self.answered, self._now_ms())
        self._slots.append(slot)
        self._meter.received_bytes += len(frame)
        caller = self._caller
        if caller.gate is not None:
            self._log_in(caller.gate, frame, slot)
            return
        api_key, version, correlation_id = wire.HEAD.unpack_from(frame)
        slot.api_key = api_key
        low, high = wire.ADVERTISED.get(api_key, (0, -1))
        counted = caller.counted
        limits = caller.limits() if counted else None
        if api_key == wire.PRODUCE and low <= version <= high:
            throttle_ms = caller.charge_produce(frame) if counted else 0
            appending = self._dispatch.produce.begin(
                frame, self._decoder, kept=kept, send=slot.send, access=caller.access, throttle_ms=throttle_ms
            )
            begun = appending.go()
            if limits is not None:
                limits.client_id = wire.client_id_of(frame)
                appending.throttle(limits.settle())
            if not begun:
                if not kept:
                    appending.keep()
                self._stalled = appending
                self._loop.call_later(ROOM_AGAIN_MS / 1000, self._go_on)
            return
        request = wire.decode(bytes(frame))
        if api_key == wire.FETCH and request.body is not None:
            found = self._dispatch.fetch.begin(request.body, caller.access, self._sent, self._answers)
            if isinstance(found, FetchAnswer):
                caller.charge_fetch(request.client_id, found, limits)
                slot.send(encode_fetch(version, correlation_id, found))
                return

            async def fetch() -> Sequence[Buffer]:
                answer = await found
                self._fetching = False
                caller.charge_fetch(request.client_id, answer, limits)
                return encode_fetch(version, correlation_id, answer)

            self._fetching = True
            self._start(fetch(), slot, limits)
        elif (login := caller.login_for(api_key)) is not None:
            self._log_in(login, frame, slot)
        else:
            if limits is not None:
                limits.client_id = request.client_id
            self._start(self._dispatch.answer(request, caller.session, caller.access, limits), slot, limits)

    def _log_in(self, login: Login, frame: memoryview, slot: Slot) -> None:
        """A step of a login: what comes behind it has to wait for its outcome."""
        self._caller.blocked = True
        self._start(self._caller.log_in(login, bytes(frame)), slot)

    def _go_on(self) -> None:
        """The request that waits for room in the WAL tries again."""
        stalled = self._stalled
        if stalled is None:
            return
        if stalled.go():
            self._stalled = None
            self._let_go()
            self._take_frames()
        else:
            self._loop.call_later(ROOM_AGAIN_MS / 1000, self._go_on)

    def _start(
        self, work: Awaitable[bytes | Sequence[Buffer] | None], slot: Slot, limits: Limits | None = None
    ) -> None:
        if limits is not None:
            work = limits.time.timed(work)

        async def run() -> None:
            try:
                slot.send(await work)
            except Malformed as error:
                log.info("unsupported-request", extra={"peer": self._caller.session.host, "error": str(error)})
                self._meter.aborted += 1
                self.abort()
            except Exception as error:
                # A bug: the client sees a closed connection and tries again; the log has the trace.
                log.error("handler-failed", exc_info=error)
                self._meter.aborted += 1
                self.abort()

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, size: int) -> None:
        """An answer of `size` bytes is known. Those of one turn of the loop go out together: one group commit acks many
        requests."""
        self._unsent_bytes += size
        if not self._flushing and self._slots and self._slots[0].done:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None:
            return
        out: list[Buffer] = []
        now_ms = self._now_ms()
        while self._slots and self._slots[0].done:
            slot = self._slots.popleft()
            self._unsent_bytes -= slot.size
            self._meter.answered(slot.api_key, now_ms - slot.began_ms, slot.size)
            answer = slot.answer
            if isinstance(answer, bytes):
                out.append(answer)
            elif answer is not None:
                out.extend(answer)
        if len(out) == 1:
            self._transport.write(out[0])
        elif sum(map(len, out)) < JOIN_BELOW_BYTES:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        self._taken()
        self.idle_since_s = self._loop.time()
        if self._caller.closing and not self._slots:
            self._transport.close()
            return
        self._take_frames()

    def _taken(self) -> None:
        """The socket has taken what it was given: nothing is held any more if that was all."""
        if not self._slots and not self._writing_paused:
            self._answers.clear()
