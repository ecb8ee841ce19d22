"""The image: it is made of what the wheel ships, and of the very versions that everything else was tested with."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tree.test_packaging import PACKAGES, ROOT


def pinned(name: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def test_the_image_has_the_versions_that_were_tested_and_all_that_the_operator_needs() -> None:
    image, tested = pinned("requirements-image.lock"), pinned("requirements.lock")
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["operator"]]
    assert {canonicalize_name(Requirement(one).name) for one in needed} <= image.keys()
    assert not {"pytest", "moto", "pulumi"} & image.keys(), "what only tests and other doors need stays out"


def test_the_image_is_built_of_the_four_packages_and_runs_as_nobody_in_particular() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = {name for names in sources for name in names}
    assert copied == {*PACKAGES, "pyproject.toml", "README.md", "requirements-image.lock"}
    assert "USER 1001:1001" in lines
    shown = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert shown == copied
