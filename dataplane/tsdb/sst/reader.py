"""An SST's rows as of the table's present schema, each page checked against its CRC.

Columns are found by id: one that was added since is null, one that was widened is cast, one that another version called
otherwise is still itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import RawIOBase

import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import Column, TableSchema
from dataplane.tsdb.sst.decimals import as_floats
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.writer import FIELD_ID, NAN_KEY
from providers.base.errors import Corrupt


def read_sst(
    data: bytes | RawIOBase,
    schema: TableSchema,
    columns: Sequence[str] | None = None,
    footer: pq.FileMetaData | None = None,
) -> pa.Table:
    """The rows in the file's order, with `columns` (None: all) of `schema`, and `__op_type` where the file has it.
    `footer`: the file's, where it has been read already.

    Raises:
        Corrupt: it is no Parquet file, a page differs from its checksum, or a column is not what the schema says.
    """
    wanted = [c for c in schema.columns if columns is None or c.name in columns]
    try:
        source = pa.BufferReader(data) if isinstance(data, bytes) else data
        file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
        arrow = file.schema_arrow
        found = {field_id(field): field.name for field in arrow}
        names = [found[c.id] for c in wanted if c.id in found]
        own = [OP_TYPE] if OP_TYPE in arrow.names else []
        rows = file.read([*names, *own], use_threads=False)
        read = [_column(rows, found.get(c.id), c) for c in wanted] + [rows.column(name) for name in own]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Corrupt(f"an SST of table {schema.name!r} cannot be read: {str(error)[:200]}") from error
    return pa.table(read, names=[c.name for c in wanted] + own)


def checked_footer(footer: bytes, meta: FileMeta) -> pq.FileMetaData:
    """What is in the footer, `meta.footer_bytes` long.

    Raises:
        Corrupt: it is not the one that was written.
    """
    check_footer(footer, meta)
    return parsed_footer(footer, meta)


def check_footer(footer: bytes, meta: FileMeta) -> None:
    """Raises:
    Corrupt: the footer is not the one that was written.
    """
    if len(footer) != meta.footer_bytes or (meta.footer_crc32c is not None and crc32c(footer) != meta.footer_crc32c):
        raise Corrupt(f"the footer of file {meta.file_id} of table {meta.table!r} is not the one that was written")


def parsed_footer(footer: bytes, meta: FileMeta) -> pq.FileMetaData:
    """Of a footer that has been checked.

    Raises:
        Corrupt: it is none.
    """
    try:
        return pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"the footer of file {meta.file_id} cannot be read: {str(error)[:200]}") from error


def has_no_nan(footer: bytes, number: int) -> bool:
    """Whether the column of that id is known to hold no NaN, which statistics leave out: by the writer's own note. That
    is searched for, as the footer need not be parsed for it; found twice, it is not believed."""
    mark = b"\x18" + bytes([len(NAN_KEY)]) + NAN_KEY + b"\x18"
    at = footer.find(mark)
    if at < 0 or footer.find(mark, at + 1) >= 0:
        return False
    begin = at + len(mark) + 1
    length = footer[begin - 1] if begin <= len(footer) else 0x80
    noted = footer[begin : begin + length]
    # A length of two bytes would be of dozens of such columns: taken as not known.
    return length < 0x80 and len(noted) == length and str(number).encode() not in noted.split(b",")


def field_id(field: pa.Field) -> int | None:
    """Of a file's column: the table's column; None for the database's own."""
    value = (field.metadata or {}).get(FIELD_ID)
    return int(value) if value is not None else None


def _column(rows: pa.Table, name: str | None, column: Column) -> pa.ChunkedArray:
    if name is None:
        return pa.chunked_array([pa.nulls(len(rows), column.type.arrow)])
    return as_column(rows.column(name), column.type.arrow)


def as_column(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A file's values in the type that their column has now: widened since, or decimals of floating-point values.

    Raises:
        ValueError: not values of such a column.
    """
    if values.type == kind:
        return values
    if pa.types.is_decimal(values.type) and pa.types.is_floating(kind):
        return as_floats(values, kind)
    return values.cast(kind)
