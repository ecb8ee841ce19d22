"""The volume daemon of one emulated cloud as a process; what it does is in `volumes_daemon.py`.

python -m providers.lab.volumes_server --root DIR --listen unix:PATH|tcp:127.0.0.1:PORT --ready-file FILE
[--limits aliyun|azure|gcp|aws] [--credentials FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from providers.base.clock import Clock, SystemClock
from providers.base.errors import Corrupt, Invalid, OutcomeUnknown
from providers.base.files import replace_file
from providers.base.loops import run_loop
from providers.lab import volumes_protocol as wire
from providers.lab.gate import Gate
from providers.lab.volumes_daemon import Daemon
from providers.lab.volumes_storage import (
    LIMITS,
    UNLIMITED,
    Limits,
)

SEVERED_LOOK_MS = 100
"""How often it is looked whether a zone's loss has begun."""


def _lock_root(root: Path) -> int:
    """Held as long as the process lives: two daemons over one folder would each believe in a reservation of its own."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Invalid(f"the folder {root} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Invalid(f"another volume daemon already serves {root}") from error
    return descriptor


def _bind(address: str) -> tuple[socket.socket, str]:
    where = wire.parse_address(address)
    family = socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(where, Path):
            if where.is_socket():
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    if probe.connect_ex(str(where)) == 0:
                        raise OSError(0, "in use")
                where.unlink()  # left by a daemon that was killed
            bound.bind(str(where))
            return bound, address
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        return bound, f"tcp:{where[0]}:{bound.getsockname()[1]}"
    except OSError as error:
        bound.close()
        raise Invalid(f"{address} cannot be listened on: {error.strerror or error}") from error


def _write_ready(path: Path, listen: str) -> None:
    try:
        replace_file(path, json.dumps({"pid": os.getpid(), "listen": listen}).encode())
    except OSError as error:
        raise Invalid(f"the ready file {path} cannot be written: {error.strerror}") from error


async def serve(
    root: Path, listen: str, ready_file: Path, limits: Limits, clock: Clock, provider: str, admin_token: str | None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        Invalid, Corrupt: it cannot start; one sentence says why.
    """
    lock = _lock_root(root)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemons: list[Daemon] = []
    gate = Gate(
        provider,
        clock=clock,
        admin_token=admin_token,
        folder=root,
        standing=lambda: daemons[0].standing() if daemons else {},
        changed=lambda: daemons[0].cut_severed(),
    )
    daemon = Daemon(root, limits, clock, gate)
    daemons.append(daemon)
    gate.observe()
    bound, address = _bind(listen)
    loop = asyncio.get_running_loop()
    if bound.family == socket.AF_UNIX:
        server: asyncio.Server = await loop.create_unix_server(daemon.connection, sock=bound)
    else:
        server = await loop.create_server(daemon.connection, sock=bound)
    _write_ready(ready_file, address)
    watching = asyncio.gather(gate.keeping(), _watch(daemon, clock))
    await stop.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    gate.keep()
    server.close()
    await daemon.stop()
    where = wire.parse_address(address)
    for path in (ready_file, where if isinstance(where, Path) else None):
        if path is not None:
            path.unlink(missing_ok=True)
    os.close(lock)


async def _watch(daemon: Daemon, clock: Clock) -> None:
    """A zone's loss may begin later than it was asked for."""
    while True:
        await clock.sleep_ms(SEVERED_LOOK_MS)
        daemon.cut_severed()


def _admin_token(path: Path | None) -> str | None:
    """Raises:
    Invalid: the file cannot be read.
    """
    if path is None:
        return None
    try:
        plain = json.loads(path.read_bytes())
        token = plain.get("admin_token")
    except (OSError, ValueError, AttributeError) as error:
        raise Invalid(f"credentials file {path} cannot be read: {error}") from error
    return None if token is None else str(token)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="volumes_server", description="the volume daemon of one emulated cloud")
    parser.add_argument("--root", type=Path, required=True, help="folder that holds the volumes")
    parser.add_argument("--listen", required=True, help="unix:PATH or tcp:127.0.0.1:PORT (0 picks a free one)")
    parser.add_argument("--ready-file", type=Path, required=True, help="written, as JSON, once it serves")
    parser.add_argument("--limits", choices=sorted(LIMITS), help="whose documented limits hold; none if left out")
    parser.add_argument("--credentials", type=Path, help="JSON file whose admin_token lets in who sets faults")
    given = parser.parse_args(argv)
    limits = LIMITS[given.limits] if given.limits else UNLIMITED
    provider = given.limits or "private"
    try:
        token = _admin_token(given.credentials)
        run_loop(serve(given.root, given.listen, given.ready_file, limits, SystemClock(), provider, token))
    except (Invalid, Corrupt, OutcomeUnknown) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
