"""Rows in an SST's order: by tags, then time; of one series and time one row, unless the table appends."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.schema.tables import MergeMode, TableSchema

OP_TYPE = "__op_type"
"""Column of files that delete: GreptimeDB's name and values."""
DELETE = 0
PUT = 1


def key_columns(schema: TableSchema) -> list[str]:
    """What rows are sorted by: tags in the table's order, then the time index."""
    return [*schema.tags, schema.time.name]


def ordered(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """`rows`, later ones written later, sorted and merged as the table's options say. A delete removes the rows written
    before it and stays itself, for the rows in older files.
    """
    keys = key_columns(schema)
    rows = rows.combine_chunks()
    if not _ascends(rows, keys):
        written = pa.array(np.arange(len(rows), dtype=np.int64))
        by = rows.select(keys).append_column("__written", written)
        # A tag may be null: those rows are a series too, and come first.
        order = [(name, "ascending", "at_start") for name in (*keys, "__written")]
        rows = rows.take(pc.sort_indices(by, sort_keys=order))
    if schema.options.append_mode:
        return rows
    first = begins(rows, keys)
    if bool(first.all()):
        return rows
    last = np.append(first[1:], True)
    if schema.options.merge_mode is MergeMode.LAST_NON_NULL:
        return _last_non_null(rows, keys, first, last)
    return rows.filter(pa.array(last))


def _ascends(rows: pa.Table, keys: list[str]) -> bool:
    """Whether a table without tags is in order as it is: the usual case on a vehicle."""
    if len(keys) > 1:
        return False
    times = rows.column(keys[0]).cast(pa.int64()).to_numpy()
    return bool((times[1:] >= times[:-1]).all())


def begins(rows: pa.Table, keys: list[str]) -> np.ndarray:
    """Of each row, whether it differs in these columns from the row before."""
    differs = np.zeros(len(rows), dtype=bool)
    differs[:1] = True
    for name in keys:
        column = rows.column(name)
        before, after = column.slice(0, len(rows) - 1), column.slice(1)
        # A comparison with null is null: two nulls are the same series, a null and a value are not.
        same = pc.fill_null(pc.equal(before, after), False)
        both_null = pc.and_(pc.is_null(before), pc.is_null(after))
        differs[1:] |= ~pc.or_(same, both_null).to_numpy()
    return differs


def _last_non_null(rows: pa.Table, keys: list[str], first: np.ndarray, last: np.ndarray) -> pa.Table:
    """Of each key one row: of each field the last value that is not null and was not deleted before. Where rows were
    written after a delete, that stays before theirs: it hides the fields of older files, which theirs alone would not.
    """
    at = np.arange(len(rows))
    deleted = np.zeros(len(rows), dtype=bool)
    if OP_TYPE in rows.column_names:
        deleted = rows.column(OP_TYPE).to_numpy() == DELETE
    start = np.maximum.accumulate(np.where(first | deleted, at, 0))
    kept = last.copy()
    kept[start[last]] |= deleted[start[last]]
    mask = pa.array(kept)
    columns = []
    for name in rows.column_names:
        column = rows.column(name)
        if name in keys or name == OP_TYPE:
            columns.append(column.filter(mask))
            continue
        newest = np.maximum.accumulate(np.where(column.is_valid().to_numpy(), at, -1))
        columns.append(column.take(pa.array(np.where(newest >= start, newest, at)[kept])))
    return pa.table(columns, schema=rows.schema)
