"""Both sides of the ring, in Python and in Rust, are written for one layout. `make sdk-test` runs the Rust one."""

from __future__ import annotations

import re
from pathlib import Path

from dataplane.tsdb.ring import layout
from dataplane.tsdb.ring.channel import Kind
from dataplane.tsdb.schema.tables import ColumnType

SOURCES = Path(__file__).parents[4] / "sdk" / "yunhe-edge" / "src"


def constants(name: str) -> dict[str, int]:
    """Numbers that a Rust module names."""
    found = re.findall(r"const (\w+): \w+ = ([0-9x_A-F]+(?: << \d+)?);", (SOURCES / name).read_text())
    return {key: eval(value) for key, value in found}


def test_rust_and_python_have_one_layout() -> None:
    rust = constants("layout.rs")
    assert len(rust) == 12
    for name in ("VERSION", "HEADER_BYTES", "ROWS_MAX", "WRAP", "HAS_NULLS"):
        assert rust[name] == getattr(layout, name), name
    assert rust["RECORD_HEAD"] == layout.RECORD.size and rust["KIND_ROWS"] == layout.ROWS
    for name in ("CONSUMED", "PUBLISHED"):
        assert rust[name] == 8 * getattr(layout, name), name
    for name in ("READER_SLEEPS", "CLOSED", "WRITER_WAITS"):
        assert rust[name] == 4 * getattr(layout, name), name


def test_rust_and_python_number_frames_and_types_alike() -> None:
    frames = constants("channel.rs")
    for kind in Kind:
        assert frames.get(kind.name, kind) == kind
    assert {"HELLO", "DECLARE", "FLUSH", "WAKE", "WELCOME", "DECLARED", "FLUSHED", "FAREWELL"} <= set(frames)
    types = re.findall(r'\(Type::\w+, "([^"]+)"\)', (SOURCES / "layout.rs").read_text())
    assert types == [kind.value for kind in ColumnType]
