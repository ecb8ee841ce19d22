"""`yunhe bench stacks`: how long a user of Pulumi waits for the lab's stack, by the real CLI: from nothing, with
nothing to do, and until nothing is left. A project of its own, with its own backend; both go at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from controlplane.bench.figures import Figure, at_most
from controlplane.bench.lab import Bench
from controlplane.cli.main import run as yunhe
from providers.base.errors import Unavailable

RUNS = 3
UP_S, NOTHING_S = 25.0, 5.0
"""What is promised of an `up` from nothing, and of one with nothing to do."""
CALL_S_MAX = 300.0
PROJECT = "name: yunhe\nruntime: python\n"
PROGRAM = "from stacks.program import program\n\nprogram()\n"
LINES_SHOWN = 15


def stacks(bench: Bench) -> list[Figure]:
    """Medians of three rounds: up, up again, destroy.

    Raises:
        Unavailable: the CLI is not there, or a call of it did not end well.
    """
    took: dict[str, list[float]] = {"up": [], "nothing": [], "destroy": []}
    with _project(bench) as environment:
        for _ in range(RUNS):
            took["up"].append(_timed(bench, environment, "up", "--yes")[0])
            seconds, said = _timed(bench, environment, "up", "--yes")
            if "unchanged" not in said or " created" in said or " updated" in said:
                raise Unavailable("an `up` with nothing to do did something", hint=_end_of(said))
            took["nothing"].append(seconds)
            took["destroy"].append(_timed(bench, environment, "destroy", "--yes")[0])
            if bench.state_dir.exists():
                raise Unavailable("`pulumi destroy` left something of the lab behind")
    return [
        at_most("pulumi_up, from nothing", statistics.median(took["up"]), "s", UP_S),
        at_most("pulumi_up, nothing to do", statistics.median(took["nothing"]), "s", NOTHING_S),
        Figure("pulumi_destroy", round(statistics.median(took["destroy"]), 3), "s"),
        Figure("pulumi_up, from nothing, slowest", round(max(took["up"]), 3), "s"),
        Figure("rounds", RUNS, "rounds"),
    ]


def find_pulumi(environment: Mapping[str, str]) -> Path:
    """The folder of the CLI: on the PATH, or where `make test-stacks` builds it.

    Raises:
        Unavailable: it is at neither.
    """
    found = shutil.which("pulumi", path=environment.get("PATH", ""))
    if found is not None:
        return Path(found).parent
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yunhe"
    built = sorted(cache.glob("pulumi-*/bin/pulumi"), key=lambda path: path.stat().st_mtime)
    if not built:
        hint = "make test-stacks builds it (needs Go); or https://www.pulumi.com/docs/install"
        raise Unavailable("the Pulumi CLI is neither on the PATH nor built", hint=hint)
    return built[-1].parent


@contextlib.contextmanager
def _project(bench: Bench) -> Iterator[dict[str, str]]:
    """A stack named lab, and the environment that its CLI runs in."""
    cli = find_pulumi(os.environ)
    folder = bench.state_dir.root.with_name(f"{bench.state_dir.root.name}-stacks")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("backend", "home", "bin"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "Pulumi.yaml").write_text(PROJECT)
    (folder / "__main__.py").write_text(PROGRAM)
    plugin = folder / "bin" / "pulumi-resource-yunhe"
    plugin.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stacks.provider "$@"\n')
    plugin.chmod(0o700)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / "bin"), str(cli), os.environ.get("PATH", "")]),
        "PULUMI_BACKEND_URL": f"file://{folder / 'backend'}",
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_PYTHON_CMD": sys.executable,
        "YUNHE_STATE_DIR": str(bench.state_dir.root),
    }
    purge = ["down", "--purge", "--state-dir", str(bench.state_dir.root)]
    try:
        if yunhe(purge) != 0:
            raise Unavailable(f"{bench.state_dir.root} cannot be used for the benchmark's lab")
        _timed(bench, environment, "stack", "init", "lab")
        settings = {"spec": str(bench.spec.absolute()), "stateDir": str(bench.state_dir.root), "acceptDataLoss": "true"}
        for name, value in settings.items():
            _timed(bench, environment, "config", "set", f"yunhe:{name}", value)
        yield environment
    finally:
        yunhe(purge)
        shutil.rmtree(folder, ignore_errors=True)


def _timed(bench: Bench, environment: Mapping[str, str], *arguments: str) -> tuple[float, str]:
    """Seconds that a call of the CLI took, as its user waits, and what it said."""
    at_ms = bench.clock.monotonic_ms()
    try:
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=Path(environment["PULUMI_HOME"]).parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CALL_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pulumi {arguments[0]} did not end within {CALL_S_MAX:.0f} s") from error
    if done.returncode != 0:
        raise Unavailable(f"pulumi {arguments[0]} did not end well", hint=_end_of(done.stdout))
    return (bench.clock.monotonic_ms() - at_ms) / 1000, done.stdout


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LINES_SHOWN:])
