"""Whole drills of databases, over HTTP, on databases in memory that recover, do not, or lie; and their judge alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from controlplane.cli.main import run as yunhe
from controlplane.drill import database_drills, database_run
from controlplane.drill.database_runner import DatabaseRunner
from controlplane.drill.points import value_of
from controlplane.drill.points_checker import judge_points
from controlplane.drill.report import Report
from controlplane.drill.seeds import Choices
from controlplane.drill.verdict import DATABASE_DRILLS, DRILLS
from controlplane.server.files import StateDir
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Invalid, NotFound, Unavailable
from tests.controlplane.drill.memory_database import MemoryDatabases


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's waits are of seconds; here they are of tenths."""
    monkeypatch.setattr(Choices, "wait_ms", 50.0)
    monkeypatch.setattr(Choices, "away_ms", 400.0)
    monkeypatch.setattr(Choices, "ticks_a_second", 250)
    monkeypatch.setattr(database_run, "ARRIVE_TIMEOUT_MS", 1_000)
    monkeypatch.setattr(database_run, "POLL_MS", 20)
    monkeypatch.setattr(database_drills, "POLL_MS", 20)
    monkeypatch.setattr(database_drills, "RECOVER_TIMEOUT_MS", 1_500)


@contextmanager
def lab(**how: object) -> Iterator[MemoryDatabases]:
    with closing(MemoryDatabases(**how)) as made:  # type: ignore[arg-type]
        yield made


def drilled(path: Path, name: str, databases: MemoryDatabases, cloud: str | None = None) -> Report:
    said: list[str] = []
    runner = DatabaseRunner(
        StateDir(path),
        clock=SystemClock(),
        rng=SeededRng(1),
        say=said.append,
        status=databases.status,
        breaker=lambda: databases,
    )
    return runner.run(name, cloud, seed=5)


@pytest.mark.parametrize("name", DATABASE_DRILLS)
def test_a_database_that_recovers_passes_and_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    with lab() as databases:
        report = drilled(tmp_path, name, databases)
        assert report.passed, report.failures
        plain = report.to_plain()
        assert (plain["verdict"], plain["acked_lost"], plain["duplicated"], plain["corrupt"]) == ("PASS", 0, 0, 0)
        assert plain["acked"] > 100 and plain["rto_ms"] is not None and report.text().endswith("seed 5")
        assert databases.undone and not databases.down
        assert not databases.tables["fleet-2" if "owner" in str(report.timeline) else "fleet-1"]


@pytest.mark.parametrize(("lie", "field"), [("lose", "acked_lost"), ("double", "duplicated"), ("alter", "corrupt")])
@pytest.mark.parametrize("name", ["edge-power-cut", "region-failover"])
def test_a_database_that_lies_fails(tmp_path: Path, name: str, lie: str, field: str) -> None:
    with lab(lie=lie) as databases:
        report = drilled(tmp_path, name, databases)
        assert not report.passed and report.to_plain()[field] == 1
        assert any(databases.tables.values()), "the table is kept, to be looked at"


@pytest.mark.parametrize("name", ["import-interrupted", "region-failover"])
def test_nobody_who_takes_over_fails(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = DATABASE_DRILLS[name]
    monkeypatch.setitem(DATABASE_DRILLS, name, type(drill)(name, drill.what, 300.0, acks=drill.acks))
    with lab(taken_over_after_s=None) as databases:
        # Edges would be imported by nobody: in memory what they take is shown at once, so that too is stopped.
        report = drilled(tmp_path, name, databases)
        assert not report.passed and not databases.down, "what was broken is put right"
        assert any("owns" in failure or "go on" in failure for failure in report.failures), report.failures


def test_edges_that_take_no_writes_while_the_bucket_is_away_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = DATABASE_DRILLS["bucket-throttle"]
    short = type(drill)(drill.name, drill.what, 200.0, pause_ms_max=200.0, acks=drill.acks)
    monkeypatch.setitem(DATABASE_DRILLS, drill.name, short)
    with lab() as databases:
        databases.stalled = True
        report = drilled(tmp_path, "bucket-throttle", databases)
        assert any("longest pause between acks" in failure for failure in report.failures)


def test_nothing_is_broken_where_there_is_nothing_to_break(tmp_path: Path) -> None:
    with lab() as databases:
        with pytest.raises(NotFound, match="no cloud with a database is named mars"):
            drilled(tmp_path, "region-failover", databases, "mars")
        databases.down.add("cars-1")
        with pytest.raises(Unavailable, match="cars is Degraded"):
            drilled(tmp_path, "edge-power-cut", databases)
        databases.down.clear()
        databases.tables["cars-1"] = set()
        databases.lie = ""
        databases.owner = None
        with pytest.raises(Unavailable, match="fleet is Degraded"):
            drilled(tmp_path, "region-failover", databases)
        assert not databases.undone


def test_the_command_line_knows_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert yunhe(["drill", "list"]) == 0
    listed = capfd.readouterr().out
    assert all(name in listed for name in (*DRILLS, *DATABASE_DRILLS))
    assert yunhe(["drill", "run", "edge-power-cut", "--state-dir", str(tmp_path / "s")]) == 1
    assert "no database runs here" in capfd.readouterr().err
    with lab() as databases, pytest.raises(Invalid, match="takes no side"):
        DatabaseRunner(
            StateDir(tmp_path), clock=SystemClock(), rng=SeededRng(1), say=print, status=databases.status
        ).run("region-failover", None, side="volume")


def test_the_judge_counts_each_kind_of_wrong() -> None:
    first, sent = {"s": 1_000}, {"s": 6}
    right = [("s", 1_000 + n, n, value_of("s", n)) for n in range(5)]
    clean = judge_points({"s": {0, 1, 2, 3}}, sent, first, value_of, right)
    assert clean.clean and (clean.acked, clean.unacked_present) == (4, 1)
    for read, counts in (
        (right[1:], (1, 0, 0)),
        ([*right, right[2]], (0, 1, 0)),
        ([*right, ("s", 1_006, 6, 0)], (0, 0, 1)),
        ([*right, ("t", 1, 1, 1)], (0, 0, 1)),
        ([*right[:-2], ("s", 1_003, 3, 9), right[-1]], (1, 0, 1)),
        ([*right[:-2], ("s", 9_999, 3, value_of("s", 3)), right[-1]], (1, 0, 1)),
    ):
        judged = judge_points({"s": {0, 1, 2, 3}}, sent, first, value_of, read)
        assert (judged.acked_lost, judged.duplicated, judged.corrupt) == counts and not judged.clean
