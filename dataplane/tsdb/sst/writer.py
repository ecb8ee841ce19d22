"""Rows become an SST: ordered, encoded as measured, with what a reader and an importer need in its footer.

Columns carry their ids as Parquet's field ids; whose rows they are is in the footer under `yunhe:table`; each page has
its CRC-32; the whole has its SHA-256 in `FileMeta`, for no page checksum covers the footer. An edge's files are small,
some thousand rows: what stands once in each of them counts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from crc32c import crc32c

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import ColumnRole, TableSchema
from dataplane.tsdb.sst.decimals import as_decimals
from dataplane.tsdb.sst.encoding import Chooser, stored, writer_options
from dataplane.tsdb.sst.greptime import METADATA_KEY, fixed_encodings, region_metadata, with_internal_columns
from dataplane.tsdb.sst.order import DELETE, OP_TYPE, key_columns, ordered
from providers.base.errors import Invalid

TABLE_KEY = b"yunhe:table"
"""In the footer: the table, its version, that version's fingerprint, and the columns that rows are sorted by. Whoever
takes a file has its schema from the batch or the catalog, by the fingerprint."""
NAN_KEY = b"yunhe:nan"
"""In the footer of a file whose fields have statistics: the ids of columns that hold NaN, joined by commas. Parquet's
statistics leave NaN out."""
FIELD_ID = b"PARQUET:field_id"
ROW_GROUP_ROWS = 1 << 20
"""More rows than an edge's memtable holds: its files have one row group, whose statistics are the file's."""
STATISTICS_ROWS = 16_384
"""Of a file, from which on all its columns have statistics. In a smaller one a field's take up to 86 bytes, in its
footer and its page, to spare a reader a column of some hundred; there the tags and the time index have them."""
SCHEMAS_REMEMBERED = 1_024
"""Of which what a file says of its columns is kept at hand: an edge writes small files of many tables."""


@dataclass(frozen=True, slots=True)
class Sst:
    """A file that is not stored yet, and what is known of it."""

    data: bytes
    meta: FileMeta


def write_sst(schema: TableSchema, rows: pa.Table, *, file_id: str, origin: str, chooser: Chooser) -> Sst:
    """Make an SST of `rows`, of which later ones were written later. Columns by name, in any order; fields may be left
    out, and are null. `__op_type` (uint8) may be among them, for deletes.

    Raises:
        Invalid: no rows, a column that the table does not have or of another type, a tag or the time index missing, or
            null where the table has no null.
    """
    rows = conformed(schema, rows)
    deletes = OP_TYPE in rows.column_names
    rows = ordered(schema, rows)
    if deletes and not pc.any(pc.equal(rows.column(OP_TYPE), DELETE)).as_py():
        rows, deletes = rows.drop_columns([OP_TYPE]), False
    laid_out, otherwise = _with_decimals(schema, rows)
    encodings, notes = chooser.encodings(schema.name, laid_out, otherwise), {TABLE_KEY: _note(schema)}
    for at, name in enumerate(laid_out.column_names):
        if encodings[name].finer:
            values = stored(laid_out.column(at), encodings[name])
            laid_out = laid_out.set_column(at, laid_out.schema.field(at).with_type(values.type), values)
    if schema.options.greptime_columns:
        laid_out = with_internal_columns(schema, rows)
        encodings |= fixed_encodings(schema)
        notes[METADATA_KEY] = region_metadata(schema)
    # Without Arrow's own copy of the schema, which would be more than half of the footer of a wide table. GreptimeDB
    # reads that, and the statistics of `__sequence`.
    greptime = schema.options.greptime_columns
    everywhere = greptime or len(rows) >= STATISTICS_ROWS
    if everywhere:
        notes[NAN_KEY] = _with_nan(schema, rows)
    sink = io.BytesIO()
    options = {**writer_options(encodings), "write_statistics": True if everywhere else key_columns(schema)}
    with pq.ParquetWriter(sink, laid_out.schema, store_schema=greptime, **options) as writer:
        writer.write_table(laid_out, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata(notes)
    data = sink.getvalue()
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    times = pc.min_max(rows.column(schema.time.name).cast(pa.int64())).as_py()
    series, series_min, series_max = _series(rows, schema)
    return Sst(
        data,
        FileMeta(
            file_id=file_id,
            table=schema.name,
            fingerprint=schema.fingerprint,
            rows=len(rows),
            time_min=times["min"],
            time_max=times["max"],
            size=len(data),
            footer_bytes=footer_bytes,
            footer_crc32c=crc32c(data[-footer_bytes:]),
            sha256=hashlib.sha256(data).hexdigest(),
            origin=origin,
            deletes=deletes,
            series=series,
            series_min=series_min,
            series_max=series_max,
        ),
    )


def _with_decimals(schema: TableSchema, rows: pa.Table) -> tuple[pa.Table, list[str]]:
    """`rows` with columns that have decimals stored as such; and those of them that cannot be, and stay floats. A file
    for GreptimeDB has floats throughout: its tables' columns are."""
    stay = []
    for column in schema.columns:
        if column.decimals is None or schema.options.greptime_columns:
            continue
        at = rows.schema.get_field_index(column.name)
        found = as_decimals(rows.column(at), column.decimals)
        if found is None:
            stay.append(column.name)
        else:
            rows = rows.set_column(at, rows.schema.field(at).with_type(found.type), found)
    return rows, stay


def _with_nan(schema: TableSchema, rows: pa.Table) -> bytes:
    floats = [column for column in schema.columns if pa.types.is_floating(column.type.arrow)]
    return b",".join(
        str(column.id).encode() for column in floats if pc.any(pc.is_nan(rows.column(column.name))).as_py()
    )


@functools.lru_cache(maxsize=SCHEMAS_REMEMBERED)
def _note(schema: TableSchema) -> bytes:
    note = {
        "table": schema.name,
        "version": schema.version,
        "fingerprint": schema.fingerprint,
        "keys": key_columns(schema),
    }
    return json.dumps(note, separators=(",", ":")).encode()


@functools.lru_cache(maxsize=SCHEMAS_REMEMBERED)
def arrow_schema(schema: TableSchema, *, deletes: bool = False) -> pa.Schema:
    """An SST's columns: those of the table, by its order, with their ids. A row that deletes has no fields."""
    fields = [
        pa.field(
            c.name,
            c.type.arrow,
            nullable=c.nullable or (deletes and c.role is ColumnRole.FIELD),
            metadata={FIELD_ID: str(c.id).encode()},
        )
        for c in schema.columns
    ]
    if deletes:
        fields.append(pa.field(OP_TYPE, pa.uint8(), nullable=False))
    return pa.schema(fields)


def conformed(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """`rows` with all columns of the table in its order, those left out as nulls, and `__op_type` where it is there.

    Raises:
        Invalid: as `write_sst`.
    """
    if not len(rows):
        raise Invalid(f"an SST of table {schema.name!r} needs rows")
    target = arrow_schema(schema, deletes=OP_TYPE in rows.column_names)
    if rows.schema.equals(target, check_metadata=True):
        nulls = [f.name for f in target if not f.nullable and rows.column(f.name).null_count]
        if not nulls:
            return rows
    unknown = [name for name in rows.column_names if name not in target.names]
    if unknown:
        raise Invalid(f"table {schema.name!r} has no column {unknown[0]!r}")
    columns = []
    for field in target:
        if field.name in rows.column_names:
            column = rows.column(field.name)
            if column.type != field.type:
                raise Invalid(f"column {field.name!r} of table {schema.name!r} is {field.type}, not {column.type}")
        else:
            column = pa.chunked_array([pa.nulls(len(rows), field.type)])
        if column.null_count and not field.nullable:
            raise Invalid(f"column {field.name!r} of table {schema.name!r} is null in {column.null_count} rows")
        columns.append(column)
    return pa.table(columns, schema=target)


def _series(rows: pa.Table, schema: TableSchema) -> tuple[int, str, str]:
    """How many series, and the smallest and greatest by the tags' text. A table without tags is one series without a
    name."""
    if not schema.tags:
        return 1, "", ""
    distinct = rows.select(schema.tags).group_by(schema.tags).aggregate([])
    texts = [",".join("" if value is None else str(value) for value in row.values()) for row in distinct.to_pylist()]
    return len(texts), min(texts), max(texts)
