"""Some columns of an SST in a bucket, by ranged reads: its footer, then the wanted columns' pages and nothing else.

The footer is checked against its CRC in the manifest, each page against its CRC in the file: together they cover every
byte that is looked at.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.reader import checked_footer, field_id, read_sst
from providers.base.objects import ObjectStore

GAP_BYTES_MAX = 64 << 10
"""Bytes between two columns that are read along: cheaper than a request of their own."""
RANGES_AT_ONCE = 8


async def read_columns(
    store: ObjectStore, key: str, meta: FileMeta, schema: TableSchema, columns: Sequence[str]
) -> pa.Table:
    """As `read_sst`, of the file under `key`.

    Raises:
        Corrupt: a byte that was read is not what was written. NotFound, Unavailable: as the store's `get`.
    """
    footer_at = meta.size - meta.footer_bytes
    footer = checked_footer(await store.get(key, start=footer_at, length=meta.footer_bytes), meta)
    ranges = _ranges(footer, schema, columns)
    limit = asyncio.Semaphore(RANGES_AT_ONCE)

    async def get(start: int, end: int) -> tuple[int, bytes]:
        async with limit:
            return start, await store.get(key, start=start, length=end - start)

    pieces = await asyncio.gather(*(get(start, end) for start, end in ranges))
    return await asyncio.to_thread(read_sst, _Pieces(meta.size, pieces), schema, columns, footer)


def _ranges(footer: pq.FileMetaData, schema: TableSchema, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where the wanted columns' pages are, first byte and end, near ones as one."""
    ids = {column.id for column in schema.columns if column.name in columns}
    wanted = [
        at
        for at, field in enumerate(footer.schema.to_arrow_schema())
        if field_id(field) in ids or field.name == OP_TYPE
    ]
    found = []
    for group in range(footer.num_row_groups):
        for at in wanted:
            chunk = footer.row_group(group).column(at)
            start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
            found.append((start, start + chunk.total_compressed_size))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start - merged[-1][1] <= GAP_BYTES_MAX:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class _Pieces(io.RawIOBase):
    """A file of which only some ranges are there. Reading another is a mistake, and says so."""

    def __init__(self, size: int, pieces: Sequence[tuple[int, bytes]]) -> None:
        self._size = size
        self._pieces = pieces
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        for start, data in self._pieces:
            if start <= self._at and end <= start + len(data):
                found = data[self._at - start : end - start]
                self._at = end
                return found
        raise OSError(f"bytes {self._at} to {end} were not fetched")
