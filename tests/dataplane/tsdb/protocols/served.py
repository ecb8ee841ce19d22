"""The HTTP application on a port of its own, in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import requests
from aiohttp import web

from dataplane.tsdb.protocols.http import app
from providers.base.clock import SystemClock
from tests.dataplane.tsdb.protocols.memory import MemoryDatabase


class Served:
    """See the module."""

    def __init__(self, database: MemoryDatabase, **options: Any) -> None:
        self.database = database
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.runner: web.AppRunner | None = None
        self.port = self.on_loop(self._start(options))
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()

    async def _start(self, options: dict[str, Any]) -> int:
        self.runner = web.AppRunner(app(self.database, clock=SystemClock(), **options), shutdown_timeout=10)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return int(self.runner.addresses[0][1])

    def on_loop(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(30)

    def stop(self) -> Future[None]:
        assert self.runner is not None
        return asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop)

    def close(self) -> None:
        self.session.close()
        self.stop().result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()

    def post(self, path: str, body: Any = b"", **more: Any) -> requests.Response:
        return self.session.post(self.url + path, data=body, timeout=30, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=30, **more)

    def rows(self, sql: str) -> list[list[Any]]:
        """Of a SELECT, through the front door."""
        answer = self.post("/v1/sql", {"sql": sql})
        assert answer.status_code == 200, answer.text
        rows: list[list[Any]] = json.loads(answer.text)["output"][0]["records"]["rows"]
        return rows


@contextmanager
def served(database: MemoryDatabase | None = None, **options: Any) -> Iterator[Served]:
    server = Served(database or MemoryDatabase(), **options)
    try:
        yield server
    finally:
        server.close()
