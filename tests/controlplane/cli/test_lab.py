"""`yunhe lab` as a stranger meets it: docs/lab.md is followed to the letter, with each cloud's own SDK, and nothing is
left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.lab.processes import ProcessTable, stop
from tests.controlplane.cli.test_cli import says, yunhe

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
SNIPPETS = dict(re.findall(r"```python (\S+)\n(.*?)```", (ROOT / "docs" / "lab.md").read_text(), flags=re.DOTALL))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    state_dir = tmp_path_factory.mktemp("y") / "state"
    try:
        started = yunhe("lab", "up", "-o", "json", state_dir=state_dir)
        assert started.returncode == 0, started.stderr
        shown = json.loads(started.stdout)["clouds"]
        assert [cloud["provider"] for cloud in shown] == ["aliyun", "azure", "gcp", "aws", "private"]
        yield state_dir
        assert yunhe("lab", "down", "--purge", state_dir=state_dir).returncode == 0
        assert not state_dir.exists()
    finally:
        assert stop(ProcessTable(state_dir).everything()) == []


def read(state_dir: Path, *args: str) -> Any:
    shown = yunhe("lab", *args, "-o", "json", state_dir=state_dir)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=clean, timeout=90, check=False)


@pytest.mark.parametrize("cloud", [name for name in SNIPPETS if name != "test"])
def test_a_stranger_follows_the_page_with_the_clouds_own_sdk(up: Path, cloud: str) -> None:
    done = python(SNIPPETS[cloud], read(up, "env", cloud))
    assert done.returncode == 0, done.stderr
    assert "b'hello'" in done.stdout


def test_a_strangers_own_test_follows_the_page() -> None:
    done = python(SNIPPETS["test"], {})
    assert done.returncode == 0, done.stderr
    met, _, price = done.stdout.partition(" requests met the fault\n")
    assert int(met) > 20, "boto3 has repeated what failed"
    assert 0 < float(price.removesuffix(" USD\n")) < 0.01


def test_the_page_has_a_snippet_for_every_default_cloud() -> None:
    from providers.lab.running import DEFAULT_CLOUDS

    assert set(SNIPPETS) == {cloud.name for cloud in DEFAULT_CLOUDS} | {"test"}


def test_a_second_up_changes_nothing_and_finds_the_same_clouds(up: Path) -> None:
    before = read(up, "status")
    again = yunhe("lab", "up", "-o", "json", state_dir=up)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    after = read(up, "status")
    assert [c["processes"][0]["pid"] for c in after["clouds"]] == [c["processes"][0]["pid"] for c in before["clouds"]]


def test_env_is_for_a_shell_to_eval(up: Path) -> None:
    shown = yunhe("lab", "env", "aws-use1", state_dir=up).stdout
    code = 'eval "$1"; printf %s "$AWS_ENDPOINT_URL_S3"'
    done = subprocess.run(["sh", "-c", code, "sh", shown], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("http://127.0.0.1:")


def test_status_lists_processes_memory_faults_and_use(up: Path) -> None:
    made = read(up, "fault", "ali-ak", "--cloud", "aliyun-hz", "--for", "101s")["faults"]
    assert [one["id"] for one in made] == ["ali-ak-1.1", "ali-ak-1.2"]
    shown = {cloud["name"]: cloud for cloud in read(up, "status")["clouds"]}
    assert [one["id"] for one in shown["aliyun-hz"]["faults"]] == ["ali-ak-1.1", "ali-ak-1.2"]
    assert all(0 < one["left_s"] <= 101 for one in shown["aliyun-hz"]["faults"])
    assert all(not shown[name]["faults"] for name in shown if name != "aliyun-hz")
    names = {process["name"] for process in shown["aliyun-hz"]["processes"]}
    assert names == {"objects", "control", "volumes"}
    for cloud in shown.values():
        assert all(p["state"] == "Running" and p["memory_bytes"] > 1 << 20 for p in cloud["processes"])
        assert cloud["meter"]["usd"] >= 0 and cloud["latency"] == "off"
    text = yunhe("lab", "status", state_dir=up).stdout
    assert "ali-ak-1.2" in text and "service=objects status=403 rate=0.5" in text
    cleared = read(up, "fault", "clear", "ali-ak-1")["cleared"]
    assert [one["id"] for one in cleared] == ["ali-ak-1.1", "ali-ak-1.2"]
    assert read(up, "fault", "list")["faults"] == []


def test_latency_is_real_when_asked_for_and_off_again(up: Path) -> None:
    shown = yunhe("lab", "up", "--latency", "real", state_dir=up)
    assert shown.returncode == 0 and "tens of ms" in shown.stderr and "confidence low" in shown.stderr
    assert {cloud["latency"] for cloud in read(up, "status")["clouds"]} == {"real"}
    assert yunhe("lab", "up", state_dir=up).returncode == 0
    assert {cloud["latency"] for cloud in read(up, "status")["clouds"]} == {"real"}, "as it was, if not said"
    assert yunhe("lab", "up", "--latency", "off", state_dir=up).returncode == 0
    assert {cloud["latency"] for cloud in read(up, "status")["clouds"]} == {"off"}


def test_the_meter_shows_a_run_and_begins_a_new_one(up: Path) -> None:
    assert python(SNIPPETS["plant-7"], read(up, "env", "plant-7")).returncode == 0
    read(up, "meter", "plant-7", "--reset")
    assert python(SNIPPETS["plant-7"], read(up, "env", "plant-7")).returncode == 0
    [cloud] = read(up, "meter", "plant-7", "--since-reset")["clouds"]
    rows = {row["verb"]: row["requests"] for row in cloud["rows"]}
    assert rows == {"put": 1, "get": 1}
    [whole] = read(up, "meter", "plant-7")["clouds"]
    assert {row["verb"]: row["requests"] for row in whole["rows"]}["put"] >= 2
    assert "put requests" in yunhe("lab", "meter", state_dir=up).stdout


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (["add", "error", "--cloud", "aws-use1", "--for", "5s"], "needs a status", "503"),
        (["add", "error", "--status", "503", "--for", "5s"], "more than one cloud is up", "aws-use1"),
        (["add", "boom", "--for", "5s"], "boom", "--help"),
        (["add", "reset", "--cloud", "mars", "--for", "5s"], "named mars", "aws-use1"),
        (["add", "reset", "--cloud", "aws-use1"], "--for", "--help"),
        (["add", "reset", "--cloud", "aws-use1", "--for", "soon"], "not a duration", "101s"),
        (["add", "reset", "--cloud", "aws-use1", "--for", "2d"], "a day", "shorter"),
        (["add", "reset", "--cloud", "aws-use1", "--for", "5s", "--rate", "2"], "probability", "0 to 1"),
        (["add", "reset", "--cloud", "aws-use1", "--for", "5s", "--service", "s3"], "no service", "objects"),
        (["add", "reset", "--cloud", "aws-use1", "--for", "5s", "--zone", "use1-az9"], "no zone", "use1-az4"),
        (["add", "slow-disk", "--cloud", "aws-use1", "--for", "5s", "--bytes-per-s", "fast"], "not a size", "MiB"),
        (["add", "clock-skew", "--cloud", "aws-use1", "--for", "5s", "--skew", "late"], "not a duration", "10m"),
        (
            ["add", "reset", "--cloud", "plant-7", "--for", "5s", "--service", "dns"],
            "nothing of plant-7",
            "does not run",
        ),
        (["ali-ak", "--cloud", "aliyun-hz", "--zone", "cn-hangzhou-h"], "no zone in particular", "--zone"),
        (["sun-burst", "--cloud", "aliyun-hz"], "No such command", "--help"),
        (["clear", "nope"], "no fault is named nope", "none"),
    ],
)
def test_bad_input_is_one_sentence_with_a_hint_and_changes_nothing(
    up: Path, args: list[str], error: str, hint: str
) -> None:
    says(yunhe("lab", "fault", *args, state_dir=up), error, hint)
    assert read(up, "fault", "list")["faults"] == []


@pytest.mark.parametrize("args", [["status"], ["fault", "list"], ["meter"], ["env"], ["down"]])
def test_what_needs_a_lab_says_so_and_makes_none(tmp_path: Path, args: list[str]) -> None:
    state_dir = tmp_path / "state"
    shown = yunhe("lab", *args, state_dir=state_dir)
    if args[0] in ("status", "down"):
        assert shown.returncode == 0
    else:
        says(shown, "no emulated cloud runs", "yunhe lab up")
    assert not state_dir.exists()


def test_up_refuses_what_makes_no_sense_before_anything_starts(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    says(yunhe("lab", "up", "--cloud", "x", state_dir=state_dir), "not a cloud", "NAME=provider:region")
    says(yunhe("lab", "up", "--latency", "fast", state_dir=state_dir), "no latency profile", "real")
    says(yunhe("lab", "up", str(tmp_path / "none.yaml"), state_dir=state_dir), "none.yaml")
    assert not state_dir.exists()


@pytest.mark.parametrize("name", ["fault", "fault-ali-ak", "fault-gcp-gatekeeper", "fault-add", "up", "meter"])
def test_help_reads_as_it_did(name: str) -> None:
    shown = yunhe("lab", *name.split("-", 1), "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    golden = GOLDEN / f"lab-help-{name}.txt"
    if os.environ.get("YUNHE_GOLDEN") == "write":
        golden.write_text(shown.stdout)
    assert shown.stdout == golden.read_text()
