"""Line protocol over HTTP against the edge's process as it is started on a vehicle: batches of so many lines on
`connections` connections, one batch under way on each.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from dataplane.contract.codec import to_json
from dataplane.contract.database import ColumnSpec, DatabaseConfig, DatabaseRole, DatabaseSpec, TableSpec
from dataplane.tsdb.bench.signals import NARROW_FIELDS, narrow
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import TableOptions
from providers.base.clock import Clock, SystemClock, sleep_blocking_ms
from providers.base.errors import Unavailable
from providers.base.registry import StoreAddress

URL = "/v1/influxdb/api/v2/write?precision=ms"
START_MS_MAX = 60_000


class Batches(Protocol):
    """`bench.edge.Drive`."""

    names: list[str]

    def all(self, rows: int, a_write: int) -> Iterator[list[Rows]]: ...


def bodies(drive: Batches, batches: int, lines: int) -> list[bytes]:
    """Line protocol, ten fields a line, table after table as a collector sends them: some rows of each."""
    found: list[bytes] = []
    body: list[str] = []
    for write in drive.all(1 << 30, max(1, lines // len(drive.names) + 1)):
        for rows in write:
            names = rows.data.column_names[1:]
            stamps, *fields = (
                column.cast("int64" if at == 0 else "float64").to_pylist()
                for at, column in enumerate(rows.data.columns)
            )
            suffix = ["i" if name.startswith("status") else "" for name in names]
            for at, stamp in enumerate(stamps):
                values = ",".join(
                    f"{name}={int(column[at])}i" if kind else f"{name}={column[at]!r}"
                    for name, column, kind in zip(names, fields, suffix, strict=True)
                )
                body.append(f"{rows.table} {values} {stamp}")
                if len(body) == lines:
                    found.append(("\n".join(body) + "\n").encode())
                    body = []
                    if len(found) == batches:
                        return found
    return found


def lines(task: dict[str, Any], drive: Batches) -> dict[str, Any]:
    """Points a second that were acked, and what they cost the process."""
    clock, folder = SystemClock(), Path(task["folder"])
    sent = bodies(drive, task["batches"], task["lines"])
    with ThreadPoolExecutor(task["connections"]) as threads, _Process(folder, drive, task["wal"], clock) as process:
        share = [sent[at :: task["connections"]] for at in range(task["connections"])]
        list(threads.map(process.post, [each[:1] for each in share]))  # the first of each warms up
        cpu, began_ms = process.cpu_s(), clock.monotonic_ms()
        list(threads.map(process.post, [each[1:] for each in share]))
        took_s, cpu_s = (clock.monotonic_ms() - began_ms) / 1_000, process.cpu_s() - cpu
    points = (task["batches"] - task["connections"]) * task["lines"] * NARROW_FIELDS
    return {"points": points, "seconds": took_s, "cpu_s": cpu_s, "bytes": sum(map(len, sent))}


class _Process:
    """The edge's process, serving until the end of the block."""

    def __init__(self, folder: Path, drive: Batches, wal: str, clock: Clock) -> None:
        columns = tuple(
            ColumnSpec(
                c.name, "int64" if c.name.startswith("status") else "float64" if c.role == "field" else c.type, c.role
            )
            for c in narrow("any", TableOptions()).columns
        )
        tables = tuple(TableSpec(name, columns, {"append_mode": True, "wal": wal}) for name in drive.names)
        spec = DatabaseSpec("bench", "car", DatabaseRole.EDGE, "zone", tables=tables)
        self._ready = folder / "ready"
        config = DatabaseConfig(
            "bench", StoreAddress("memory", "none", "none"), spec, str(folder / "db"), str(self._ready)
        )
        (folder / "config").write_bytes(to_json(config))
        self._command = [sys.executable, "-m", "dataplane.tsdb.process", "--config", str(folder / "config")]
        self._clock = clock
        self._port = 0

    def __enter__(self) -> _Process:
        self._process = subprocess.Popen(self._command)
        until = self._clock.monotonic_ms() + START_MS_MAX
        while not self._ready.exists():
            if self._process.poll() is not None or self._clock.monotonic_ms() > until:
                self._process.kill()
                raise Unavailable("the edge process did not start; its words are above")
            sleep_blocking_ms(20)
        self._port = json.loads(self._ready.read_text())["http_port"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def cpu_s(self) -> float:
        """Of its processor, so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, bodies: list[bytes]) -> None:
        """One after the other, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        for body in bodies:
            connection.request("POST", URL, body)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 204:
                raise Unavailable(f"the edge answered {answer.status}: {said[:300]!r}")
        connection.close()
