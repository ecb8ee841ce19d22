"""SSTs whose footers have been read and checked: which bytes hold the wanted columns, and their rows from those bytes.

Parsing the footer of a hundred columns costs more than reading one of them, so `Footers` keeps what was parsed, the
least recently used going first. A page is checked against its CRC each time that it is decoded.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.reader import field_id
from providers.base.errors import Corrupt

FOOTER_COST = 13
"""Bytes of memory that a byte of a footer becomes: measured, 250 KB of 19 KB."""
IDLE_MAX = 2
"""Readers of one file that are kept for the next who ask for it."""
Range = tuple[int, int]
"""First byte and end."""


class OpenedSst:
    """One file. Its footer may be used by many at once; each read takes a reader of its own."""

    def __init__(self, meta: FileMeta, footer: pq.FileMetaData) -> None:
        """`footer`: by `checked_footer`.

        Raises:
            Corrupt: it is no footer of an SST.
        """
        self._meta = meta
        self._footer = footer
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()
        self.bytes = FOOTER_COST * int(footer.serialized_size)
        first = self._take()
        try:
            fields = list(first.file.schema_arrow)
            self._at = {number: at for at, field in enumerate(fields) if (number := field_id(field)) is not None}
            names = [field.name for field in fields]
            self._op_at = names.index(OP_TYPE) if OP_TYPE in names else None
        except (pa.ArrowException, ValueError) as error:
            raise Corrupt(f"the footer of file {meta.file_id} cannot be read: {str(error)[:200]}") from error
        self._give_back(first)

    def _wanted(self, schema: TableSchema, names: Sequence[str]) -> list[int]:
        ids = [column.id for column in schema.columns if column.name in names]
        own = [self._op_at] if self._op_at is not None else []
        found = [self._at[number] for number in ids if number in self._at]
        # With none of them there would be no telling how many rows there are.
        return sorted({*found, *own}) or [0]

    def ranges(self, schema: TableSchema, names: Sequence[str], gap_bytes_max: int) -> list[Range]:
        """Where the columns' pages are, those as one that have at most so many bytes between them."""
        found = []
        wanted = self._wanted(schema, names)
        for group in range(self._footer.num_row_groups):
            columns = self._footer.row_group(group)
            for at in wanted:
                chunk = columns.column(at)
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                found.append((start, start + chunk.total_compressed_size))
        merged: list[Range] = []
        for start, end in sorted(found):
            if merged and start - merged[-1][1] <= gap_bytes_max:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        if merged and not 0 <= merged[0][0] <= merged[-1][1] <= self._meta.size:
            raise Corrupt(f"the footer of file {self._meta.file_id} names bytes that the file has not")
        return merged

    def rows(self, schema: TableSchema, names: Sequence[str], pieces: Sequence[tuple[int, bytes]]) -> pa.Table:
        """The file's rows by the bytes of `ranges`, each with its start: as `FileReader.columns`.

        Raises:
            Corrupt: a page is not what was written.
        """
        reader = self._take()
        reader.source.pieces = pieces
        try:
            read = reader.file.reader.read_all(column_indices=self._wanted(schema, names), use_threads=False)
            rows = self._shaped(schema, names, read)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise Corrupt(
                f"file {self._meta.file_id} of table {schema.name!r} is not what was written: {str(error)[:200]}"
            ) from error
        reader.source.pieces = ()
        self._give_back(reader)
        return rows

    def _shaped(self, schema: TableSchema, names: Sequence[str], read: pa.Table) -> pa.Table:
        """In the schema's types and order: what the file has not is null, what was widened since is cast."""
        if len(read) != self._footer.num_rows:
            raise ValueError(f"{len(read)} rows, and {self._footer.num_rows} by its footer")
        by_id = {field_id(field): at for at, field in enumerate(read.schema)}
        columns, shown = [], []
        for column in schema.columns:
            if column.name not in names:
                continue
            at = by_id.get(column.id)
            if at is None:
                columns.append(pa.chunked_array([pa.nulls(len(read), column.type.arrow)]))
            elif read.schema.field(at).type == column.type.arrow:
                columns.append(read.column(at))
            else:
                columns.append(read.column(at).cast(column.type.arrow))
            shown.append(column.name)
        if OP_TYPE in read.column_names:
            columns.append(read.column(OP_TYPE))
            shown.append(OP_TYPE)
        return pa.table(columns, names=shown)

    def _take(self) -> _Reader:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Reader(self._meta, self._footer)

    def _give_back(self, reader: _Reader) -> None:
        with self._lock:
            if len(self._idle) < IDLE_MAX:
                self._idle.append(reader)


class _Reader:
    """Parquet's reader over whichever pieces it is given."""

    def __init__(self, meta: FileMeta, footer: pq.FileMetaData) -> None:
        self.source = _Pieces(meta.size)
        try:
            self.file = pq.ParquetFile(self.source, metadata=footer, page_checksum_verification=True, pre_buffer=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Corrupt(f"the footer of file {meta.file_id} cannot be read: {str(error)[:200]}") from error


class _Pieces(io.RawIOBase):
    """A file of which only some ranges are there. Reading another is a mistake, and says so."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0
        self.pieces: Sequence[tuple[int, bytes]] = ()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0 if whence == io.SEEK_SET else self._at if whence == io.SEEK_CUR else self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        for start, data in self.pieces:
            if start <= self._at and end <= start + len(data):
                found = data if (start, end) == (self._at, start + len(data)) else data[self._at - start : end - start]
                self._at = end
                return found
        raise OSError(f"bytes {self._at} to {end} were not fetched")


class Footers:
    """Opened files within a bound of memory, the least recently used going first. For several threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._opened: OrderedDict[str, OpenedSst] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._opened)

    def get(self, file_id: str) -> OpenedSst | None:
        with self._lock:
            found = self._opened.get(file_id)
            if found is not None:
                self._opened.move_to_end(file_id)
            return found

    def put(self, file_id: str, opened: OpenedSst) -> None:
        """Keep it; one that is larger than the bound is not kept."""
        with self._lock:
            self._drop(file_id)
            self._opened[file_id] = opened
            self.bytes += opened.bytes
            while self.bytes > self._bytes_max:
                self._drop(next(iter(self._opened)))

    def drop(self, file_id: str) -> None:
        with self._lock:
            self._drop(file_id)

    def _drop(self, file_id: str) -> None:
        gone = self._opened.pop(file_id, None)
        if gone is not None:
            self.bytes -= gone.bytes
