"""What `yunhe bench edge` measures, as a program: `python -m dataplane.tsdb.bench.edge`, with the task as one JSON line
on standard input; it says what it found as one JSON object. Each task is a process of its own.

    ingest   300 tables of ten signals, as fast as they are taken, to the last flush
    steady   the same at a steady rate, with paced flushes: processor by the second, memory
    idle     what this program's imports take of memory, nothing done, and what the rows to be written do
    lines    line protocol over HTTP, against the edge's process (`edge_lines.py`)
    sqlite, duckdb, parquet    the same rows in the same batches, by others (`edge_peers.py`)

Rows come as one columnar batch a table and write, as the ring's reader hands them over; making these batches is counted
against the database.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataplane.tsdb.bench.edge_lines import lines
from dataplane.tsdb.bench.edge_peers import PEERS
from dataplane.tsdb.bench.signals import NARROW_FIELDS, narrow, narrow_fields, times
from dataplane.tsdb.edge.database import EdgeDatabase, EdgeSettings
from dataplane.tsdb.edge.files import DiskFiles
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.edge.worker import ThreadWorker
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import TableOptions, WalSync
from providers.base.clock import SystemClock, SystemRng
from providers.base.loops import run_loop

TABLES = 300
KINDS = 12
"""Of drives from which tables have their values, each from another place on: no two write the same at once, which a
log that is packed would make nothing of."""
POOL_ROWS = 4_096


class Drive:
    """The rows of a drive, batch by batch: the same for the same seed."""

    def __init__(self, tables: int = TABLES, *, exact: bool = False) -> None:
        """`exact`: as of `narrow_fields`."""
        self.names = [f"unit_{at:03}" for at in range(tables)]
        self._pool = [narrow_fields(seed, 2 * POOL_ROWS, exact=exact) for seed in range(KINDS)]
        self._shift = POOL_ROWS * KINDS // (tables + KINDS)
        self._batches: list[pa.RecordBatch] = []
        self._first = -1
        """Row of the drive that `_batches` begin with."""

    def write(self, first: int, rows: int) -> list[Rows]:
        """Rows [first, first + rows) of all tables; they do not run over the pool's end."""
        at = first % POOL_ROWS
        if first - at != self._first:
            self._first = first - at
            stamps = times(self._first, POOL_ROWS)
            self._batches = [self._table(number, stamps) for number in range(len(self.names))]
        return [
            Rows(name, pa.Table.from_batches([self._batches[number].slice(at, rows)]))
            for number, name in enumerate(self.names)
        ]

    def _table(self, number: int, stamps: pa.Array) -> pa.RecordBatch:
        fields, first = self._pool[number % KINDS], number // KINDS * self._shift
        values = [each.slice(first, POOL_ROWS) for each in fields.values()]
        return pa.RecordBatch.from_arrays([stamps, *values], names=["ts", *fields])

    def all(self, rows: int, a_write: int) -> Iterator[list[Rows]]:
        """`rows` of all tables, `a_write` each time or, at the pool's end, fewer."""
        first = 0
        while first < rows:
            count = min(a_write, rows - first, POOL_ROWS - first % POOL_ROWS)
            yield self.write(first, count)
            first += count


async def _opened(
    folder: Path, drive: Drive, wal: str, memory_bytes_max: int, *, exact: bool = False
) -> tuple[EdgeDatabase, ThreadWorker]:
    worker = ThreadWorker()
    store = EdgeStore(DiskFiles(folder), "bench", SystemRng(), memory_bytes_max=memory_bytes_max)
    database = EdgeDatabase(store, clock=SystemClock(), worker=worker, settings=EdgeSettings())
    await database.start()
    options = TableOptions(append_mode=True, wal=WalSync(wal))
    for name in drive.names:
        await database.create_table(name, narrow(name, options, exact=exact).columns, options)
    return database, worker


async def ingest(task: dict[str, Any]) -> dict[str, Any]:
    """`rows` of each table, `a_write` a write."""
    exact, clock = task.get("exact", False), SystemClock()
    drive = Drive(exact=exact)
    database, worker = await _opened(Path(task["folder"]), drive, task["wal"], task["memory_bytes_max"], exact=exact)
    gc.collect()
    began_ms, cpu = clock.monotonic_ms(), _cpu_s()
    for write in drive.all(task["rows"], task["a_write"]):
        await database.write(write)
    await database.flush()
    took_s, cpu_s = (clock.monotonic_ms() - began_ms) / 1_000, _cpu_s() - cpu
    found = _counted(database)
    await database.close()
    worker.close()
    made = _driver_s(drive, task["rows"], task["a_write"])
    return {**found, "seconds": took_s, "cpu_s": cpu_s, "driver_s": made, "bytes": _bytes_in(Path(task["folder"]))}


async def steady(task: dict[str, Any]) -> dict[str, Any]:
    """`points_per_s` for `seconds`, after `warm_s` of the same."""
    drive, clock = Drive(), SystemClock()
    gc.collect()
    before = resident_bytes()
    database, worker = await _opened(Path(task["folder"]), drive, task["wal"], task["memory_bytes_max"])
    period_ms = task["period_ms"]
    rows = round(task["points_per_s"] * period_ms / 1_000 / (TABLES * NARROW_FIELDS))
    seconds: list[float] = []
    resident = resident_bytes()
    first, late_ms, began_ms, cpu, second = 0, 0.0, clock.monotonic_ms(), _cpu_s(), 0
    warm = task["warm_s"]
    points = 0
    measured_s = 0.0
    while second < warm + task["seconds"]:
        count = min(rows, POOL_ROWS - first % POOL_ROWS)
        await database.write(drive.write(first, count))
        first += count
        if second >= warm:
            points += count * TABLES * NARROW_FIELDS
        elapsed_ms = clock.monotonic_ms() - began_ms
        due_ms = first / rows * period_ms
        late_ms = max(late_ms, elapsed_ms - due_ms)
        if due_ms > elapsed_ms:
            await clock.sleep_ms(due_ms - elapsed_ms)
        if (clock.monotonic_ms() - began_ms) // 1_000 > second:
            now = _cpu_s()
            if second >= warm:
                seconds.append(now - cpu)
                measured_s += now - cpu
            cpu, second = now, second + 1
            resident = max(resident, resident_bytes())
    found = _counted(database)
    await database.close()
    worker.close()
    return {
        **found,
        "points_per_s": points / task["seconds"],
        "cpu_s": measured_s,
        "points_measured": points,
        "cpu_by_second": [round(each, 3) for each in seconds],
        "driver_s_a_second": _driver_s(drive, rows * 20, rows) / 20 * 1_000 / period_ms,
        "late_ms": late_ms,
        "resident_bytes": resident,
        "resident_before_bytes": before,
    }


async def idle(task: dict[str, Any]) -> dict[str, Any]:
    """Nothing but the imports; and what the rows that are to be written take, which are the benchmark's own."""
    bare = resident_bytes()
    drive = Drive()
    gc.collect()
    return {"resident_bytes": bare, "drive_bytes": resident_bytes() - bare, "tables": len(drive.names)}


def _counted(database: EdgeDatabase) -> dict[str, Any]:
    counters = database.counters
    return {
        "points": counters.rows * NARROW_FIELDS,
        "row_bytes": counters.row_bytes,
        "log_bytes": counters.log_bytes,
        "flushes": counters.flushes,
        "syncs": counters.syncs,
        "file_bytes": counters.file_bytes,
    }


def _driver_s(drive: Drive, rows: int, a_write: int) -> float:
    """What making the batches alone takes."""
    cpu = _cpu_s()
    for _ in drive.all(rows, a_write):
        pass
    return _cpu_s() - cpu


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_bytes() -> int:
    """Of this process, in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _bytes_in(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir())


def main() -> None:
    """See the module."""
    task = json.loads(sys.stdin.readline())
    if task["part"] == "lines":
        found = lines(task, Drive())
    elif task["part"] in PEERS:
        found = PEERS[task["part"]](task, Drive())
    else:
        found = run_loop({"ingest": ingest, "steady": steady, "idle": idle}[task["part"]](task))
    print(json.dumps({**found, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
