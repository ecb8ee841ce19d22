"""The command line's contract: what it costs to import, its exit codes, its voice. Run in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from providers.lab.processes import ProcessTable

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: hz}
spec: {provider: aliyun, region: cn-hangzhou, zones: [cn-hangzhou-h, cn-hangzhou-i]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: hz, brokers: 2}
"""

HEAVY = (
    "pydantic",
    "fastapi",
    "starlette",
    "uvicorn",
    "aiohttp",
    "yaml",
    "sqlite3",
    "boto3",
    "botocore",
    "oss2",
    "azure",
)
HEAVY += ("google", "kio", "confluent_kafka", "requests", "dataplane.ledger", "controlplane.api.kinds")


def yunhe(*args: str, state_dir: Path | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("YUNHE_")}
    if state_dir is not None:
        environment["YUNHE_STATE_DIR"] = str(state_dir)
    return subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", *args],
        capture_output=True,
        text=True,
        env=environment,
        input=stdin,
        timeout=60,
        check=False,
    )


def says(result: subprocess.CompletedProcess[str], error: str, hint: str | None = None) -> None:
    """One sentence, a blank line, a hint; exit code 1; nothing on stdout and no traceback."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    lines = result.stderr.rstrip("\n").split("\n")
    first = lines.index(next(line for line in lines if line.startswith("error: ")))
    assert error in lines[first]
    assert "Traceback" not in result.stderr
    if hint is not None:
        assert lines[first + 1] == "" and lines[first + 2].startswith("hint: ") and hint in lines[first + 2]
        assert len(lines) == first + 3


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_importing_the_cli_loads_nothing_heavy() -> None:
    code = "import controlplane.cli.main, sys; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert [name for name in HEAVY if name in modules] == []


def test_every_command_has_help() -> None:
    listed = yunhe("--help")
    assert listed.returncode == 0 and listed.stderr == ""
    for command in [
        "up",
        "down",
        "status",
        "plan",
        "render",
        "apply",
        "diff",
        "get",
        "explain",
        "schema",
        "move",
        "drill",
        "bench",
        "lab",
    ]:
        assert f"  {command} " in listed.stdout
    assert yunhe().stdout == listed.stdout


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["plan"], "Missing argument"),
        (["plan", "--nonsense", "x"], "No such option"),
        (["dance"], "No such command"),
        (["status", "-o", "xml"], "xml"),
    ],
)
def test_wrong_usage_exits_1_since_2_means_that_a_plan_has_changes(args: list[str], error: str) -> None:
    says(yunhe(*args), error, "--help")


def test_plan_exits_2_with_changes_1_with_an_error_and_starts_nothing(tmp_path: Path, spec: Path) -> None:
    state_dir = tmp_path / "state"
    planned = yunhe("plan", str(spec), state_dir=state_dir)
    assert planned.returncode == 2
    assert "+ broker main/b-1" in planned.stdout
    assert "Apply with `yunhe apply --plan" in planned.stdout
    as_json = yunhe("plan", str(spec), "-o", "json", state_dir=state_dir)
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["empty"] is False
    assert yunhe("plan", "-", state_dir=state_dir, stdin=SPEC).stdout == planned.stdout
    says(yunhe("plan", str(tmp_path / "none.yaml"), state_dir=state_dir), "none.yaml")
    assert not state_dir.exists()


def test_a_wrong_spec_changes_nothing_and_names_the_place(tmp_path: Path, spec: Path) -> None:
    state_dir = tmp_path / "state"
    spec.write_text(SPEC.replace("provider: aliyun", "provider: aliun"))
    says(yunhe("up", str(spec), state_dir=state_dir), f"{spec}:4", "did you mean aliyun?")
    spec.write_text(SPEC.replace("brokers: 2", "brokers: 2, borkers: 3"))
    says(yunhe("up", str(spec), state_dir=state_dir), f"{spec}:9", "did you mean")
    spec.write_text(SPEC.replace("cloud: hz", "cloud: sz"))
    says(yunhe("up", str(spec), state_dir=state_dir), "no Cloud is named sz")
    spec.write_text("a: [")
    says(yunhe("up", str(spec), state_dir=state_dir), f"{spec}:2: not YAML")
    assert not state_dir.exists()


def test_a_state_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path, spec: Path) -> None:
    (tmp_path / "file").write_text("")
    says(yunhe("up", str(spec), state_dir=tmp_path / "file"), "cannot be used", "--state-dir")
    says(yunhe("up", str(spec), state_dir=tmp_path / "file" / "below"), "cannot be used", "--state-dir")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("")
    says(yunhe("up", str(spec), state_dir=photos), "not a state directory", "--state-dir")
    assert sorted(p.name for p in photos.iterdir()) == ["cat.jpg"]
    says(yunhe("up", str(spec), state_dir=Path("/proc/yunhe")), "cannot be used", "--state-dir")


@pytest.mark.parametrize("command", [["up", "SPEC"], ["down"], ["plan", "SPEC"], ["status"]])
def test_another_versions_state_directory_is_left_alone(tmp_path: Path, spec: Path, command: list[str]) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    (state_dir / "version").write_text("99\n")
    result = yunhe(*[str(spec) if part == "SPEC" else part for part in command], state_dir=state_dir)
    says(result, "another version of yunhe (layout 99", "--state-dir")
    assert [p.name for p in state_dir.iterdir()] == ["version"]


def test_two_ups_at_once_are_refused_by_a_lock_that_dies_with_its_holder(tmp_path: Path, spec: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    with (state_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("yunhe up, pid 4711")
        lock.flush()
        says(yunhe("up", str(spec), state_dir=state_dir), "another command is at work", "wait until it has ended")
    assert ProcessTable(state_dir).everything() == []


def test_status_and_down_of_nothing_are_no_errors(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    shown = yunhe("status", "-o", "json", state_dir=state_dir)
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["state"] == "Stopped"
    assert json.loads(shown.stdout)["controlPlane"][0]["pid"] is None
    assert yunhe("down", state_dir=state_dir).returncode == 0
    assert yunhe("down", "--purge", state_dir=state_dir).returncode == 0
    assert not state_dir.exists()


@pytest.mark.parametrize(
    "command", [["apply", "SPEC"], ["apply", "--plan", "abcdef12"], ["get", "Topic"], ["move", "orders-0", "--to", "2"]]
)
def test_what_needs_something_running_says_so(tmp_path: Path, spec: Path, command: list[str]) -> None:
    args = [str(spec) if part == "SPEC" else part for part in command]
    result = yunhe(*args, state_dir=tmp_path / "state")
    assert result.returncode == 1 and "hint: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("provider", "mode"),
    [
        ("aliyun", "regional-block"),
        ("azure", "regional-block"),
        ("gcp", "regional-block"),
        ("aws", "block+express"),
        ("private", "object"),
    ],
)
def test_explain_wal_says_mode_reasons_and_what_was_rejected(tmp_path: Path, provider: str, mode: str) -> None:
    text = yunhe("explain", "wal", provider, state_dir=tmp_path / "state")
    assert text.returncode == 0 and f"wal {mode}" in text.stdout.splitlines()[0]
    value = json.loads(yunhe("explain", "wal", provider, "-o", "json", state_dir=tmp_path / "state").stdout)
    assert value["mode"] == mode and value["reasons"] and value["rejected"]


def test_explain_wal_knows_clouds_of_a_spec(tmp_path: Path, spec: Path) -> None:
    shown = yunhe("explain", "wal", "hz", "--spec", str(spec), state_dir=tmp_path / "state")
    assert shown.returncode == 0 and shown.stdout.startswith("cloud hz ")
    says(yunhe("explain", "wal", "mars", state_dir=tmp_path / "state"), "no Cloud is named mars", "--spec FILE")


def test_schema_is_json_schema_of_each_kind() -> None:
    whole = json.loads(yunhe("schema").stdout)
    assert len(whole["oneOf"]) == 4
    assert json.loads(yunhe("schema", "topic").stdout)["title"] == "Topic"
    says(yunhe("schema", "cat"), "not a kind", "Cloud, BrokerCluster, Topic")


def test_a_bug_is_one_sentence_and_a_traceback_only_with_debug(tmp_path: Path) -> None:
    code = (
        "import sys; from controlplane.cli import main, status\n"
        "def broken(*a, **k): raise ZeroDivisionError('boom')\n"
        "status.status = broken\n"
        "sys.exit(main.run(sys.argv[1:]))"
    )
    plain = subprocess.run([sys.executable, "-c", code, "status"], capture_output=True, text=True, check=False)
    says(plain, "a bug in yunhe: ZeroDivisionError: boom", "--debug")
    debug = subprocess.run(
        [sys.executable, "-c", code, "--debug", "status"], capture_output=True, text=True, check=False
    )
    assert debug.returncode == 1 and "Traceback" in debug.stderr
