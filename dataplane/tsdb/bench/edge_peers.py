"""Peers of the edge database, with the same rows in the same batches: SQLite, DuckDB, and Parquet as pyarrow writes it
by default, compressed with zstd.
"""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.tsdb.bench.signals import NARROW_FIELDS, narrow
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import TableOptions
from dataplane.tsdb.sst.reader import read_sst
from providers.base.clock import SystemClock


class Batches(Protocol):
    """`bench.edge.Drive`."""

    names: list[str]

    def write(self, first: int, rows: int) -> list[Rows]: ...

    def all(self, rows: int, a_write: int) -> Iterator[list[Rows]]: ...


_SQLITE = {"ts": "INTEGER PRIMARY KEY", "walk": "REAL", "noise": "REAL", "status": "INTEGER", "slow": "REAL"}


def sqlite(task: dict[str, Any], drive: Batches) -> dict[str, Any]:
    """WAL mode, synchronous NORMAL, a prepared executemany a table, a transaction a write; a table of the same columns
    each, of which the time is the row's key. `form` "points": one table of (signal, time, value) instead."""
    path = Path(task["folder"]) / "peer.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    points = task["form"] == "points"
    columns = drive.write(0, 1)[0].data.column_names
    if points:
        connection.execute("CREATE TABLE points (signal INTEGER, ts INTEGER, value REAL, PRIMARY KEY (signal, ts))")
    else:
        fields = ", ".join(f"{name} {_SQLITE[name.split('_')[0]]}" for name in columns)
        for name in drive.names:
            connection.execute(f"CREATE TABLE {name} ({fields})")
    marks = ", ".join("?" * len(columns))

    def prepared(write: list[Rows]) -> list[tuple[str, list[tuple[Any, ...]]]]:
        found = []
        for number, rows in enumerate(write):
            values = [_plain(column) for column in rows.data.columns]
            if points:
                stamps = values[0]
                long = [
                    (number * NARROW_FIELDS + at, ts, value)
                    for at, field in enumerate(values[1:])
                    for ts, value in zip(stamps, field, strict=True)
                ]
                found.append(("INSERT INTO points VALUES (?, ?, ?)", long))
            else:
                found.append((f"INSERT INTO {rows.table} VALUES ({marks})", list(zip(*values, strict=True))))
        return found

    clock, took_ms, cpu_s, rows = SystemClock(), 0.0, 0.0, 0
    for write in drive.all(task["rows"], task["a_write"]):
        statements = prepared(write)  # not counted: its application has rows, not columns
        rows += sum(len(each.data) for each in write)
        began_ms, cpu = clock.monotonic_ms(), _cpu_s()
        connection.execute("BEGIN")
        for statement, values in statements:
            connection.executemany(statement, values)
        connection.execute("COMMIT")
        took_ms, cpu_s = took_ms + clock.monotonic_ms() - began_ms, cpu_s + _cpu_s() - cpu
    began_ms, cpu = clock.monotonic_ms(), _cpu_s()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    took_ms, cpu_s = took_ms + clock.monotonic_ms() - began_ms, cpu_s + _cpu_s() - cpu
    return {"points": rows * NARROW_FIELDS, "seconds": took_ms / 1_000, "cpu_s": cpu_s, "bytes": path.stat().st_size}


def _plain(column: pa.ChunkedArray) -> list[Any]:
    found: list[Any] = column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()
    return found


def duck(task: dict[str, Any], drive: Batches) -> dict[str, Any]:
    """DuckDB on one thread: an insert from the Arrow batch a table, a transaction a write."""
    path = Path(task["folder"]) / "peer.duckdb"
    connection = duckdb.connect(str(path), config={"threads": 1})
    for rows in drive.write(0, 1):
        batch = rows.data
        connection.register("batch", batch)
        connection.execute(f"CREATE TABLE {rows.table} AS SELECT * FROM batch LIMIT 0")
    clock, count = SystemClock(), 0
    began_ms, cpu = clock.monotonic_ms(), _cpu_s()
    for write in drive.all(task["rows"], task["a_write"]):
        connection.execute("BEGIN")
        for rows in write:
            connection.register("batch", rows.data)
            connection.execute(f"INSERT INTO {rows.table} SELECT * FROM batch")
            count += len(rows.data)
        connection.execute("COMMIT")
    connection.execute("CHECKPOINT")
    connection.close()
    took_s, cpu_s = (clock.monotonic_ms() - began_ms) / 1_000, _cpu_s() - cpu
    return {"points": count * NARROW_FIELDS, "seconds": took_s, "cpu_s": cpu_s, "bytes": path.stat().st_size}


def parquet(task: dict[str, Any], drive: Batches) -> dict[str, Any]:
    """Each of our files under `ours` again, as pyarrow writes its rows by default, with zstd: the floats that the
    application wrote and reads, whatever they are in our file."""
    table = narrow("peer", TableOptions())
    folder, size, ours, files = Path(task["folder"]), 0, 0, 0
    for path in sorted(Path(task["ours"]).glob("*.parquet")):
        rows = read_sst(path.read_bytes(), table)
        pq.write_table(rows, folder / "peer.parquet", compression="zstd")
        size += (folder / "peer.parquet").stat().st_size
        ours += path.stat().st_size
        files += 1
    return {"bytes": size, "ours_bytes": ours, "files": files}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


PEERS: dict[str, Callable[[dict[str, Any], Batches], dict[str, Any]]] = {
    "sqlite": sqlite,
    "duckdb": duck,
    "parquet": parquet,
}
