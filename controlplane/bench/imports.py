"""`yunhe bench import`: a vehicle's files become part of a cloud database, over the lab's S3.

560 million points in 700 files of realistic entropy; what each level looks at is in `dataplane/tsdb/bench/imports.py`.
The limit beside it is how fast this disk takes the same bytes durably.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from typing import Any

from controlplane.bench.figures import Figure, at_least, at_most
from controlplane.bench.lab import Bench
from controlplane.bench.limits import durable_write_mb_s
from controlplane.bench.objects import CLOUDS, running_store
from providers.base.errors import Unavailable
from providers.base.registry import StoreAddress
from providers.lab.processes import python

FILES = 700
ROWS = 8_000
RUN_S_MAX = 900


def imports(bench: Bench) -> list[Figure]:
    """Levels L0 to L3, the first query, and what the files weigh."""
    root = bench.state_dir.root
    root.mkdir(parents=True, exist_ok=True)
    disk_mb_s = durable_write_mb_s(root, 8 << 20, bench.clock)
    with running_store(root, CLOUDS[0], bench.clock) as (addresses, _):
        found = _run(bench, addresses[CLOUDS[0].name])
    points, size, seconds = found["points"], found["bytes"], found["seconds"]
    millions = points / 1e6
    disk_limit = millions / (size / 1e6 / disk_mb_s)

    return [
        Figure("points", round(millions), "million"),
        Figure("files", FILES, "files"),
        Figure("bytes_a_point", round(size / points, 3), "bytes"),
        Figure("machine disk_8_MiB_direct_dsync_writes", round(disk_mb_s), "MB/s"),
        Figure("the_same_bytes_at_the_disk_s_speed", round(disk_limit), "million points/s"),
        Figure("import L0, commit alone", round(millions / seconds["l0"]), "million points/s"),
        at_least("import L1, footer and schema", millions / seconds["l1"], "million points/s", 200),
        at_least("import L2, every byte's checksum", millions / seconds["l2"], "million points/s", min(80, disk_limit)),
        Figure(
            "import L2, and its files left for queries",
            round(millions / seconds["l2_after_upload"]),
            "million points/s",
        ),
        at_least("import L3, upload to first correct answer", millions / seconds["l3"], "million points/s", 25),
        at_most("first_correct_answer, cold", seconds["first_query"], "s", 1.0),
        *(Figure(f"seconds {name}", round(took, 3), "s") for name, took in seconds.items()),
    ]


def _run(bench: Bench, address: StoreAddress) -> dict[str, Any]:
    """The program, as a process: the control plane does not import a database."""
    folder = bench.state_dir.root / "ssts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    task = {"folder": str(folder), "files": FILES, "rows": ROWS, "address": asdict(address)}
    try:
        done = subprocess.run(
            python("dataplane.tsdb.bench.imports"),
            input=json.dumps(task) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            timeout=RUN_S_MAX,
            check=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        raise Unavailable(f"the import's measuring program ended with {done.returncode}; its words are above")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
