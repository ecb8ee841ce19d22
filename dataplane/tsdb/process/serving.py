"""What both sides' processes need to serve: who may connect, and an HTTP application that listens."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from aiohttp import web

from dataplane.certificates import TlsInPlace
from dataplane.contract.database import DatabaseSpec
from providers.base.clock import Clock
from providers.base.credentials import read_credentials
from providers.base.errors import Invalid, Unavailable
from providers.base.hosts import is_loopback

SHUTDOWN_S = 10.0
"""How long requests under way may take at the end."""


def users_of(spec: DatabaseSpec) -> dict[str, str] | None:
    """Passwords by user; None: everybody may connect, from this machine.

    Raises:
        Invalid: they cannot be read, one is no text, or there are none and others reach the address.
    """
    if spec.users is None:
        if not is_loopback(spec.host):
            raise Invalid(f"without users everybody who reaches {spec.host} could read and write", hint="name users")
        return None
    users = read_credentials(spec.users)
    if not users or any(not isinstance(password, str) or not password for password in users.values()):
        raise Invalid(f"{spec.users} is no JSON object of users and their passwords")
    return dict(users)


@contextlib.asynccontextmanager
async def certified(spec: DatabaseSpec, clock: Clock) -> AsyncIterator[ssl.SSLContext | None]:
    """What all ports speak TLS with; its files are read again when they change. None: they speak in the clear.

    Raises:
        Invalid: a file cannot be read, or is not what it should be.
    """
    if spec.tls is None:
        yield None
        return
    tls = TlsInPlace(spec.tls, clock)
    fresh = asyncio.create_task(tls.keep_fresh())
    try:
        yield tls.context
    finally:
        fresh.cancel()
        await asyncio.gather(fresh, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(
    application: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port that it listens on. At the end requests under way are answered.

    Raises:
        Unavailable: the port cannot be had.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise Unavailable(f"port {host}:{port} cannot be listened on: {error.strerror}") from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
