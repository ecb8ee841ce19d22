"""A cloud database's node as a process: bucket, node, import and housekeeping while it owns, HTTP and the MySQL wire.

    ready file ──► follows; serves reads ──► owns: declared tables, import, compaction ──► SIGTERM: hands over

Trust and peers may change while it runs (`CloudProcess.changed`); all else of the configuration needs a new process.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dataplane.contract.assignment import WalMode
from dataplane.contract.database import DatabaseConfig, TableSpec
from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.database import CloudDatabase, Moment, Queries
from dataplane.tsdb.cloud.flushing import TenureSettings
from dataplane.tsdb.cloud.housekeeping import Housekeeping
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.node import Node, NodeSettings
from dataplane.tsdb.cloud.peers import HttpPeers, answers
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.cloud.tenure import Tenure
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, MergeMode, TableOptions, WalSync
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable, YunheError
from providers.base.files import replace_file
from providers.base.objects import ObjectStore
from providers.base.registry import open_store

log = logging.getLogger("dataplane.tsdb.cloud")
Follow = Callable[[Callable[[DatabaseConfig], None]], Awaitable[None]]
DECLARED_TRIED_MAX = 20
"""Tries to make a table that the configuration declares."""
DECLARED_PAUSE_MS = 1_000


def trusted(keys: Mapping[str, str]) -> dict[str, Ed25519PublicKey]:
    """Edges' keys from their hex digits.

    Raises:
        Invalid: one is no Ed25519 key.
    """
    found = {}
    for edge, text in keys.items():
        try:
            found[edge] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        except ValueError as error:
            raise Invalid(f"the key of edge {edge!r} is not 64 hex digits of an Ed25519 key") from error
    return found


def declared(spec: TableSpec) -> tuple[list[Column], TableOptions]:
    """A table of the configuration.

    Raises:
        Invalid: a type, role or option that there is not.
    """
    kinds: dict[str, Callable[[Any], Any]] = {"merge_mode": MergeMode, "wal": WalSync}
    known = {field.name for field in fields(TableOptions)}
    if unknown := sorted(set(spec.options) - known):
        raise Invalid(f"table {spec.name!r} has an unknown option {unknown[0]!r}", hint=f"one of {sorted(known)}")
    try:
        columns = [
            Column(at, c.name, ColumnType(c.type), ColumnRole(c.role), c.nullable)
            for at, c in enumerate(spec.columns, 1)
        ]
        options: dict[str, Any] = {
            name: kinds[name](value) if name in kinds else value for name, value in spec.options.items()
        }
    except ValueError as error:
        raise Invalid(f"table {spec.name!r}: {error}") from error
    return columns, TableOptions(**options)


class CloudProcess:
    """One node, put together."""

    def __init__(self, config: DatabaseConfig, store: ObjectStore, *, clock: Clock, rng: Rng) -> None:
        """Raises Invalid: a key, a table or a WAL mode that cannot be."""
        spec = config.spec
        if spec.wal is not WalMode.OBJECT:
            raise Invalid(f"a cloud database's WAL is in the bucket: mode {spec.wal.value!r} is not for it")
        self.trust = trusted(spec.trust)
        self._config = config
        self._store = store
        self._clock = clock
        self._rng = rng
        self._declared = {table.name: declared(table) for table in spec.tables}
        manifest = Manifest(store, spec.database, Writer(spec.node, rng.token()), clock=clock, rng=rng)
        self._files = SstFiles(store, spec.database, spec.node, clock=clock, rng=rng)
        self._addresses = dict(config.peers)
        self._peers = HttpPeers(self._addresses, timeout_ms=spec.lease_ms / 4)
        settings = NodeSettings(spec.lease_ms, TenureSettings(memory_bytes_max=spec.memory_bytes_max))
        self.node = Node(spec.node, manifest, self._files, self._peers, clock=clock, rng=rng, settings=settings)
        self.node.on_change = self._changed
        queries, self._close_queries = _queries(config, store)
        self.database = CloudDatabase(spec.database, self.node, clock=clock, queries=queries, addresses=self._addresses)
        self._house: Housekeeping | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, config: DatabaseConfig) -> None:
        """Take over trust and peers of a newer configuration.

        Raises:
            Invalid: a key that is none; nothing was changed.
        """
        trust = trusted(config.spec.trust)
        self.trust.clear()
        self.trust.update(trust)
        self._addresses.clear()
        self._addresses.update(config.peers)

    async def start(self) -> None:
        """Follow, and own the database when that falls to this node."""
        await self.node.start()

    async def close(self) -> None:
        """Hand the database over, if it is this node's, and stop."""
        await self._keep_no_house()
        await self.node.close(hand_over=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peers.close()
        self._close_queries()

    def _changed(self, tenure: Tenure | None) -> None:
        task = asyncio.create_task(self._keep_no_house() if tenure is None else self._keep_house(tenure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_no_house(self) -> None:
        house, self._house = self._house, None
        if house is not None:
            await house.close()

    async def _keep_house(self, tenure: Tenure) -> None:
        await self._keep_no_house()
        await self._make_declared(tenure)
        if self.node.tenure is not tenure:
            return
        importer = Importer(
            self.node.manifest,
            self._store,
            self.trust,
            clock=self._clock,
            rng=self._rng,
            settings=ImportSettings(create_tables=self._config.spec.create_tables),
        )
        house = Housekeeping(tenure.epoch, self.node.manifest, self._files, clock=self._clock, importer=importer)
        self._house = house
        house.start()

    async def _make_declared(self, tenure: Tenure) -> None:
        for name, (columns, options) in self._declared.items():
            for _ in range(DECLARED_TRIED_MAX):
                if self.node.tenure is not tenure:
                    return
                try:
                    await self.database.create_table(name, columns, options, if_not_exists=True)
                    break
                except YunheError as error:
                    log.warning("table-not-made", extra={"table": name, "error": str(error)})
                await self._clock.sleep_ms(DECLARED_PAUSE_MS)


def _queries(config: DatabaseConfig, store: ObjectStore) -> tuple[Queries, Callable[[], None]]:
    try:
        engine = importlib.import_module("dataplane.tsdb.query.engine")
        files = importlib.import_module("dataplane.tsdb.query.files")
        scan = importlib.import_module("dataplane.tsdb.query.scan")
    except ModuleNotFoundError:

        async def none(select: str, tables: Mapping[str, Moment], now_ms: int) -> pa.Table:
            raise Unavailable("this build has no query engine")

        return none, lambda: None
    settings = files.CacheSettings(disk_bytes_max=config.spec.cache_bytes_max)
    reader = files.CachedFiles(store, config.spec.database, Path(config.folder) / "cache", settings=settings)
    queries = engine.QueryEngine(reader)

    async def ask(select: str, tables: Mapping[str, Moment], now_ms: int) -> pa.Table:
        views = {name: scan.TableView(m.schema, m.files, m.memory) for name, m in tables.items()}
        return await queries.query(select, views, now_ms)

    return ask, queries.close


def _protocols(database: CloudDatabase, clock: Clock) -> web.Application:
    try:
        http = importlib.import_module("dataplane.tsdb.protocols.http")
    except ModuleNotFoundError:
        return web.Application()
    app: web.Application = http.app(database, clock=clock)
    return app


async def serve(config: DatabaseConfig) -> int:
    """`run`, as an exit code."""
    await run(config)
    return 0


async def run(config: DatabaseConfig, follow: Follow | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `follow`: tells of newer configurations, until cancelled.

    Raises:
        Invalid: the configuration cannot be. Unavailable: the bucket does not answer, or a port cannot be had.
    """
    clock, rng = SystemClock(), SystemRng()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = open_store(config.bucket, clock=clock, rng=rng)
    process = CloudProcess(config, store, clock=clock, rng=rng)

    following = asyncio.ensure_future(follow(process.changed)) if follow is not None else None
    app = _protocols(process.database, clock)
    answers(app, process.node.word)
    runner = web.AppRunner(app)
    mysql: Any = None
    try:
        await process.start()
        await runner.setup()
        site = web.TCPSite(runner, config.spec.host, config.spec.http_port)
        try:
            await site.start()
        except OSError as error:
            raise Unavailable(f"port {config.spec.host}:{config.spec.http_port} cannot be had: {error}") from error
        ready: dict[str, Any] = {"pid": os.getpid(), "http_port": runner.addresses[0][1], "mysql_port": 0}
        try:
            wire = importlib.import_module("dataplane.tsdb.protocols.mysql")
        except ModuleNotFoundError:
            log.warning("no-mysql-wire")
        else:
            mysql = wire.MySqlServer(process.database, config.spec.host, config.spec.mysql_port)
            await mysql.start()
            ready["mysql_port"] = mysql.port
        replace_file(Path(config.ready_file), json.dumps(ready).encode())
        log.info("serving", extra=ready)
        await stop.wait()
    finally:
        if following is not None:
            following.cancel()
        if mysql is not None:
            await mysql.close()
        await process.close()
        await runner.cleanup()
        await store.close()
