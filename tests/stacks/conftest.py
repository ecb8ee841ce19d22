"""The real Pulumi CLI over a folder of its own: backend, home, state directory, and a project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli.lab import stop_everything
from controlplane.server.files import StateDir

ROOT = Path(__file__).parents[2]
PROGRAM = "from stacks.program import program\n\nprogram()\n"


@pytest.fixture(scope="session")
def pulumi_bin() -> Path:
    """The folder with the CLI."""
    built = subprocess.run([ROOT / "tools/pulumi/build.sh"], capture_output=True, text=True, check=False)
    if built.returncode == 3:
        pytest.skip(built.stderr.strip().splitlines()[-1])
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@dataclass
class Project:
    """One stack, named lab."""

    folder: Path
    bin: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def state_dir(self) -> StateDir:
        return StateDir(self.folder / "state")

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(self.bin), os.environ["PATH"]]),
            "PULUMI_BACKEND_URL": f"file://{self.folder / 'backend'}",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_HOME": str(self.folder / "home"),
            # The CLI knows which stack is chosen by the project's folder, and this one is a copy.
            "PULUMI_STACK": "lab",
            "PULUMI_PYTHON_CMD": sys.executable,
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PYTHONPATH": str(ROOT),
            "YUNHE_STATE_DIR": str(self.state_dir.root),
            **self.more,
        }

    def run(self, *argv: str | Path, timeout: float = 150) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def pulumi(self, *args: str, ok: bool = True) -> str:
        """What the CLI printed; it ended well, or with an error where `ok` is false."""
        result = self.run("pulumi", *args, "--non-interactive")
        text = result.stdout + result.stderr
        assert (result.returncode == 0) is ok, text
        return text

    def yunhe(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "controlplane.cli.main", *args)

    def write(self, spec: str, program: str = PROGRAM) -> None:
        (self.folder / "spec.yaml").write_text(spec)
        (self.folder / "__main__.py").write_text(program)

    def set(self, name: str, value: str, stack: str = "lab") -> None:
        """As `pulumi config set` does: in the stack's file."""
        path = self.folder / f"Pulumi.{stack}.yaml"
        settings = yaml.safe_load(path.read_text()) or {}
        settings.setdefault("config", {})[f"yunhe:{name}"] = value
        path.write_text(yaml.safe_dump(settings))

    def state(self) -> dict[str, Any]:
        exported: dict[str, Any] = json.loads(self.run("pulumi", "stack", "export").stdout)
        return exported

    def every(self) -> list[dict[str, Any]]:
        """Resources in the stack's state."""
        return list(self.state()["deployment"].get("resources", []))

    def resources(self) -> list[dict[str, Any]]:
        """Those of ours in the stack's state."""
        return [one for one in self.every() if one["type"].startswith("yunhe:")]


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, pulumi_bin: Path) -> Path:
    """The folder of a project with the stack lab, in which nothing was ever deployed: made once, and copied."""
    made = Project(tmp_path_factory.mktemp("pulumi") / "fresh", pulumi_bin)
    for name in ("backend", "home", "bin"):
        (made.folder / name).mkdir(parents=True)
    plugin = made.folder / "bin" / "pulumi-resource-yunhe"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m stacks.provider "$@"\n')
    plugin.chmod(0o755)
    shutil.copy(ROOT / "stacks" / "Pulumi.yaml", made.folder)
    made.pulumi("stack", "init", "lab")
    return made.folder


@pytest.fixture
def project(tmp_path: Path, fresh: Path, pulumi_bin: Path) -> Iterator[Project]:
    """A project with nothing deployed; what runs for it is stopped at the end."""
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    made = Project(tmp_path, pulumi_bin)
    made.set("spec", json.dumps([str(tmp_path / "spec.yaml")]))
    try:
        yield made
    finally:
        if made.state_dir.exists():
            stop_everything(made.state_dir)
