"""An HTTP application, listening."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from providers.base.errors import Unavailable

SHUTDOWN_S = 10.0
"""How long requests under way may take at the end."""


@contextlib.asynccontextmanager
async def serving(application: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """The port that it listens on. At the end requests under way are answered.

    Raises:
        Unavailable: the port cannot be had.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise Unavailable(f"port {host}:{port} cannot be listened on: {error.strerror}") from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
