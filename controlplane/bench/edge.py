"""`yunhe bench edge`: what a vehicle's database takes, what it costs there, and what it leaves on the flash.

300 tables of ten signals as a vehicle's bus carries them, whole numbers times a factor (until now a fifth of them was
noise of full precision, which bytes have a row for still). Each part is a process of its own
(`dataplane/tsdb/bench/edge.py`), and its peers have the same rows in the same batches. Where a part does not run, its
row says so and has no figure.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from controlplane.bench.figures import Figure, at_least, at_most, beside
from controlplane.bench.lab import Bench
from controlplane.cli import output
from providers.base.errors import Unavailable
from providers.lab.processes import python

RUNS = 3
ROWS = 8_000
PEER_ROWS = 2_000
POINTS_ROWS = 200
A_WRITE = 33
"""Rows of each table a write: 99,000 points."""
MEMORY_BYTES_MAX = 50 << 20
STEADY: dict[str, Any] = {"points_per_s": 350_000, "seconds": 30, "warm_s": 60, "period_ms": 200}
"""By the end of `warm_s` each table has been flushed once: a table's first file is where its encodings are measured."""
LINES: dict[str, Any] = {"batches": 80, "lines": 5_000, "connections": 2}
RING: dict[str, Any] = {"seconds": 10, "database": "edge", "wal": "always"}
RUN_S_MAX = 600
MIB = 1 << 20


def edge(bench: Bench) -> list[Figure]:
    """Ingest, steady load, memory, line protocol, ring, bytes on the flash."""
    runner = _Runner(bench.state_dir.root)
    figures: list[Figure] = []
    for part in (_ring, _ingest, _lines, _steady, _peers):
        try:
            figures += part(runner)
        except Unavailable as error:
            figures.append(Figure(f"{part.__name__.strip('_')} not measured: {error}", 0, "-"))
    return figures


class _Runner:
    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._folder = root / "edge"
        self.ours = root / "edge-ours"

    def __call__(self, program: str, **task: Any) -> dict[str, Any]:
        """What the program found, in a folder of its own."""
        try:
            return self.kept(self._folder, program, **task)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def kept(self, folder: Path, program: str, **task: Any) -> dict[str, Any]:
        """The same in `folder`, which stays."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        output.progress(f"  {task.get('part', program)}")
        try:
            done = subprocess.run(
                python(f"dataplane.tsdb.bench.{program}"),
                input=json.dumps({"folder": str(folder), **task}) + "\n",
                stdout=subprocess.PIPE,
                text=True,
                timeout=RUN_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"no end within {RUN_S_MAX} s") from error
        if done.returncode != 0:
            raise Unavailable(f"the program ended with {done.returncode}; its words are above")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _ring(run: _Runner) -> list[Figure]:
    """Writers in other processes, through shared memory, into the database; by the reader's processor time."""
    found = [run("ring", **RING) for _ in range(RUNS)]
    cores = statistics.median(each["points_per_core_s"] for each in found) / 1e6
    wall = statistics.median(each["points_per_s"] for each in found) / 1e6
    return [
        at_least("ingest, ring, a second of one core", cores, "million points/s", 1.0),
        Figure("ingest, ring, as it went", round(wall, 3), "million points/s"),
    ]


def _ingest(run: _Runner) -> list[Figure]:
    """Columnar batches in the same process, logged and synced before each ack, to the last flush."""
    figures = []
    for wal in ("always", "off"):
        task: dict[str, Any] = {
            "part": "ingest",
            "rows": ROWS,
            "a_write": A_WRITE,
            "memory_bytes_max": MEMORY_BYTES_MAX,
            "wal": wal,
        }
        found = [run("edge", **task) for _ in range(RUNS)]
        cores = statistics.median(each["points"] / (each["cpu_s"] - each["driver_s"]) for each in found) / 1e6
        wall = statistics.median(each["points"] / each["seconds"] for each in found) / 1e6
        figures += [
            at_least(f"ingest, batches, wal {wal}, a second of one core", cores, "million points/s", 1.0),
            Figure(f"ingest, batches, wal {wal}, as it went", round(wall, 3), "million points/s"),
            Figure(f"write amplification, wal {wal}", round(_amplification(found[0]), 3), "bytes written by taken"),
        ]
    return figures


def _amplification(found: dict[str, Any]) -> float:
    return float((found["log_bytes"] + found["file_bytes"]) / found["row_bytes"])


def _lines(run: _Runner) -> list[Figure]:
    """The process, by HTTP."""
    found = [run("edge", part="lines", wal="always", **LINES) for _ in range(RUNS)]
    wall = statistics.median(each["points"] / each["seconds"] for each in found) / 1e3
    cores = statistics.median(each["points"] / each["cpu_s"] for each in found) / 1e3
    return [
        at_least("ingest, line protocol over HTTP, 5,000 lines a batch", wall, "thousand points/s", 300),
        Figure("the same, a second of one core of the process", round(cores, 1), "thousand points/s"),
    ]


def _steady(run: _Runner) -> list[Figure]:
    """350,000 points a second: processor and memory."""
    found = run("edge", part="steady", wal="periodic", memory_bytes_max=MEMORY_BYTES_MAX, **STEADY)
    nothing = run("edge", part="idle")
    idle, own = nothing["resident_bytes"], found["resident_bytes"] - nothing["drive_bytes"]
    bare = _bare_bytes()
    seconds = found["cpu_by_second"]
    average = statistics.mean(seconds)
    if found["points_per_s"] < 0.97 * STEADY["points_per_s"]:
        raise Unavailable(f"only {found['points_per_s']:.0f} points/s were written: the machine is too busy")
    return [
        Figure("steady points", round(found["points_per_s"]), "points/s"),
        at_most("steady, processor on average", average, "cores", 0.25),
        Figure("steady, of that the making of the batches", round(found["driver_s_a_second"], 3), "cores"),
        beside("steady, busiest second", max(seconds), "cores", "the average", average, at_most=2.0),
        at_most("memory above interpreter and libraries", (own - idle) / MIB, "MiB", 64),
        Figure("memory above a bare interpreter", round((own - bare) / MIB, 1), "MiB"),
        Figure("of that the libraries", round((idle - bare) / MIB, 1), "MiB"),
    ]


def _peers(run: _Runner) -> list[Figure]:
    """The same rows by SQLite, DuckDB and default Parquet."""
    task: dict[str, Any] = {"rows": PEER_ROWS, "a_write": A_WRITE}
    ours, default = _stored(run, **task)
    exact, exact_default = _stored(run, exact=True, **task)
    rows = run("edge", part="sqlite", form="rows", **task)
    points = run("edge", part="sqlite", form="points", **{**task, "rows": POINTS_ROWS})
    duck = run("edge", part="duckdb", **{**task, "rows": POINTS_ROWS})

    def speed(found: dict[str, Any]) -> float:
        return float(found["points"] / found["cpu_s"] / 1e6)

    def size(found: dict[str, Any]) -> float:
        return float(found["bytes"] / found["points"])

    a_point, an_exact = default["ours_bytes"] / ours["points"], exact_default["ours_bytes"] / exact["points"]
    insert = "SQLite, wal, synchronous=NORMAL, executemany"
    return [
        beside("ingest by a core, million points/s", speed(ours), "M/s", insert, speed(rows)),
        beside("ingest by a core, a row a point", speed(ours), "M/s", insert, speed(points)),
        beside("ingest by a core, million points/s", speed(ours), "M/s", "DuckDB, insert from Arrow", speed(duck)),
        beside("bytes a point on the flash", a_point, "bytes", "SQLite, a row a time", size(rows), at_most=1 / 15),
        beside("bytes a point on the flash", a_point, "bytes", "SQLite, a row a point", size(points)),
        beside(
            "bytes a point, the same files",
            a_point,
            "bytes",
            "default Parquet zstd",
            default["bytes"] / ours["points"],
            at_most=0.7,
        ),
        beside(
            "bytes a point, a fifth of the signals noise of full precision",
            an_exact,
            "bytes",
            "default Parquet zstd",
            exact_default["bytes"] / exact["points"],
        ),
    ]


def _stored(run: _Runner, **task: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows in our files, and the same files as Parquet's writer makes them by default."""
    try:
        ours = run.kept(run.ours, "edge", part="ingest", wal="periodic", memory_bytes_max=MEMORY_BYTES_MAX, **task)
        return ours, run("edge", part="parquet", ours=str(run.ours))
    finally:
        shutil.rmtree(run.ours, ignore_errors=True)


def _bare_bytes() -> int:
    """Of an interpreter that has imported nothing."""
    program = "import os; print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))"
    done = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)
