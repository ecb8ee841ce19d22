"""An in-memory network between simulated brokers: latency, loss and cuts drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from providers.base.errors import Unavailable

Message = dict[str, Any]
Handler = Callable[[Message], Awaitable[Message | None]]
Address = tuple[str, int]


class Hub:
    """Delivers messages between addresses. `cut` pairs hear nothing of each other."""

    def __init__(self, rng: random.Random, latency_ms: tuple[float, float] = (0.1, 3.0)) -> None:
        self._rng = rng
        self._latency_ms = latency_ms
        self._handlers: dict[Address, Handler] = {}
        self._left: set[Address] = set()
        self.cut: set[frozenset[Address]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, address: Address, handler: Handler) -> None:
        self._handlers[address] = handler
        self._left.discard(address)

    def leave(self, address: Address) -> None:
        self._handlers.pop(address, None)
        self._left.add(address)

    def peers_of(self, me: Address) -> HubPeers:
        return HubPeers(self, me)

    async def deliver(self, source: Address, target: Address, message: Message) -> Message | None:
        """Raises Unavailable when it is lost on the way there or back."""
        await self._way(source, target)
        handler = self._handlers.get(target)
        if handler is None:
            raise Unavailable(f"nobody listens at {target}")
        answer = await handler(dict(message))
        await self._way(target, source)
        return answer

    async def _way(self, source: Address, target: Address) -> None:
        await asyncio.sleep(self._rng.uniform(*self._latency_ms) / 1000)
        if frozenset((source, target)) in self.cut:
            raise Unavailable(f"{source} is cut off from {target}")

    def refuses(self, source: Address, target: Address) -> bool:
        return target in self._left and frozenset((source, target)) not in self.cut

    def in_background(self, source: Address, target: Address, message: Message) -> None:
        async def lose_quietly() -> None:
            try:
                await self.deliver(source, target, message)
            except Unavailable:
                pass

        task = asyncio.create_task(lose_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class HubPeers:
    """`Peers` of one simulated broker."""

    def __init__(self, hub: Hub, me: Address) -> None:
        self._hub = hub
        self._me = me

    def send(self, address: Address, message: Message) -> None:
        self._hub.in_background(self._me, address, message)

    def forget_all_but(self, addresses: set[Address]) -> None:
        pass  # nothing is kept between messages

    def refuses(self, address: Address) -> bool:
        return self._hub.refuses(self._me, address)

    async def request(self, address: Address, message: Message, timeout_ms: float) -> Message:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                answer = await self._hub.deliver(self._me, address, {**message, "request": 1})
        except TimeoutError as error:
            raise Unavailable("no answer in time") from error
        if answer is None:
            raise Unavailable(f"{address} is not serving yet, and does not answer")
        return answer
