"""Start and stop of the control plane's process."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from controlplane.reconcile.world import World
from controlplane.server.app import create_app
from controlplane.server.files import StateDir
from controlplane.server.host import LocalHost, LocalPlaces
from controlplane.server.service import Service
from controlplane.store.sqlite import SqliteStore
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Invalid
from providers.base.files import replace_file

SHUTDOWN_TIMEOUT_S = 3
"""Requests still open at SIGTERM get this long."""


def serve(root: Path, *, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 means the one used before, or else a free one.

    Raises:
        YunheError: it could not be started.
    """
    state_dir = StateDir(root.absolute())
    state_dir.create()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("azure", "botocore", "urllib3", "google", "oss2"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with _sole(state_dir), _listen(port or state_dir.port()) as listener:
        asyncio.run(_run(state_dir, listener))


class _Server(uvicorn.Server):
    """uvicorn's own signal handling ends the process by the signal it caught, before the store is closed; here the loop
    handles it.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._exit)
        yield

    def _exit(self) -> None:
        self.should_exit = True


@contextmanager
def _sole(state_dir: StateDir) -> Iterator[None]:
    """Two control planes of one state directory would write one store: the second is refused. The lock goes with the
    process.
    """
    with (state_dir.controlplane / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"a control plane of {state_dir.root} is running already", hint="see yunhe status"
            ) from error
        yield


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise Invalid(
            f"port {port}, where the control plane was, is taken by another program",
            hint="stop that program, or remove controlplane/port.json in the state directory to get another port",
        ) from error
    return listener


async def _run(state_dir: StateDir, listener: socket.socket) -> None:
    clock, rng = SystemClock(), SystemRng()
    port = int(listener.getsockname()[1])
    token = state_dir.make_token(rng)
    store = SqliteStore(state_dir.store, clock=clock)
    places = LocalPlaces(state_dir, lambda: world.desired().specs, clock=clock, rng=rng)
    world = World(store, places, LocalHost(state_dir), clock=clock, rng=rng)
    service = Service(store, world, clock=clock, rng=rng)
    service.doubt()
    config = uvicorn.Config(
        create_app(service, token=token),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
    server = _Server(config)
    try:
        async with asyncio.TaskGroup() as group:
            working = group.create_task(service.run())
            serving = group.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await clock.sleep_ms(5)
            if server.started:
                state_dir.keep_port(port)
                replace_file(state_dir.ready, json.dumps({"pid": os.getpid(), "port": port}).encode())
            await asyncio.wait({serving})
            working.cancel()
    finally:
        await service.close()
        store.close()
        if _is_mine(state_dir):
            state_dir.ready.unlink(missing_ok=True)


def _is_mine(state_dir: StateDir) -> bool:
    try:
        return bool(json.loads(state_dir.ready.read_text())["pid"] == os.getpid())
    except (OSError, ValueError, KeyError):
        return False
