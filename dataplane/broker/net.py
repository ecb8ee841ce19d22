"""The Kafka listener: frames in, responses out in request order, everything bounded.

One task a connection reads frames and begins their handling; one writes the answers in the order of the requests, so
that a long-poll fetch holds back only its own connection. When too many
requests of a connection are under way, reading stops until answers have been written.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from dataplane.broker import wire
from dataplane.broker.dispatch import Dispatch
from dataplane.broker.engine import Engine
from dataplane.broker.groups import GroupCoordinator
from providers.base.clock import Clock, Rng

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of the listener."""

    frame_bytes_max: int = 100 << 20
    """Kafka's own default of `socket.request.max.bytes`; larger frames close the connection before they are read."""
    requests_in_flight_max: int = 64
    """A connection's requests under way; idempotent producers use five."""
    connections_max: int = 2_000
    """More are closed at once: each may hold a frame."""
    write_timeout_ms: float = 60_000
    """A client that does not take an answer for so long is cut off."""


class KafkaServer:
    """Serves an engine over TCP."""

    def __init__(self, engine: Engine, *, clock: Clock, rng: Rng, settings: ServerSettings | None = None) -> None:
        self._settings = settings or ServerSettings()
        self.coordinator = GroupCoordinator(engine, clock=clock, rng=rng)
        self._dispatch = Dispatch(engine, self.coordinator, clock)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port.

        Raises:
            OSError: the port cannot be had.
        """
        self._server = await asyncio.start_server(self._accept, host, port, limit=1 << 20)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        await self.coordinator.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._settings.connections_max:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        answers: asyncio.Queue[asyncio.Task[bytes | None] | None] = asyncio.Queue(self._settings.requests_in_flight_max)
        writing = asyncio.create_task(self._write(writer, answers))
        try:
            await self._read(reader, writer, answers, writing)
        except asyncio.CancelledError:
            pass  # the server closes
        finally:
            writing.cancel()
            while not answers.empty():
                waiting = answers.get_nowait()
                if waiting is not None:
                    waiting.cancel()
            writer.close()
            self._connections.discard(task)

    async def _read(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.Queue[asyncio.Task[bytes | None] | None],
        writing: asyncio.Task[None],
    ) -> None:
        peer = writer.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        try:
            while not writing.done():
                size = int.from_bytes(await reader.readexactly(4), "big")
                if not 8 <= size <= self._settings.frame_bytes_max:
                    raise wire.Malformed(f"a frame of {size} bytes")
                request = wire.decode(await reader.readexactly(size))
                # The queue's bound is the bound of requests under way; a writer that is gone must not leave this
                # waiting.
                putting = asyncio.ensure_future(answers.put(asyncio.create_task(self._dispatch.answer(request, host))))
                await asyncio.wait({putting, writing}, return_when=asyncio.FIRST_COMPLETED)
        except (asyncio.IncompleteReadError, ConnectionError):
            await answers.put(None)
            await asyncio.wait({writing}, timeout=self._settings.write_timeout_ms / 1000)
        except wire.Malformed as error:
            log.info("malformed-request", extra={"peer": peer, "error": str(error)})

    async def _write(
        self, writer: asyncio.StreamWriter, answers: asyncio.Queue[asyncio.Task[bytes | None] | None]
    ) -> None:
        while True:
            waiting = await answers.get()
            if waiting is None:
                return
            try:
                answer = await waiting
            except wire.Malformed as error:
                log.info("unsupported-request", extra={"error": str(error)})
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # A bug: the client sees a closed connection and tries again; the log has the trace.
                log.error("handler-failed", exc_info=error)
                return
            if answer is None:
                continue
            try:
                writer.write(answer)
                async with asyncio.timeout(self._settings.write_timeout_ms / 1000):
                    await writer.drain()
            except (ConnectionError, TimeoutError):
                return
