"""A database's nodes hear each other by HTTP, directly: `GET /v1/yunhe/node` answers what a node says of itself.

The answer only ever delays or starts a take-over; it makes none safe or unsafe (`ownership.py`). So it is not signed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiohttp
from aiohttp import web

from dataplane.contract.codec import from_json, to_json
from dataplane.tsdb.cloud.ownership import Word
from providers.base.errors import Invalid, NotFound, Unavailable

PATH = "/v1/yunhe/node"
ANSWER_BYTES_MAX = 4_096


class HttpPeers:
    """`Peers` over HTTP. `addresses`: the other nodes by name, each `host:port`, empty while that is not known. It is
    looked at anew for each question."""

    def __init__(self, addresses: Mapping[str, str], *, timeout_ms: float, tls: bool = False) -> None:
        """`tls`: the nodes speak https. Their certificates are not looked at, as answers are not signed: nothing
        depends on them but when somebody takes over."""
        self._addresses = addresses
        self._scheme = "https" if tls else "http"
        self._timeout = aiohttp.ClientTimeout(total=timeout_ms / 1_000)
        self._session: aiohttp.ClientSession | None = None

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._addresses)

    async def ask(self, node: str) -> Word:
        """As `Peers`."""
        if node not in self._addresses:
            raise NotFound(f"no node {node!r} is known")
        if not self._addresses[node]:
            raise Unavailable(f"the address of node {node!r} is not known yet")
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.get(
                f"{self._scheme}://{self._addresses[node]}{PATH}", ssl=self._scheme == "http"
            ) as response:
                body = await response.content.read(ANSWER_BYTES_MAX)
                if response.status != 200:
                    raise Unavailable(f"node {node!r} answers {response.status}")
                word = from_json(Word, body)
        except (TimeoutError, aiohttp.ClientError, OSError, Invalid) as error:
            raise Unavailable(f"node {node!r} does not answer: {error!r}") from error
        if word.node != node:
            raise Unavailable(f"node {word.node!r} answers at the address of {node!r}")
        return word

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def answers(app: web.Application, word: Callable[[], Word]) -> None:
    """Have `app`, not started yet, answer peers, before and whatever else it answers."""

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path == PATH:
            return web.Response(body=to_json(word()), content_type="application/json")
        return await handler(request)

    app.middlewares.insert(0, answer)
