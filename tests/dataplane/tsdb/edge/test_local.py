"""Promises of the in-process Python API: Arrow in and out, from any thread, durable as the table says."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from dataplane.tsdb.edge.local import open_edge
from dataplane.tsdb.schema.tables import TableOptions, WalSync
from providers.base.errors import Invalid, NotFound, Unavailable

COLUMNS = {"ts": "timestamp[ms]", "unit": "string", "rpm": "float32"}


def test_rows_go_in_as_arrow_or_python_values_and_come_back_by_sql(tmp_path: Path) -> None:
    with open_edge(tmp_path) as db:
        db.create_table("engine", COLUMNS, time="ts", tags=["unit"])
        assert db.write("engine", {"ts": [1, 2], "unit": ["a", "b"], "rpm": [10.0, 20.0]}) == 2
        db.flush()
        db.write("engine", pa.table({"unit": ["a"], "ts": pa.array([1], pa.timestamp("ms"))}))
        db.write("engine", {"ts": [3], "unit": ["a"], "rpm": [30.0]})
        assert db.delete("engine", {"ts": [2], "unit": ["b"]}) == 1
        answer = db.query("SELECT unit, rpm FROM engine ORDER BY ts")
        assert answer.to_pydict() == {"unit": ["a", "a"], "rpm": [None, 30.0]}, "the last row wins, whole"
        with pytest.raises(Invalid, match="no rows of"):
            db.write("engine", {"ts": ["yesterday"], "unit": ["a"]})
        with pytest.raises(Invalid, match="is no type"):
            db.create_table("other", {"ts": "datetime"}, time="ts")
        with pytest.raises(NotFound):
            db.write("absent", {"ts": [1]})
    with open_edge(tmp_path) as db:
        assert db.query("SELECT count(*) AS n FROM engine").to_pydict() == {"n": [2]}


def test_many_threads_write_at_once_and_each_row_is_there_once(tmp_path: Path) -> None:
    options = TableOptions(append_mode=True, wal=WalSync.PERIODIC, memtable_bytes_max=16 << 10)
    with open_edge(tmp_path) as db:
        db.create_table("engine", COLUMNS, time="ts", options=options)

        def drive(number: int) -> None:
            for at in range(40):
                first = (number * 40 + at) * 50
                db.write("engine", {"ts": list(range(first, first + 50)), "rpm": [1.0] * 50})

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(drive, range(8)))
        assert db.query("SELECT count(*) AS n, count(DISTINCT ts) AS d FROM engine").to_pydict() == {
            "n": [16_000],
            "d": [16_000],
        }
        db.flush()
    files = [str(path) for path in tmp_path.glob("*.parquet")]
    assert len(files) > 1, "flushed meanwhile"
    assert duckdb.sql(f"SELECT count(DISTINCT ts) FROM read_parquet({files!r})").fetchall() == [(16_000,)]


def test_one_process_at_a_time_has_the_folder(tmp_path: Path) -> None:
    program = f"""
from dataplane.tsdb.edge.local import open_edge
with open_edge({str(tmp_path)!r}):
    pass
"""
    with open_edge(tmp_path):
        with pytest.raises(Unavailable, match="another process"), open_edge(tmp_path):
            pass
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert "another process has the edge database" in other.stderr
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
