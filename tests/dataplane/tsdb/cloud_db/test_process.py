"""Promises of real processes over the lab's S3: one owns, a killed one is replaced without any control plane, and a
stopped one hands over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataplane.contract.codec import to_json
from dataplane.contract.database import ColumnSpec, DatabaseConfig, DatabaseRole, DatabaseSpec, TableSpec
from dataplane.ledger.entry import Writer
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_state import ManifestState
from dataplane.tsdb.process.cloud import CloudProcess
from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, batch_key, signed, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid
from providers.base.ports import free_ports
from providers.base.registry import StoreAddress, open_store
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.conformance.stores import ObjectServer, start_object_server
from tests.dataplane.tsdb.cloud_import.bucket import Cloud, Edge

DATABASE = "fleet"
CAN = TableSchema(
    "can",
    (
        Column(1, "vehicle", ColumnType.STRING, ColumnRole.TAG, nullable=False),
        Column(2, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        Column(3, "speed", ColumnType.FLOAT32),
    ),
)
DECLARED = TableSpec(
    "can",
    tuple(ColumnSpec(c.name, c.type.value, c.role.value, c.nullable) for c in CAN.columns),
    {"append_mode": True, "wal": "always"},
)
WITHIN_S = 40.0


class Nodes:
    """Two node processes, and what the test sees of them."""

    def __init__(self, address: StoreAddress, folder: Path, key: str) -> None:
        self.address = address
        self.folder = folder
        self.key = key
        self.ports = dict(zip(("a", "b"), free_ports("127.0.0.1", 2, SystemRng()), strict=True))
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def configure(self, name: str, trust: dict[str, str]) -> Path:
        spec = DatabaseSpec(
            DATABASE, name, DatabaseRole.CLOUD, "z", (DECLARED,), http_port=self.ports[name], trust=trust, lease_ms=1000
        )  # fmt: skip
        peers = {other: f"127.0.0.1:{port}" for other, port in self.ports.items() if other != name}
        path = self.folder / f"{name}.json"
        ready = str(self.folder / f"{name}.ready")
        path.write_bytes(to_json(DatabaseConfig("cell", self.address, spec, str(self.folder / name), ready, peers)))
        return path

    def start(self, name: str) -> None:
        path = self.configure(name, {"car-1": self.key})
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "dataplane.tsdb.process", "--config", str(path)],
                stderr=log,
                env=dict(os.environ),
            )

    def word(self, name: str) -> dict[str, Any] | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.ports[name]}/v1/yunhe/node", timeout=1) as answer:
                return dict(json.loads(answer.read()))
        except OSError:
            return None

    def serving(self) -> str | None:
        return next((name for name in self.running if (self.word(name) or {}).get("serves")), None)

    def close(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()


def until(condition: Callable[[], Any], nodes: Nodes) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        logs = {path.name: path.read_text()[-1_500:] for path in nodes.folder.glob("*.log")}
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {logs}"
        time.sleep(0.2)
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s"
        await asyncio.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    with start_object_server("s3", tmp_path / "s3") as started:
        yield started


def read(
    address: StoreAddress, file: tuple[FileMeta, bytes] | None = None, batch: bytes = b"", number: int = 0
) -> ManifestState:
    """What the bucket's manifest says, after something was put into the bucket."""

    async def main() -> ManifestState:
        clock, rng = SystemClock(), SystemRng()
        store = open_store(address, clock=clock, rng=rng)
        try:
            await store.ensure_bucket()
            if file is not None:
                await store.put(sst_key(DATABASE, file[0].table, file[0].file_id), file[1])
            if batch:
                await store.put(batch_key(DATABASE, "car-1", number), batch, if_absent=True)
            manifest = Manifest(store, DATABASE, Writer("judge", rng.token()), clock=clock, rng=rng)
            await manifest.open()
            return manifest.state
        finally:
            await store.close()

    return asyncio.run(main())


def test_a_killed_owner_is_replaced_and_a_stopped_one_hands_over(server: ObjectServer, tmp_path: Path) -> None:
    address = server.address("yunhe-db")
    read(address)
    edge = Edge(Cloud(), "car-1")
    nodes = Nodes(address, tmp_path, edge.key.public_key().public_bytes_raw().hex())

    def ship(number: int) -> None:
        meta, data = edge.sst(first_ms=1_700_000_000_000 + number * 100)
        batch = ShippedBatch(DATABASE, "car-1", number, 0, (meta,), (CAN,))
        read(address, (meta, data), signed(batch, edge.key), number)

    def files() -> int:
        table = read(address).tables.get("can")
        return len(table.files) if table is not None else -1

    try:
        nodes.start("a")
        nodes.start("b")
        first = until(nodes.serving, nodes)
        until(lambda: files() == 0, nodes)
        ship(1)
        until(lambda: files() == 1, nodes)
        nodes.running[first].kill()
        nodes.running.pop(first).wait()
        began = time.monotonic()
        second = until(nodes.serving, nodes)
        took = time.monotonic() - began
        assert second != first and took < 20, took
        ship(2)
        until(lambda: files() == 2, nodes)
        nodes.start(first)
        until(lambda: nodes.word(first), nodes)
        nodes.running[second].send_signal(signal.SIGTERM)
        assert nodes.running.pop(second).wait(WITHIN_S) == 0
        assert until(nodes.serving, nodes) == first
        state = read(address)
        assert (state.owner, list(state.logs), len(state.tables["can"].files)) == (first, [state.epoch], 2)
        assert state.tables["can"].schema.options.append_mode
    finally:
        nodes.close()


def test_trust_and_peers_change_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        clock, rng = SystemClock(), SystemRng()
        bucket = MemoryBucket(World(clock, rng), "bucket")
        store = MemoryObjectStore(Process(bucket.world, "a"), bucket)
        edge = Edge(Cloud(), "car-1")
        meta, data = edge.sst()
        bucket.objects[sst_key(DATABASE, "can", meta.file_id)] = data
        batch = ShippedBatch(DATABASE, "car-1", 1, 0, (meta,), (CAN,))
        bucket.objects[batch_key(DATABASE, "car-1", 1)] = signed(batch, edge.key)
        spec = DatabaseSpec(DATABASE, "a", DatabaseRole.CLOUD, "z", (DECLARED,), lease_ms=200)
        config = DatabaseConfig("cell", StoreAddress("private", "b", "r"), spec, str(tmp_path), str(tmp_path / "ready"))
        process = CloudProcess(config, store, clock=clock, rng=rng)
        await process.start()
        try:
            await eventually(lambda: process.database.table("can") is not None)
            await asyncio.sleep(0.7)  # an importer that trusted the edge would have looked by now
            assert not process.database.moment()["can"].files
            key = edge.key.public_key().public_bytes_raw().hex()
            with pytest.raises(Invalid):
                process.changed(replace(config, spec=replace(spec, trust={"car-1": "no key"})))
            process.changed(replace(config, spec=replace(spec, trust={"car-1": key}), peers={"b": "there:1"}))
            await eventually(lambda: len(process.database.moment()["can"].files) == 1)
            assert process.node._peers.names == ["b"]
        finally:
            await process.close()
        assert (process.node.manifest.state.owner, process.node.manifest.state.logs) == ("", {})

    asyncio.run(main())
