"""`yunhe bench stacks` finds the CLI, or says where to get it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.bench.stacks import find_pulumi
from providers.base.errors import Unavailable


def program(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "pulumi").write_text("#!/bin/sh\n")
    (folder / "pulumi").chmod(0o755)
    return folder


def test_the_cli_is_that_of_the_path_else_the_newest_that_was_built(tmp_path: Path) -> None:
    cache = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    older = program(tmp_path / "cache" / "yunhe" / "pulumi-3.9.0" / "bin")
    newer = program(tmp_path / "cache" / "yunhe" / "pulumi-3.10.0" / "bin")
    os.utime(older / "pulumi", (1, 1))
    assert find_pulumi(cache) == newer
    mine = program(tmp_path / "mine")
    assert find_pulumi({**cache, "PATH": str(mine)}) == mine


def test_a_missing_cli_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="neither on the PATH nor built") as refused:
        find_pulumi({"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert "make test-stacks builds it" in str(refused.value.hint)
