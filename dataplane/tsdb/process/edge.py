"""The edge process: the database on its flash, HTTP, the ring's socket, and the upload to the cloud.

In its folder: the store's files, `edge.key`, `ring.sock`. It ends by itself when its log or catalog is in doubt: what
is on the flash is found out by opening it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.contract.codec import from_json
from dataplane.contract.database import DatabaseConfig
from dataplane.metrics.page import Page
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.keys import edge_key, public_hex
from dataplane.tsdb.edge.opening import opened
from dataplane.tsdb.edge.ship import Shipper
from dataplane.tsdb.edge.ship_settings import UploadSettings
from dataplane.tsdb.process.metrics import EDGE, EDGE_RING, EDGE_UPLOAD, with_process, write_counters
from dataplane.tsdb.process.serving import certified, serving, users_of
from dataplane.tsdb.process.tables import keep_to
from dataplane.tsdb.protocols.http import app
from dataplane.tsdb.ring.server import RingServer, socket_path
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, YunheError
from providers.base.files import replace_file
from providers.base.garbage import collect_less_often
from providers.base.registry import open_store

if TYPE_CHECKING:
    from dataplane.tsdb.process.topic_upload import TopicUpload

log = logging.getLogger(__name__)

LOOK_MS = 1_000
"""Between two looks at whether the store is in doubt."""


async def serve(config: DatabaseConfig, path: Path) -> int:
    """Serve until told to stop, or until the store is in doubt; returns the exit code. `path`: where the configuration
    is; of an upload by a topic, key and brokers are taken over at SIGHUP.

    Raises:
        YunheError: it cannot start.
    """
    clock, rng = SystemClock(), SystemRng()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    spec, folder = config.spec, Path(config.folder)
    users = users_of(spec)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            opened(
                folder,
                spec.node,
                clock=clock,
                rng=rng,
                memory_bytes_max=spec.memory_bytes_max,
                uploads=spec.upload is not None,
            )
        )
        key = edge_key(DiskFiles(folder))
        for sentence in await keep_to(database, spec.tables):
            log.error("spec-not-followed", extra={"reason": sentence})
        shipper = await stack.enter_async_context(_shipping(config, path, database, key, clock, rng))
        ring = await stack.enter_async_context(_ring(socket_path(folder), database, clock))

        def told(page: Page) -> None:
            write_figures(page, config, database, ring, shipper)

        shown = {"database": spec.database, "node": spec.node}
        http = app(database, clock=clock, users=users, figures=with_process(told, clock), config=shown)
        tls = await stack.enter_async_context(certified(spec, clock))
        port = await stack.enter_async_context(serving(http, spec.host, spec.http_port, tls))
        collect_less_often()
        public = public_hex(key.public_key())
        ready = {"pid": os.getpid(), "http_port": port, "public_key": public}
        replace_file(Path(config.ready_file), json.dumps(ready).encode())
        log.info("serving", extra={"node": spec.node, "port": port, "tables": len(database.tables())})
        return await _until_stopped(database, stop, clock)


async def _until_stopped(database: EdgeDatabase, stop: asyncio.Event, clock: Clock) -> int:
    stopped = asyncio.ensure_future(stop.wait())
    while not stopped.done():
        if why := database.in_doubt:
            log.error("stopping", extra={"reason": why})
            stopped.cancel()
            return 1
        tick = asyncio.ensure_future(clock.sleep_ms(LOOK_MS))
        await asyncio.wait({stopped, tick}, return_when=asyncio.FIRST_COMPLETED)
        tick.cancel()
    return 0


@contextlib.asynccontextmanager
async def _shipping(
    config: DatabaseConfig, path: Path, database: EdgeDatabase, key: Ed25519PrivateKey, clock: Clock, rng: Rng
) -> AsyncIterator[Shipper | TopicUpload | None]:
    upload = config.spec.upload
    if upload is None:
        yield None
        return
    if upload.via is not None:
        from dataplane.tsdb.process.topic_upload import TopicUpload  # a Kafka client, which few edges need

        by_topic = TopicUpload(database, key, clock=clock, rng=rng)
        try:
            await by_topic.follow(config.spec)
            async with _followed(path, by_topic):
                yield by_topic
        finally:
            await by_topic.close()
        return
    if upload.bucket is None:
        raise Invalid("an upload has neither a bucket nor a topic")
    bucket = open_store(upload.bucket, clock=clock, rng=rng)
    try:
        shipper = Shipper(database, bucket, key, UploadSettings.of(upload), clock=clock, rng=rng)
        await shipper.start()
        try:
            yield shipper
        finally:
            await shipper.close()
    finally:
        await bucket.close()


@contextlib.asynccontextmanager
async def _followed(path: Path, upload: TopicUpload) -> AsyncIterator[None]:
    """Have the upload told of a newer configuration on SIGHUP, one after the other."""
    told = asyncio.Event()

    async def follow() -> None:
        while True:
            await told.wait()
            told.clear()
            try:
                await upload.follow(from_json(DatabaseConfig, path.read_bytes()).spec)
                log.info("configuration-followed")
            except (OSError, YunheError) as error:
                log.warning("configuration-not-followed", extra={"error": str(error)})

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(follow())
    loop.add_signal_handler(signal.SIGHUP, told.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _ring(path: Path, database: EdgeDatabase, clock: Clock) -> AsyncIterator[RingServer | None]:
    """Without it the database serves by HTTP alone: a path that is too long for a socket is no reason to lose rows."""
    ring = RingServer(database, path, clock=clock)
    try:
        await ring.start()
    except YunheError as error:
        log.error("no-ring", extra={"reason": str(error)})
        yield None
        return
    try:
        yield ring
    finally:
        await ring.close()


def write_figures(
    page: Page,
    config: DatabaseConfig,
    database: EdgeDatabase,
    ring: RingServer | None,
    upload: Shipper | TopicUpload | None,
) -> None:
    """Add the edge's families to `/metrics`."""
    prefix = "yunhe_edge_"
    who = {"cell": config.cell, "database": config.spec.database, "node": config.spec.node}
    page.gauge(prefix + "info", "Who the edge is; the value is 1.", [(who, 1)])
    write_counters(page, prefix, EDGE, database.counters)
    page.gauge(prefix + "memory_bytes", "Rows in memory.", database.memory_bytes)
    write_counters(page, prefix, EDGE_RING, ring.counters if ring is not None else None)
    write_counters(page, prefix, EDGE_UPLOAD, upload.counters if upload is not None else None)
