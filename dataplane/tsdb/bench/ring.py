"""What the ring does, as a program: `python -m dataplane.tsdb.bench.ring`, with the task as one JSON line on standard
input; it says what it found as one JSON object.

    writers (processes) ──► rings ──► reader (this process) ──► a database that counts | the edge's store in a folder

Points are fields: tags and times are not counted. The reader's processor time is its whole process's, so that points by
it are points a second and core. Task: `seconds`, and if wanted `writers`, `tables`, `fields`, `rows` (a record),
`points_per_s` (all writers together; left out: as fast as it goes), `database` (`null`, `store` or `edge`), `folder`,
`turn_ms`, `wal`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.opening import opened
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.engine import Database, Rows
from dataplane.tsdb.ring.client import RingTable, RingWriter
from dataplane.tsdb.ring.server import RingServer, RingSettings
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema, WalSync
from providers.base.clock import SystemClock, SystemRng, sleep_blocking_ms
from providers.base.errors import Full
from providers.base.loops import run_loop

TURN_ROWS = 200
"""Rows of one table that a writer has at hand, to be written again and again under new times."""
PACE_MS = 20


class NullDatabase:
    """Of `Database` what the ring uses; it counts rows."""

    def __init__(self) -> None:
        self.schemas: dict[str, TableSchema] = {}
        self.rows = 0

    def table(self, name: str) -> TableSchema | None:
        return self.schemas.get(name)

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        return self.schemas.setdefault(name, TableSchema(name, tuple(columns), options=options))

    async def write(self, rows: Sequence[Rows]) -> int:
        count = sum(len(its.data) for its in rows)
        self.rows += count
        return count

    async def flush(self) -> None:
        """Into files, what is in none yet."""


class StoreDatabase(NullDatabase):
    """The same over the edge's store: rows go through log and memtable into files, one call after the other."""

    def __init__(self, folder: Path, wal: WalSync) -> None:
        super().__init__()
        self._store = EdgeStore(DiskFiles(folder), "bench", SystemRng())
        self._wal = wal
        self._worker = ThreadPoolExecutor(1)

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        schema = await super().create_table(name, columns, TableOptions(append_mode=True, wal=self._wal))
        if name not in {table.name for table in self._store.tables}:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._worker, self._store.create_table, schema)
        return schema

    async def write(self, rows: Sequence[Rows]) -> int:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._take, rows)
        return await super().write(rows)

    async def flush(self) -> None:
        for table in self._store.pending():
            await asyncio.get_running_loop().run_in_executor(self._worker, self._store.flush, table)

    def _take(self, rows: Sequence[Rows]) -> None:
        for its in rows:
            self._store.write(its.table, its.data)
            for table in self._store.due():
                self._store.flush(table)
        if self._wal is WalSync.ALWAYS:
            self._store.sync()


class WholeDatabase(NullDatabase):
    """The edge database itself, as its process has it, each table's writes acked by `wal`."""

    def __init__(self, database: EdgeDatabase, wal: WalSync) -> None:
        super().__init__()
        self._database = database
        self._options = TableOptions(append_mode=True, wal=wal)

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        await super().create_table(name, columns, options)
        return await self._database.create_table(name, columns, self._options, if_not_exists=True)

    async def write(self, rows: Sequence[Rows]) -> int:
        await self._database.write(rows)
        return await super().write(rows)

    async def flush(self) -> None:
        await self._database.flush()


def write(task: dict[str, Any], which: int) -> None:
    """A writer: its share of the tables, round and round, until the time is over."""
    clock, count = SystemClock(), task["rows"]
    rng = np.random.default_rng(which)
    names = [f"t{at:03}" for at in range(task["tables"]) if at % task["writers"] == which]
    columns = [
        Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        *(Column(2 + at, f"f{at}", ColumnType.FLOAT64) for at in range(task["fields"])),
    ]
    pace = task["points_per_s"] / task["writers"] / 1_000 / task["fields"]
    with RingWriter.connect(Path(task["path"])) as writer:
        tables = [writer.declare(name, columns, create=True) for name in names]
        values = np.round(np.cumsum(rng.integers(-2, 3, (task["fields"], TURN_ROWS)), axis=1) * 0.05, 2)
        began_ms, written = clock.monotonic_ms(), 0
        while (spent := clock.monotonic_ms() - began_ms) < task["seconds"] * 1_000:
            if pace and written > spent * pace:
                sleep_blocking_ms(PACE_MS)
                continue
            for table in tables:
                _write(table, values, written, count)
                written += count
        writer.flush(wait_ms=60_000)
    print(json.dumps({"rows": written, "ms": clock.monotonic_ms() - began_ms}))


def _write(table: RingTable, values: np.ndarray, at: int, count: int) -> None:
    begin = at % (values.shape[1] - count + 1)
    if count == 1:
        table.write_row((at, *values[:, begin].tolist()), wait_ms=60_000)
        return
    arrays = [pa.array(np.arange(at, at + count), pa.timestamp("ms"))]
    arrays += [pa.array(column[begin : begin + count]) for column in values]
    table.write(pa.RecordBatch.from_arrays(arrays, names=[c.name for c in table.columns]), wait_ms=60_000)


async def measure(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What came through, and what it cost this process."""
    wal = WalSync(task["wal"])
    if task["database"] == "edge":
        async with opened(folder / "flash", "bench", clock=SystemClock(), rng=SystemRng()) as whole:
            return await _measure(task, folder, WholeDatabase(whole, wal))
    if task["database"] == "store":
        return await _measure(task, folder, StoreDatabase(folder / "flash", wal))
    return await _measure(task, folder, NullDatabase())


async def _measure(task: dict[str, Any], folder: Path, database: NullDatabase) -> dict[str, Any]:
    task = {**task, "path": str(folder / "ring.sock")}
    settings = RingSettings(turn_ms=task["turn_ms"])
    server = RingServer(cast(Database, database), Path(task["path"]), clock=SystemClock(), settings=settings)
    await server.start()
    clock = SystemClock()
    began = resource.getrusage(resource.RUSAGE_SELF)
    began_ms = clock.monotonic_ms()
    found = await asyncio.gather(*(_writer(task, which) for which in range(task["writers"])))
    took_s = max(its["ms"] for its in found) / 1_000
    await server.close()
    await database.flush()  # which belongs to what the rows cost
    ended = resource.getrusage(resource.RUSAGE_SELF)
    if database.rows != sum(its["rows"] for its in found):
        raise Full(f"{database.rows} rows arrived of {sum(its['rows'] for its in found)}")
    cpu_s = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    points = database.rows * task["fields"]
    return {
        "points": points,
        "points_per_s": round(points / took_s),
        "points_per_core_s": round(points / cpu_s),
        "reader_core": round(cpu_s / took_s, 3),
        "records": server.counters.records,
        "turns": server.counters.turns,
        "seconds": round(took_s, 2),
        "wall_s": round((clock.monotonic_ms() - began_ms) / 1_000, 2),
        "load": os.getloadavg()[0],
        "waits": server.counters.waits,
    }


async def _writer(task: dict[str, Any], which: int) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "dataplane.tsdb.bench.ring",
        str(which),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(task).encode() + b"\n")
    return cast(dict[str, Any], json.loads(out))


DEFAULTS = {
    "writers": 2,
    "tables": 300,
    "fields": 10,
    "rows": 1,
    "points_per_s": 0,
    "database": "null",
    "turn_ms": 200,
    "wal": "off",
    "seconds": 5,
}


def main() -> None:
    """See the module."""
    task = {**DEFAULTS, **json.loads(sys.stdin.readline())}
    if len(sys.argv) > 1:
        write(task, int(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(dir=task.get("folder")) as folder:
        found = run_loop(measure(task, Path(folder)))
    json.dump({**task, **{k: v for k, v in found.items() if not (isinstance(v, float) and math.isnan(v))}}, sys.stdout)


if __name__ == "__main__":
    main()
