"""What a stack's configuration may say of its spec."""

from __future__ import annotations

from pathlib import Path

import pulumi
import pytest

from stacks.program import _files


def test_a_spec_is_one_file_or_a_list_and_the_example_by_default() -> None:
    assert _files("a.yaml") == ["a.yaml"]
    assert _files('["a.yaml", "b.yaml"]') == ["a.yaml", "b.yaml"]
    [example] = _files(None)
    assert Path(example).is_file()


def test_a_list_that_cannot_be_read_is_said_in_one_sentence() -> None:
    with pytest.raises(pulumi.RunError, match="neither a file's name nor a JSON list"):
        _files('["a.yaml"')
