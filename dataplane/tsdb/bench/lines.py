"""What line protocol costs, as a program: `python -m dataplane.tsdb.bench.lines`, with the task as one JSON line on
standard input, `{"lines": 5000, "fields": 10, "tables": [1, 300], "rounds": 30}`; it says what it found as one JSON
object. A point is one field's value.

    parse   bodies to columns, in this process
    write   the same to rows of tables, given to a database that drops them
    http    the same over HTTP: one client on loopback, a process of its own, a request after the other

Of `write` and `http` the database takes no time, so that what is left is what the protocol costs. Figures are medians
of rounds; `core` is by the processor's time of this process, all its threads together: what one core would do.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from aiohttp import web

from dataplane.tsdb.engine import Rows
from dataplane.tsdb.protocols.http import app
from dataplane.tsdb.protocols.influx import InfluxWriter
from dataplane.tsdb.protocols.line_batches import LineReader
from dataplane.tsdb.schema.tables import Column, TableOptions, TableSchema, with_columns
from providers.base.clock import SystemClock
from providers.base.errors import Internal, Unavailable
from providers.base.loops import run_loop

EPOCH_NS = 1_760_000_000_000_000_000
WARM_ROUNDS = 3
"""Not counted: shapes are learned, pages are touched."""


class NullDatabase:
    """Has tables, and drops rows."""

    name = "null"
    role = "edge"

    def __init__(self) -> None:
        self._tables: dict[str, TableSchema] = {}
        self.rows = 0

    def tables(self) -> Sequence[TableSchema]:
        return list(self._tables.values())

    def table(self, name: str) -> TableSchema | None:
        return self._tables.get(name)

    async def create_table(
        self, name: str, columns: Sequence[Column], options: TableOptions, *, if_not_exists: bool = False
    ) -> TableSchema:
        return self._tables.setdefault(name, TableSchema(name, tuple(columns), options=options))

    async def add_columns(self, name: str, columns: Sequence[Column]) -> TableSchema:
        self._tables[name] = with_columns(self._tables[name], tuple(columns))
        return self._tables[name]

    async def write(self, rows: Sequence[Rows]) -> int:
        count = sum(len(one.data) for one in rows)
        self.rows += count
        return count

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(f"the null database has no {name}")


def body(lines: int, fields: int, tables: int, seed: int) -> bytes:
    """A batch: its lines go round the tables, their fields are six floats of ten, the others whole numbers."""
    rng = random.Random(seed)
    made = []
    for at in range(lines):
        values = (
            f"signal_{n}={rng.uniform(0, 200):.3f}" if n % 10 < 6 else f"signal_{n}={rng.randrange(4_096)}i"
            for n in range(fields)
        )
        table = at % tables
        made.append(f"can_{table},vehicle=car-{table % 20} {','.join(values)} {EPOCH_NS + seed * 10**9 + at * 1_000}")
    return "\n".join(made).encode()


def send(port: int, bodies: Sequence[bytes], rounds: int) -> None:
    """The client: one connection, one request after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for at in range(rounds):
        connection.request("POST", "/v1/influxdb/write", bodies[at % len(bodies)])
        response = connection.getresponse()
        response.read()
        if response.status != 204:
            raise Internal(f"the write was answered {response.status}")
    connection.close()


class Meter:
    """Rounds of so many points each, by the wall's clock and the processor's."""

    def __init__(self, points: int) -> None:
        self._clock = SystemClock()
        self._points = points
        self._wall: list[float] = []
        self._core: list[float] = []
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        self._began = (self._clock.monotonic_ms(), _processor_s())

    def end(self, rounds: int = 1) -> None:
        self._wall.append((self._clock.monotonic_ms() - self._began[0]) / 1_000 / rounds)
        self._core.append((_processor_s() - self._began[1]) / rounds)

    def found(self) -> dict[str, int]:
        """Points a second."""
        return {
            "wall": round(self._points / statistics.median(self._wall)),
            "core": round(self._points / statistics.median(self._core)),
        }


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measured(lines: int, fields: int, tables: int, rounds: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """All three, for batches over so many tables."""
    bodies = [body(lines, fields, tables, seed) for seed in range(4)]
    points = lines * fields
    reader, parse = LineReader(), Meter(points)
    for at in range(WARM_ROUNDS + rounds):
        parse.begin()
        reader.read(bodies[at % len(bodies)], unit=1, now_ns=EPOCH_NS)
        if at >= WARM_ROUNDS:
            parse.end()
    database, write = NullDatabase(), Meter(points)
    writer = InfluxWriter(database, SystemClock())
    for at in range(WARM_ROUNDS + rounds):
        write.begin()
        await writer.write(bodies[at % len(bodies)], 1)
        if at >= WARM_ROUNDS:
            write.end()
    over, database = Meter(points), NullDatabase()
    runner = web.AppRunner(app(database, clock=SystemClock()), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    loop, port = asyncio.get_running_loop(), runner.addresses[0][1]
    await loop.run_in_executor(pool, send, port, bodies, WARM_ROUNDS)
    share = max(rounds // 5, 1)
    for _ in range(5):  # the median of five runs of several requests
        over.begin()
        await loop.run_in_executor(pool, send, port, bodies, share)
        over.end(share)
    await runner.cleanup()
    if database.rows != lines * (WARM_ROUNDS + 5 * share):
        raise Internal(f"{database.rows} rows arrived")
    return {"bytes": len(bodies[0]), "parse": parse.found(), "write": write.found(), "http": over.found()}


def main() -> None:
    """See the module."""
    task = {"lines": 5_000, "fields": 10, "tables": [1, 300], "rounds": 30} | json.loads(sys.stdin.readline() or "{}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        async def run() -> dict[str, Any]:
            return {
                str(tables): await measured(task["lines"], task["fields"], tables, task["rounds"], pool)
                for tables in task["tables"]
            }

        found = run_loop(run())
    print(json.dumps({"points_per_s": found, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
