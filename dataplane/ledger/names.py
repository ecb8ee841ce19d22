"""Names of a ledger's objects under its prefix. Part of the format."""

from __future__ import annotations

SEGMENT_ENTRIES = 1_000
"""Names that one `collected` marker stands for."""


def entry_key(prefix: str, seq: int) -> str:
    """Entry `seq`, from 1."""
    return f"{prefix}/ledger/{seq:020d}"


def segment_of(seq: int) -> int:
    """The segment, from 0, that entry `seq` belongs to."""
    return (seq - 1) // SEGMENT_ENTRIES


def marker_key(prefix: str, segment: int) -> str:
    """The marker put before the first delete in `segment`; never removed, never rewritten."""
    return f"{prefix}/ledger/collected/{segment:010d}"


def snapshot_prefix(prefix: str) -> str:
    return f"{prefix}/ledger/snapshot/"


def snapshot_key(prefix: str, seq: int) -> str:
    """The state after entry `seq`."""
    return f"{snapshot_prefix(prefix)}{seq:020d}"
