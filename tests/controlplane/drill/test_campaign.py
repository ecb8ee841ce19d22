"""A campaign runs each drill in each WAL mode with each seed once, however often interrupted, and hides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.main import run as yunhe
from controlplane.drill import campaign as campaign_module
from controlplane.drill import cli as cli_module
from controlplane.drill.campaign import CAMPAIGN, Campaign, Journal, key_of, planned, totals
from controlplane.drill.checker import judge
from controlplane.drill.report import Report
from controlplane.drill.runner import Runner
from controlplane.drill.verdict import DATABASE_DRILLS, SIDES, Measured
from providers.base.clock import SystemClock
from providers.base.errors import Invalid

CLOUDS: list[dict[str, Any]] = [
    {"name": name, "state": "Ready", "sentence": "serves", "wal": {"mode": mode}}
    for name, mode in (
        ("gcp", "regional-block"),
        ("azure", "regional-block"),
        ("aws", "block+express"),
        ("p", "object"),
    )
]
CLEAN = judge({0: {0: 0}}, {0: [(0, 0)]})
LOST = judge({0: {0: 0, 1: 1}}, {0: [(0, 0)]})


class Runs:
    """Stands for a `Runner`: notes what it is asked for, and answers as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str | None, int | None]] = []
        self.lose_with_seed: int | None = None
        self.interrupt_after: int | None = None
        self.modes = {c["name"]: c["wal"]["mode"] for c in CLOUDS}

    def run(self, name: str, cloud: str | None, *, seed: int | None = None, side: str | None = None) -> Report:
        if self.interrupt_after is not None and len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append((name, cloud, side, seed))
        judged = LOST if seed == self.lose_with_seed else CLEAN
        return Report(name, cloud or "", self.modes[cloud or ""], Measured(9.0, 9.0, judgement=judged), 1, seed, side)


def campaign(runs: Runs, journal: Journal, clouds: list[dict[str, Any]] = CLOUDS) -> Campaign:
    return Campaign(
        runs,  # type: ignore[arg-type]
        journal,
        status=lambda: {"clouds": clouds},
        clock=SystemClock(),
        say=lambda line: None,
    )


def test_every_drill_side_mode_and_seed_is_planned_once_and_every_mode_on_one_cloud() -> None:
    plan = planned(CLOUDS, CAMPAIGN, 50, seed=7)
    assert len({one.key for one in plan}) == len(plan) == 50 * (6 + 7 + 6)
    assert {one.cloud for one in plan} == {"gcp", "aws", "p"} and {one.seed for one in plan} == set(range(7, 57))
    assert {(one.mode, one.side) for one in plan if one.drill == "wal-loss"} == {
        (mode, side) for mode, sides in SIDES.items() for side in sides if mode != "zonal-block"
    }
    # Whatever part has run is spread over all of it.
    assert {one.seed for one in plan[:19]} == {7}
    with pytest.raises(Invalid, match="no drill is named flood"):
        planned(CLOUDS, ["flood"], 1, 1)


def test_an_interrupted_campaign_goes_on_with_what_it_lacks(tmp_path: Path) -> None:
    runs, journal, plan = Runs(), Journal(tmp_path / "log"), planned(CLOUDS, CAMPAIGN, 2, 1)
    runs.interrupt_after = 11
    with pytest.raises(KeyboardInterrupt):
        campaign(runs, journal).run(plan, journal.begin(resume=False))
    # Killed in the middle of a line: that run is done again.
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[:-5])
    with pytest.raises(Invalid, match="has 10 reports"):
        journal.begin(resume=False)
    assert (tmp_path / "log").read_bytes() == whole[:-5]
    runs.interrupt_after = None
    lines = campaign(runs, journal).run(plan, journal.begin(resume=True))
    assert len(runs.asked) == len(plan) + 1
    assert [key_of(line) for line in journal.read()] == [key_of(line) for line in lines] == [one.key for one in plan]


def test_a_loss_is_in_the_totals_with_its_seed_and_its_timeline_is_kept(tmp_path: Path) -> None:
    runs, journal = Runs(), Journal(tmp_path / "log")
    runs.lose_with_seed = 3
    plan = planned(CLOUDS[2:3], ["broker-loss"], 5, 1)
    found = totals(campaign(runs, journal).run(plan, []))
    assert [(t["runs"], t["passed"], t["acked_lost"], t["failed_seeds"]) for t in found] == [(5, 4, 1, [3])]
    assert ["timeline" in line for line in journal.read()] == [False, False, True, False, False]


def test_what_is_unknown_of_one_run_is_unknown_of_all(tmp_path: Path) -> None:
    runs, journal = Runs(), Journal(tmp_path / "log")
    [line] = campaign(runs, journal).run(planned(CLOUDS[:1], ["throttle"], 1, 1), [])
    [total] = totals([line, {**line, "seed": 2, "acked_lost": None}])
    assert total["acked_lost"] is None and total["acked"] == 2


def test_a_cloud_that_does_not_come_back_fails_its_runs_and_holds_nobody_else_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_module, "READY_TIMEOUT_MS", 0)
    clouds = [{**CLOUDS[0], "state": "Degraded"}, *CLOUDS[1:]]
    runs, journal = Runs(), Journal(tmp_path / "log")
    found = totals(campaign(runs, journal, clouds).run(planned(clouds, ["broker-loss"], 9, 1), []))
    assert [(t["walMode"], t["runs"], t["passed"]) for t in found] == [
        ("block+express", 9, 9),
        ("object", 9, 9),
        ("regional-block", 3, 0),
    ]


def test_a_file_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"a": 1}\n')
    with pytest.raises(Invalid, match="does not hold drills' reports"):
        Journal(tmp_path / "log").begin(resume=True)
    assert (tmp_path / "log").read_text() == '{"a": 1}\n'


def test_the_command_says_how_many_of_the_planned_runs_passed_and_is_0_only_when_all_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    monkeypatch.setattr(cli_module, "read_status", lambda where: {"clouds": CLOUDS})
    monkeypatch.setattr(Runner, "run", lambda self, *asked, **choices: runs.run(*asked, **choices))
    command = ["drill", "all", "--log", str(tmp_path / "log"), "--runs", "2", "--cloud", "aws", "-o", "json"]
    assert yunhe([*command, "--drill", "throttle"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["verdict"], shown["planned"], shown["runs"]) == ("PASS", 2, 2)
    runs.interrupt_after = 5
    assert yunhe([*command, "--resume"]) == 130
    shown = json.loads(capfd.readouterr().out)
    assert (shown["verdict"], shown["planned"], shown["runs"]) == ("FAIL", 14, 5)
    runs.interrupt_after, runs.lose_with_seed = None, 2
    assert yunhe([*command, "--resume"]) == 1
    monkeypatch.setattr(cli_module, "read_status", lambda where: {"clouds": []})
    assert yunhe(command) == 1
    assert "no Cloud is named aws" in capfd.readouterr().err
    assert yunhe(["drill", "all", "--log", str(tmp_path / "new")]) == 1
    assert "hint: start one with" in capfd.readouterr().err


DATABASES: list[dict[str, Any]] = [
    {"name": name, "cloud": cloud, "role": role, "state": "Ready", "sentence": "serves", "uploadTo": to}
    for name, cloud, role, to in (
        ("cars", "gcp", "edge", "fleet"),
        ("fleet", "p", "cloud", None),
        ("b", "aws", "cloud", None),
    )
]


def test_drills_of_databases_are_in_a_campaign_where_there_is_a_database(tmp_path: Path) -> None:
    both = (*CAMPAIGN, *DATABASE_DRILLS)
    assert planned(CLOUDS, both, 3, 1) == planned(CLOUDS, CAMPAIGN, 3, 1)
    plan = planned(CLOUDS[2:3], both, 2, 1, DATABASES)
    assert len({one.key for one in plan}) == len(plan) == 2 * (7 + 4)
    assert {(one.cloud, one.mode) for one in plan if one.drill in DATABASE_DRILLS} == {("p", "object")}
    assert {one.drill for one in planned([], both, 1, 1, DATABASES)} == set(DATABASE_DRILLS), "brokers or not"
    brokers, databases, journal = Runs(), Runs(), Journal(tmp_path / "log")
    databases.lose_with_seed = 2
    one = Campaign(
        brokers,  # type: ignore[arg-type]
        journal,
        status=lambda: {"clouds": CLOUDS, "databases": DATABASES},
        clock=SystemClock(),
        say=lambda line: None,
        databases=databases,  # type: ignore[arg-type]
    )
    found = totals(one.run(plan, journal.begin(resume=False)))
    assert {asked[0] for asked in databases.asked} == set(DATABASE_DRILLS) and len(brokers.asked) == 14
    seeds = {t["drill"]: t["failed_seeds"] for t in found if t["drill"] in DATABASE_DRILLS}
    assert seeds == {name: [2] for name in DATABASE_DRILLS}
    before = len(databases.asked)
    one.run(plan, journal.begin(resume=True))
    assert len(databases.asked) == before, "nothing is run twice"


def test_a_database_that_is_not_ready_fails_its_own_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_module, "READY_TIMEOUT_MS", 0)
    down = [{**d, "state": "Degraded"} for d in DATABASES]
    runs, journal = Runs(), Journal(tmp_path / "log")
    one = Campaign(
        runs,  # type: ignore[arg-type]
        journal,
        status=lambda: {"clouds": CLOUDS, "databases": down},
        clock=SystemClock(),
        say=lambda line: None,
    )
    plan = planned(CLOUDS[3:], ["broker-loss", "region-failover"], 5, 1, DATABASES)
    found = totals(one.run(plan, []))
    assert {t["drill"]: (t["runs"], t["passed"]) for t in found} == {"broker-loss": (5, 5), "region-failover": (3, 0)}


def test_a_report_of_several_logs_adds_up_their_runs_and_is_0_only_when_all_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(mode: str, seed: int, lost: int, rto_ms: float) -> str:
        named = {"drill": "broker-loss", "cloud": "c", "walMode": mode, "side": None, "seed": seed, "rto_ms": rto_ms}
        counted = {"acked": 100, "acked_lost": lost, **dict.fromkeys(("duplicated", "reordered", "corrupt"), 0)}
        verdict = "FAIL" if lost else "PASS"
        return json.dumps({**named, **counted, "failed_produces": 0, "verdict": verdict}) + "\n"

    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(line("object", seed, 0, 1_000.0 * seed) for seed in (1, 2, 3)))
    second.write_text(line("regional-block", 1, 0, 500.0) + '{"drill": "broker-lo')
    assert yunhe(["drill", "report", str(first), str(second), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["runs"]) == ("PASS", 4)
    assert [(t["walMode"], t["runs"], t["acked"], t["rto_ms"], t["rto_ms_max"]) for t in found["totals"]] == [
        ("object", 3, 300, 2_000.0, 3_000.0),
        ("regional-block", 1, 100, 500.0, 500.0),
    ]
    second.write_text(line("regional-block", 7, 2, 500.0))
    assert yunhe(["drill", "report", str(first), str(second)]) == 1
    assert "FAIL  3 of 4 runs passed" in capsys.readouterr().out
    assert yunhe(["drill", "report", str(tmp_path / "none.jsonl")]) == 1
    assert "is not there" in capsys.readouterr().err
