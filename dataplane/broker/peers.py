"""Brokers of one cell talk to each other directly: heartbeats, "the ledger has moved" hints, requests that only the
owner can carry out, and what clients still send to a former owner (`forwarding.py`).

`peer_channel.py` says how a message travels. Losing any of them is harmless: heartbeats come again, hints only save a
poll, requests are answered or time out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from dataplane.broker.peer_channel import FRAME_BYTES_MAX, Channel, greet, welcome
from dataplane.broker.peer_channel import Message as Message
from dataplane.broker.peer_secrets import Secrets
from dataplane.ledger.state import Broker
from providers.base.clock import Rng, SystemRng
from providers.base.errors import Unavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 1.0
UNKNOWN_MAX = 64
"""Connections that have not proved yet who they are; more are closed at once."""
QUEUE_MAX = 64
"""Messages waiting for one peer; when it does not read, the newest are dropped."""

Handler = Callable[[Message], Awaitable[Message | None]]


class Peers(Protocol):
    """How a node reaches the others. Simulation has its own."""

    def send(self, address: tuple[str, int], message: Message) -> None:
        """Send without waiting; lost when the peer cannot be reached or its queue is full."""
        ...

    def forget_all_but(self, addresses: set[tuple[str, int]]) -> None:
        """Give up the links to all other addresses: a broker's next epoch listens elsewhere."""
        ...

    def refuses(self, address: tuple[str, int]) -> bool:
        """Whether the host there has answered the last attempt with: nobody listens."""
        ...

    async def request(self, address: tuple[str, int], message: Message, timeout_ms: float) -> Message:
        """Send and wait for the answer.

        Raises:
            Unavailable: no answer in time; the request may have been carried out.
        """
        ...


async def ask_to_move(peers: Peers, owner: Broker, stream: int, target: int, timeout_ms: float) -> Message:
    """Have the owner of a stream hand it to node `target`; the answer's `error` is None when it has, else why not, with
    Kafka's `code`.

    Raises:
        Unavailable: as `Peers.request`.
    """
    request = {"op": "move", "stream": stream, "target": target}
    return await peers.request((owner.host, owner.peer_port), request, timeout_ms)


class TcpPeers:
    """`Peers` over TCP: one outgoing connection a peer, re-made when lost. `secrets`: what the cluster's brokers know
    each other by, none when anybody may speak to them."""

    def __init__(self, secrets: Secrets = (), rng: Rng | None = None) -> None:
        self._secrets = secrets
        self._rng = rng or SystemRng()
        self._unknown = 0
        self._links: dict[tuple[str, int], _Link] = {}
        self._server: asyncio.Server | None = None
        self._handler: Handler | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._welcomed: set[Channel] = set()

    def use(self, secrets: Secrets) -> None:
        """Know each other by these from now on. Connections that rest on none of them are cut: links are made anew."""
        self._secrets = secrets
        for channel in self._welcomed:
            if not channel.rests_on(secrets):
                channel.close()
        for link in self._links.values():
            link.use(secrets)

    async def start(self, host: str, port: int, handler: Handler) -> int:
        """Listen; `handler` gets each message, and its answer to a request is sent back. Returns the bound port."""
        self._handler = handler
        self._server = await asyncio.start_server(self._accept, host, port, limit=FRAME_BYTES_MAX)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def send(self, address: tuple[str, int], message: Message) -> None:
        self._link(address).send(message)

    def refuses(self, address: tuple[str, int]) -> bool:
        link = self._links.get(address)
        return link is not None and link.refused

    async def request(self, address: tuple[str, int], message: Message, timeout_ms: float) -> Message:
        return await self._link(address).request(message, timeout_ms)

    def forget_all_but(self, addresses: set[tuple[str, int]]) -> None:
        for address in [a for a in self._links if a not in addresses]:
            self._links.pop(address).close()

    async def close(self) -> None:
        """Give all up; nothing of it runs any more afterwards."""
        ending = [link.close() for link in self._links.values()]
        self._links.clear()
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*ending, *self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _link(self, address: tuple[str, int]) -> _Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = _Link(address, self._secrets, self._rng)
        return link

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
        channel: Channel | None = None
        try:
            channel = await self._welcome(reader, writer)
            if channel is None or not channel.rests_on(self._secrets):  # as they are now
                return
            self._welcomed.add(channel)
            while True:
                message = await channel.read()
                if message is None or self._handler is None:
                    return
                if "request" in message:
                    # Requests may take long (a move): heartbeats behind them must not wait.
                    answering = asyncio.create_task(self._answer(message, channel))
                    self._connections.add(answering)
                    answering.add_done_callback(self._connections.discard)
                else:
                    await self._handler(message)
        except asyncio.CancelledError:
            pass  # the node closes
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            log.debug("peer-connection-lost", extra={"error": str(error)})
        finally:
            writer.close()
            if channel is not None:
                self._welcomed.discard(channel)
            if task is not None:
                self._connections.discard(task)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Channel | None:
        """The channel to who has connected; None when too many are at it."""
        if self._unknown >= UNKNOWN_MAX:
            return None
        self._unknown += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await welcome(reader, writer, self._secrets, self._rng.token())
        except ValueError as error:
            log.warning("peer-refused", extra={"error": str(error)})
            raise
        finally:
            self._unknown -= 1

    async def _answer(self, message: Message, channel: Channel) -> None:
        assert self._handler is not None
        answer = await self._handler(message)
        if answer is not None and not channel.closing:
            channel.write({**answer, "answer": message["request"]})


class _Link:
    """One outgoing connection: a bounded queue, a task that connects and writes, and one that reads answers, which
    wakes the first with a None in the queue when there are no more."""

    def __init__(self, address: tuple[str, int], secrets: Secrets, rng: Rng) -> None:
        self._address = address
        self._secrets = secrets
        self._channel: Channel | None = None
        self._rng = rng
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue(QUEUE_MAX)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._next_request = 0
        self.refused = False
        self._task = asyncio.create_task(self._run())

    def send(self, message: Message) -> None:
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            log.debug("peer-queue-full", extra={"peer": self._address})

    async def request(self, message: Message, timeout_ms: float) -> Message:
        self._next_request += 1
        number = self._next_request
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self.send({**message, "request": number})
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError as error:
            raise Unavailable(f"broker at {self._address[0]}:{self._address[1]} did not answer in time") from error
        finally:
            self._waiting.pop(number, None)

    def use(self, secrets: Secrets) -> None:
        """As `TcpPeers.use`."""
        self._secrets = secrets
        if self._channel is not None and not self._channel.rests_on(secrets):
            self._channel.close()

    def close(self) -> asyncio.Task[None]:
        """Begin to end; the task that does."""
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        while True:
            message = await self._queue.get()
            if message is None:
                continue  # of an earlier connection
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    channel = await self._connect()
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.refused = isinstance(error, ConnectionRefusedError)
                continue  # that message is lost; the next one tries again
            self.refused = False
            if not channel.rests_on(self._secrets):  # as they are now
                channel.close()
                continue
            self._channel = channel
            reading = asyncio.create_task(self._read(channel))
            try:
                while message is not None and not reading.done():
                    channel.write(message)
                    await channel.drain()
                    message = await self._queue.get()
            except OSError as error:
                log.debug("peer-link-lost", extra={"peer": self._address, "error": str(error)})
            finally:
                reading.cancel()
                channel.close()
                await asyncio.gather(reading, return_exceptions=True)
            await self._look()

    async def _connect(self) -> Channel:
        reader, writer = await asyncio.open_connection(*self._address, limit=FRAME_BYTES_MAX)
        try:
            return await greet(reader, writer, self._secrets, self._rng.token())
        except BaseException as error:
            writer.close()
            if isinstance(error, ValueError):
                log.warning("peer-not-trusted", extra={"peer": self._address, "error": str(error)})
            raise

    async def _look(self) -> None:
        """The link was lost: is its peer still there?"""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(*self._address)
            writer.close()
        except (OSError, TimeoutError) as error:
            self.refused = isinstance(error, ConnectionRefusedError)

    async def _read(self, channel: Channel) -> None:
        try:
            while (message := await channel.read()) is not None:
                waiting = self._waiting.get(message.get("answer", 0))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # the link is made anew with the next message
        if not self._queue.full():  # else the first has something to wake for
            self._queue.put_nowait(None)
