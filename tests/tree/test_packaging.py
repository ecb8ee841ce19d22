"""The four import names are generic: the wheel ships exactly these, and each package says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("controlplane", "dataplane", "providers", "stacks")


def test_the_wheel_ships_exactly_the_four_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=100)
    [wheel] = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == set(PACKAGES)


def test_every_package_says_what_it_is() -> None:
    for package in PACKAGES:
        for init in sorted((ROOT / package).rglob("__init__.py")):
            docstring = ast.get_docstring(ast.parse(init.read_text()))
            assert docstring and len(docstring) > 40, f"{init.relative_to(ROOT)} has no paragraph"


def test_modules_stay_readable() -> None:
    """One idea each: a module beyond 450 lines wants to be two."""
    for package in PACKAGES:
        for module in sorted((ROOT / package).rglob("*.py")):
            lines = len(module.read_text().splitlines())
            assert lines <= 450, f"{module.relative_to(ROOT)} has {lines} lines"
