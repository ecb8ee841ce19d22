"""A cloud database's node as a process: bucket, node, import and housekeeping while it owns, HTTP and the
wires of MySQL and Postgres.

    ready file ──► follows; serves reads ──► owns: declared tables, import, compaction ──► SIGTERM: hands over

Trust, topics and peers may change while it runs: its agent writes the configuration anew, and sends SIGHUP; all else of
it needs a new process. The ready file says whether this node owns the database, as long as that is so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dataplane.contract.assignment import WalMode
from dataplane.contract.codec import from_json
from dataplane.contract.database import DatabaseConfig, TopicSpec
from dataplane.ledger.entry import Writer
from dataplane.metrics.page import Page
from dataplane.tsdb.cloud.database import CloudDatabase
from dataplane.tsdb.cloud.flushing import TenureSettings
from dataplane.tsdb.cloud.housekeeping import Housekeeping
from dataplane.tsdb.cloud.ingest import Importer, ImportSettings
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.node import Node, NodeSettings
from dataplane.tsdb.cloud.peers import HttpPeers, answers
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.cloud.tenure import Tenure
from dataplane.tsdb.cloud.topic_imports import ClosableSource, TopicImports
from dataplane.tsdb.cloud.topics import TopicSettings
from dataplane.tsdb.process.metrics import CLOUD, CLOUD_CACHE, CLOUD_TOPIC, with_process, write_counters
from dataplane.tsdb.process.serving import certified, serving, users_of
from dataplane.tsdb.process.tables import columns_of, keep_to, options_of
from dataplane.tsdb.process.topic_client import client_config
from dataplane.tsdb.protocols.http import app
from dataplane.tsdb.protocols.mysql import MySqlServer
from dataplane.tsdb.protocols.postgres import PostgresServer
from dataplane.tsdb.query.engine import QueryEngine
from dataplane.tsdb.query.files import CachedFiles, CacheSettings
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, YunheError
from providers.base.files import replace_file
from providers.base.garbage import collect_less_often
from providers.base.objects import ObjectStore
from providers.base.registry import open_store

log = logging.getLogger("dataplane.tsdb.cloud")
DECLARED_TRIED_MAX = 20
DECLARED_PAUSE_MS = 2_000
"""Tries to make the tables that the configuration declares, and between two of them."""


def opened(topic: TopicSpec, partition: int) -> ClosableSource:
    """A partition over the network.

    Raises:
        Invalid: the topic's login cannot be read.
    """
    from dataplane.tsdb.cloud.kafka_source import KafkaSource  # a Kafka client, which few databases need

    return KafkaSource(client_config(topic), topic.topic, partition, skip_gone=topic.skip_gone)


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


class CloudProcess:
    """One node, put together."""

    def __init__(self, config: DatabaseConfig, store: ObjectStore, *, clock: Clock, rng: Rng) -> None:
        """Raises Invalid: a key, a table or a WAL mode that cannot be."""
        spec = config.spec
        if spec.wal is not WalMode.OBJECT:
            raise Invalid(f"a cloud database's WAL is in the bucket: mode {spec.wal.value!r} is not for it")
        for table in spec.tables:
            columns_of(table), options_of(table)
        self.trust = trusted(spec.trust)
        self._config = config
        self._store = store
        self._clock = clock
        self._rng = rng
        manifest = Manifest(store, spec.database, Writer(spec.node, rng.token()), clock=clock, rng=rng)
        self._files = SstFiles(store, spec.database, spec.node, clock=clock, rng=rng)
        self._addresses = dict(config.peers)
        self._peers = HttpPeers(self._addresses, timeout_ms=spec.lease_ms / 4, tls=spec.tls is not None)
        settings = NodeSettings(spec.lease_ms, TenureSettings(memory_bytes_max=spec.memory_bytes_max))
        self.node = Node(spec.node, manifest, self._files, self._peers, clock=clock, rng=rng, settings=settings)
        self.node.on_change = self._changed
        cache = CacheSettings(disk_bytes_max=spec.cache_bytes_max)
        self._cache = CachedFiles(store, spec.database, Path(config.folder) / "cache", settings=cache)
        self._queries = QueryEngine(self._cache)
        self.database = CloudDatabase(
            spec.database, self.node, clock=clock, queries=self._queries.query, addresses=self._addresses
        )
        self._topics = TopicImports(
            manifest,
            store,
            opened,
            node=spec.node,
            trust=self.trust,
            clock=clock,
            rng=rng,
            settings=TopicSettings(create_tables=spec.create_tables),
        )
        self._topics.follow(spec.topics)
        self._house: Housekeeping | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: dict[str, Any] | None = None

    def changed(self, config: DatabaseConfig) -> None:
        """Take over trust, topics and peers of a newer configuration.

        Raises:
            Invalid: a key that is none; nothing was changed.
        """
        trust = trusted(config.spec.trust)
        self.trust.clear()
        self.trust.update(trust)
        self._topics.follow(config.spec.topics)
        self._addresses.clear()
        self._addresses.update(config.peers)

    async def start(self) -> None:
        """Follow, and own the database when that falls to this node."""
        await self.node.start()

    def announce(self, ready: Mapping[str, Any]) -> None:
        """Write the ready file, now and whenever the owner changes."""
        self._ready = dict(ready)
        self._write_ready()

    def figures(self, page: Page) -> None:
        """For `/metrics`."""
        tenure, prefix = self.node.tenure, "yunhe_cloud_"
        who = {"cell": self._config.cell, "database": self._config.spec.database, "node": self._config.spec.node}
        page.gauge(prefix + "info", "Who the node is; the value is 1.", [(who, 1)])
        page.gauge(prefix + "owns", "1 on the node that owns the database, and takes its writes.", self.database.owns)
        page.gauge(
            prefix + "staleness_seconds",
            "How old what it answers with may be; 0 on the owner.",
            self.database.staleness_ms / 1000,
        )
        write_counters(page, prefix, CLOUD, tenure.counters if tenure is not None else None)
        write_counters(page, prefix, CLOUD_TOPIC, self._topics.counters)
        write_counters(page, prefix, CLOUD_CACHE, self._cache.counters)

    async def close(self) -> None:
        """Hand the database over, if it is this node's, and stop."""
        await self._keep_no_house()
        await self.node.close(hand_over=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peers.close()
        self._queries.close()
        self._cache.close()

    def _write_ready(self) -> None:
        if self._ready is not None:
            said = {**self._ready, "owner": self.database.owns}
            replace_file(Path(self._config.ready_file), json.dumps(said).encode())

    def _changed(self, tenure: Tenure | None) -> None:
        self._write_ready()
        task = asyncio.create_task(self._keep_no_house() if tenure is None else self._keep_house(tenure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_no_house(self) -> None:
        await self._topics.close()
        house, self._house = self._house, None
        if house is not None:
            await house.close()

    async def _keep_house(self, tenure: Tenure) -> None:
        await self._keep_no_house()
        importer = Importer(
            self.node.manifest,
            self._store,
            self.trust,
            clock=self._clock,
            rng=self._rng,
            settings=ImportSettings(create_tables=self._config.spec.create_tables),
            keeper=self._cache,
        )
        house = Housekeeping(tenure.epoch, self.node.manifest, self._files, clock=self._clock, importer=importer)
        self._house = house
        house.start()
        for _ in range(DECLARED_TRIED_MAX):
            refused = await keep_to(self.database, self._config.spec.tables)
            if not refused or self.node.tenure is not tenure:
                break
            log.warning("spec-not-followed", extra={"reasons": refused})
            await self._clock.sleep_ms(DECLARED_PAUSE_MS)
        if self.node.tenure is tenure:
            # Not before the declared tables are there: records of a table that is not are passed over.
            self._topics.start()


async def serve(config: DatabaseConfig, path: Path) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. `path`: where the configuration is, should it change.

    Raises:
        Invalid: the configuration cannot be. Unavailable: the bucket does not answer, or a port cannot be had.
    """
    clock, rng = SystemClock(), SystemRng()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    spec = config.spec
    users = users_of(spec)
    async with contextlib.AsyncExitStack() as stack:
        store = open_store(config.bucket, clock=clock, rng=rng)
        stack.push_async_callback(store.close)
        tls = await stack.enter_async_context(certified(spec, clock))
        process = CloudProcess(config, store, clock=clock, rng=rng)
        stack.push_async_callback(process.close)
        shown = {"database": spec.database, "node": spec.node}
        told = with_process(process.figures, clock)
        http: web.Application = app(process.database, clock=clock, users=users, figures=told, config=shown)
        answers(http, process.node.word)
        await process.start()
        port = await stack.enter_async_context(serving(http, spec.host, spec.http_port, tls))
        mysql = MySqlServer(process.database, spec.host, spec.mysql_port, users, tls=tls)
        await mysql.start()
        stack.push_async_callback(mysql.close)
        postgres = PostgresServer(process.database, spec.host, spec.postgres_port, users, tls=tls)
        await postgres.start()
        stack.push_async_callback(postgres.close)
        await stack.enter_async_context(_followed(path, process))
        ports = {"http_port": port, "mysql_port": mysql.port, "postgres_port": postgres.port}
        collect_less_often()
        process.announce({"pid": os.getpid(), **ports})
        log.info("serving", extra={"node": spec.node, **ports})
        await stop.wait()
    return 0


@contextlib.asynccontextmanager
async def _followed(path: Path, process: CloudProcess) -> AsyncIterator[None]:
    """Have the process told of a newer configuration on SIGHUP."""

    def follow() -> None:
        try:
            process.changed(from_json(DatabaseConfig, path.read_bytes()))
            log.info("configuration-followed")
        except (OSError, YunheError) as error:
            log.warning("configuration-not-followed", extra={"error": str(error)})

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, follow)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
