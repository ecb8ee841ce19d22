"""The measuring program of `yunhe bench query`: one signal of 700 wide files, through the engine and by DuckDB alone.

Both read the same files from this machine's disk (in its page cache). DuckDB checks no page's CRC, merges nothing and
must be told the files; the engine does all three. `cold`: nothing is known of the files, no footer parsed, no
connection made. Each round asks both, in turns, and medians are reported.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb

from dataplane.contract.codec import from_plain
from dataplane.tsdb.bench.imports import ASKED, FILES_A_VEHICLE, MAKERS, make
from dataplane.tsdb.bench.signals import PERIOD_MS, WIDE
from dataplane.tsdb.query.engine import QueryEngine, QuerySettings, TableView
from dataplane.tsdb.query.files import LocalFiles, in_folder
from dataplane.tsdb.schema.files import FileMeta
from providers.base.clock import Clock, SystemClock
from providers.base.errors import Internal

ROUNDS = 7
THREADS = 2
FOOTER_BYTES_MAX = 512 << 20
SELECT = f"SELECT min({ASKED}) AS low, max({ASKED}) AS high, avg({ASKED}) AS mean FROM "


class Run:
    """The files, and both ways to ask."""

    def __init__(self, folder: Path, metas: list[FileMeta], clock: Clock) -> None:
        self._folder = folder
        self._views = {WIDE.name: TableView(WIDE, metas)}
        self._clock = clock
        self._peer = duckdb.connect(config={"threads": THREADS})
        self._files, self._engine = self._fresh()

    def _fresh(self) -> tuple[LocalFiles, QueryEngine]:
        files = LocalFiles(in_folder(self._folder, ""), footer_bytes_max=FOOTER_BYTES_MAX)
        return files, QueryEngine(files, settings=QuerySettings(threads=THREADS))

    async def all(self, wheres: dict[str, str]) -> dict[str, float]:
        """Median seconds by who was asked what."""
        taken: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            self._files.close()
            self._engine.close()
            self._files, self._engine = self._fresh()
            for name, where in {"cold": "", "warm": "", **wheres}.items():
                if name == "cold":
                    self._peer.close()
                    self._peer = duckdb.connect(config={"threads": THREADS})
                began_ms = self._clock.monotonic_ms()
                ours = await self._engine.query(SELECT + WIDE.name + where, self._views, self._clock.wall_ms())
                middle_ms = self._clock.monotonic_ms()
                theirs = self._peer.execute(f"{SELECT}read_parquet('{self._folder}/*'){where}").fetchall()
                ended_ms = self._clock.monotonic_ms()
                _same(ours.to_pylist()[0], theirs[0])
                taken.setdefault(f"{name} ours", []).append((middle_ms - began_ms) / 1_000)
                taken.setdefault(f"{name} duckdb", []).append((ended_ms - middle_ms) / 1_000)
        return {name: median(seconds) for name, seconds in taken.items()}


def _same(ours: dict[str, Any], theirs: tuple[Any, ...]) -> None:
    if not all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(ours.values(), theirs, strict=True)):
        raise Internal(f"the engine answered {ours}, and DuckDB {theirs}")


def main() -> None:
    """See the module."""
    task = json.loads(sys.stdin.readline())
    folder, rows, files = Path(task["folder"]), task["rows"], task["files"]
    # Forking would copy threads' locks in whatever state they are.
    with ProcessPoolExecutor(MAKERS, multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(partial(make, folder, rows), range(files), chunksize=FILES_A_VEHICLE))
    metas = [replace(from_plain(FileMeta, plain), sequence=at + 1) for at, (plain, _) in enumerate(made)]
    first_ms = min(meta.time_min for meta in metas)
    end_ms = first_ms + rows * PERIOD_MS // 2  # half of each vehicle's first file
    wheres = {
        "a tenth of the files by time": f" WHERE ts < make_timestamp_ms({end_ms})",
        "one vehicle": " WHERE vehicle = 'vehicle-003'",
    }
    seconds = asyncio.run(Run(folder, metas, SystemClock()).all(wheres))
    total = sum(meta.rows for meta in metas)
    print(json.dumps({"rows": total, "seconds": seconds, "load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()
