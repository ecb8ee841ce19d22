"""`yunhe bench query`: min, max and average of one signal, 5.6 million rows in 700 files, through the query engine and
by DuckDB's own `read_parquet` on the bare files in the same run.

What is compared is said in `dataplane/tsdb/bench/query.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.imports import FILES, ROWS, RUN_S_MAX
from controlplane.bench.lab import Bench
from providers.base.errors import Unavailable
from providers.lab.processes import python

SHARE_MAX = 1.1
"""Of DuckDB's own time over all the files, whether or not anything is known of them yet."""


def query(bench: Bench) -> list[Figure]:
    """Cold, warm, and with files left out by time and by series."""
    found = _run(bench)
    seconds = found["seconds"]
    asked = [name.removesuffix(" ours") for name in seconds if name.endswith(" ours")]
    figures = [Figure("rows", found["rows"], "rows"), Figure("files", FILES, "files")]
    for name in asked:
        ours, theirs = seconds[f"{name} ours"], seconds[f"{name} duckdb"]
        share = f"query, {name}: of DuckDB's time"
        figures += [
            at_most(share, ours / theirs, "times", SHARE_MAX)
            if name in ("cold", "warm")
            else Figure(share, round(ours / theirs, 2), "times"),
            Figure(f"seconds {name}, ours", round(ours, 3), "s"),
            Figure(f"seconds {name}, DuckDB on the bare files", round(theirs, 3), "s"),
        ]
    return [*figures, Figure("load", round(found["load"], 1), "processes")]


def _run(bench: Bench) -> dict[str, Any]:
    """The program, as a process: the control plane does not import a database."""
    folder = bench.state_dir.root / "queried"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        done = subprocess.run(
            python("dataplane.tsdb.bench.query"),
            input=json.dumps({"folder": str(folder), "files": FILES, "rows": ROWS}) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            timeout=RUN_S_MAX,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        raise Unavailable(f"the query's measuring program ended with {done.returncode}; its words are above")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
