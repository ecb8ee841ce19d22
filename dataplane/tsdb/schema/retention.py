"""Which of a table's files have expired: all of their rows are older than the table keeps them. Both sides' files."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema

UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def overlap(meta: FileMeta, low: int, high: int) -> bool:
    """Whether the file may have rows of the times [low, high]."""
    return meta.time_min <= high and meta.time_max >= low


def expired(
    schema: TableSchema, files: Sequence[FileMeta], now_ms: int, keep: Collection[str] = frozenset()
) -> list[FileMeta]:
    """Files all of whose rows are older than the table keeps them, but those whose ids are in `keep`. One is kept while
    an older file that stays overlaps it: what it deletes or replaces there would come back."""
    if schema.options.ttl_ms is None:
        return []
    units = UNITS_PER_S[schema.time.type.unit]
    before = (now_ms - schema.options.ttl_ms) * units // 1_000
    old = [meta for meta in files if meta.time_max < before and meta.file_id not in keep]
    if schema.options.append_mode or not old:
        return old
    staying = [meta for meta in files if meta.time_min < before and (meta.time_max >= before or meta.file_id in keep)]
    return [
        meta
        for meta in old
        if not any(s.sequence <= meta.sequence and overlap(s, meta.time_min, meta.time_max) for s in staying)
    ]
