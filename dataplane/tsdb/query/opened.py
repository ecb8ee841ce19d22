"""SSTs whose footers have been read and checked: which bytes hold the wanted columns, and their rows from those bytes.

Parsing the footer of a hundred columns costs more than reading one of them, so of a footer only the wanted columns are
parsed where that can be done (`sst/footer.py`), and `Footers` keeps what was, the least recently used going first. A
page is checked against its CRC each time that it is decoded.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from dataplane.tsdb.query.spans import Span, outside
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.footer import Layout, layout_of, narrowed
from dataplane.tsdb.sst.order import OP_TYPE
from dataplane.tsdb.sst.reader import as_column, check_footer, field_id, has_no_nan, parsed_footer
from providers.base.errors import Corrupt

FOOTER_COST = 13
"""Bytes of memory that a byte of a footer becomes when it is parsed: measured, 250 KB of 19 KB."""
NARROW_COLUMNS_MAX = 16
"""Of more columns the whole footer is parsed: that is done in C++, and cutting it down is not."""
VIEWS_MAX = 2
"""Sets of columns that one file's footer is kept parsed for."""
IDLE_MAX = 2
"""Readers of one such set that are kept for the next who ask for it."""
LAYOUTS_MAX = 256
_OP_NAME = OP_TYPE.encode()
Range = tuple[int, int]
"""First byte and end."""


@dataclass(frozen=True, slots=True)
class _View:
    """A footer, whole or cut down, parsed. `columns`: the wanted ones' places in it; `ranges`: their pages."""

    footer: pq.FileMetaData
    columns: list[int]
    ranges: list[Range]
    idle: list[_Reader] = field(default_factory=list)


class OpenedSst:
    """One file. For several threads."""

    def __init__(self, meta: FileMeta, footer: bytes, layout: Layout | None) -> None:
        """`footer`: checked. `layout`: of files like this one, if it is known.

        Raises:
            Corrupt: it is no footer of an SST.
        """
        self._meta = meta
        self._footer = footer
        self._layout = layout
        self._whole: pq.FileMetaData | None = None
        self._views: OrderedDict[tuple[int, ...], _View] = OrderedDict()
        self._lock = threading.Lock()
        if layout is not None:
            self._at: Mapping[int, int] = layout.by_id
            self._op_at = layout.by_name.get(_OP_NAME)
            return
        try:
            found = list(self._parsed().schema.to_arrow_schema())
        except (pa.ArrowException, ValueError) as error:
            raise Corrupt(f"the footer of file {meta.file_id} cannot be read: {str(error)[:200]}") from error
        self._at = {number: at for at, one in enumerate(found) if (number := field_id(one)) is not None}
        self._op_at = next((at for at, one in enumerate(found) if one.name == OP_TYPE), None)

    @property
    def cost(self) -> int:
        """Bytes of memory, about. It grows with the sets of columns that are asked for."""
        with self._lock:
            cut = [view.footer for view in self._views.values() if view.footer is not self._whole]
        whole = len(self._footer) if self._whole is not None else 0
        return len(self._footer) + FOOTER_COST * (whole + sum(int(footer.serialized_size) for footer in cut))

    def _parsed(self) -> pq.FileMetaData:
        if self._whole is None:
            self._whole = parsed_footer(self._footer, self._meta)
        return self._whole

    def _wanted(self, schema: TableSchema, names: Sequence[str]) -> tuple[int, ...]:
        ids = [column.id for column in schema.columns if column.name in names]
        own = [self._op_at] if self._op_at is not None else []
        found = [self._at[number] for number in ids if number in self._at]
        # With none of them there would be no telling how many rows there are.
        return tuple(sorted({*found, *own})) or (0,)

    def _view(self, schema: TableSchema, names: Sequence[str]) -> _View:
        wanted = self._wanted(schema, names)
        with self._lock:
            found = self._views.get(wanted)
        if found is not None:
            return found
        cut = None
        if self._layout is not None and self._whole is None and len(wanted) <= NARROW_COLUMNS_MAX:
            cut = narrowed(self._footer, self._layout, wanted)
        if cut is None:
            footer, columns = self._parsed(), list(wanted)
        else:
            footer, columns = parsed_footer(cut, self._meta), list(range(len(wanted)))
        view = _View(footer, columns, self._pages(footer, columns))
        with self._lock:
            self._views[wanted] = view
            if len(self._views) > VIEWS_MAX:
                self._views.popitem(last=False)
        return view

    def _pages(self, footer: pq.FileMetaData, columns: Sequence[int]) -> list[Range]:
        found = []
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            for at in columns:
                chunk = group.column(at)
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                found.append((start, start + chunk.total_compressed_size))
        if any(not 0 <= start <= end <= self._meta.size for start, end in found):
            raise Corrupt(f"the footer of file {self._meta.file_id} names bytes that the file has not")
        return sorted(found)

    def ranges(self, schema: TableSchema, names: Sequence[str], gap_bytes_max: int) -> list[Range]:
        """Where the columns' pages are, those as one that have at most so many bytes between them."""
        merged: list[Range] = []
        for start, end in self._view(schema, names).ranges:
            if merged and start - merged[-1][1] <= gap_bytes_max:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def rows(self, schema: TableSchema, names: Sequence[str], pieces: Sequence[tuple[int, bytes]]) -> pa.Table:
        """The file's rows by the bytes of `ranges`, each with its start: as `FileReader.columns`.

        Raises:
            Corrupt: a page is not what was written.
        """
        view = self._view(schema, names)
        try:
            reader = self._reader(view)
            reader.source.pieces = pieces
            read = reader.file.reader.read_all(column_indices=view.columns, use_threads=False)
            if len(read) != view.footer.num_rows:
                raise ValueError(f"{len(read)} rows, and {view.footer.num_rows} by its footer")
            rows = _shaped(schema, names, read)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise Corrupt(
                f"file {self._meta.file_id} of table {schema.name!r} is not what was written: {str(error)[:200]}"
            ) from error
        reader.source.pieces = ()
        with self._lock:
            if len(view.idle) < IDLE_MAX:
                view.idle.append(reader)
        return rows

    def ruled_out(self, schema: TableSchema, names: Sequence[str], spans: Mapping[str, Span]) -> frozenset[str]:
        """The fields among `spans` of which no value is in its span, by the statistics of the footer. `names`: the
        columns that are to be read, those fields among them."""
        wanted, view = self._wanted(schema, names), self._view(schema, names)
        types = view.footer.schema.to_arrow_schema()
        groups = [view.footer.row_group(number) for number in range(view.footer.num_row_groups)]
        found = set()
        for column in schema.columns:
            span = spans.get(column.name)
            at = self._at.get(column.id)
            if span is None:
                continue
            if at is None:
                found.add(column.name)  # all of its values are null
                continue
            place = view.columns[wanted.index(at)]
            kind = types.field(place).type
            no_nan = pa.types.is_floating(kind) and has_no_nan(self._footer, column.id)
            if all(outside(span, kind, group.column(place), no_nan) for group in groups):
                found.add(column.name)
        return frozenset(found)

    def _reader(self, view: _View) -> _Reader:
        with self._lock:
            if view.idle:
                return view.idle.pop()
        return _Reader(self._meta.size, view.footer)


def _shaped(schema: TableSchema, names: Sequence[str], read: pa.Table) -> pa.Table:
    """In the schema's types and order: what the file has not is null, the rest as `as_column`."""
    by_id = {field_id(one): at for at, one in enumerate(read.schema)}
    columns, shown = [], []
    for column in schema.columns:
        if column.name not in names:
            continue
        at = by_id.get(column.id)
        if at is None:
            columns.append(pa.chunked_array([pa.nulls(len(read), column.type.arrow)]))
        else:
            columns.append(as_column(read.column(at), column.type.arrow))
        shown.append(column.name)
    if OP_TYPE in read.column_names:
        columns.append(read.column(OP_TYPE))
        shown.append(OP_TYPE)
    return pa.table(columns, names=shown)


class _Reader:
    """Parquet's reader over whichever pieces it is given."""

    def __init__(self, size: int, footer: pq.FileMetaData) -> None:
        self.source = _Pieces(size)
        self.file = pq.ParquetFile(self.source, metadata=footer, page_checksum_verification=True, pre_buffer=False)


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
        self._opened: OrderedDict[str, tuple[OpenedSst, int]] = OrderedDict()
        self._layouts: OrderedDict[tuple[str, str, bool], Layout | None] = OrderedDict()
        """By table, schema and whether there is a column for deletes."""
        self._lock = threading.Lock()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._opened)

    def get(self, name: str) -> OpenedSst | None:
        with self._lock:
            found = self._opened.get(name)
            if found is None:
                return None
            self._opened.move_to_end(name)
            return found[0]

    def opened(self, meta: FileMeta, footer: bytes) -> OpenedSst:
        """The file with that footer, not kept yet.

        Raises:
            Corrupt: it is not the one that was written, or none.
        """
        check_footer(footer, meta)
        return OpenedSst(meta, footer, self._layout(meta, footer))

    def _layout(self, meta: FileMeta, footer: bytes) -> Layout | None:
        key = (meta.table, meta.fingerprint, meta.deletes)
        with self._lock:
            known = self._layouts.get(key)
        if known is not None and footer.startswith(known.head):
            return known
        found = layout_of(footer)
        with self._lock:
            self._layouts[key] = found
            while len(self._layouts) > LAYOUTS_MAX:
                self._layouts.popitem(last=False)
        return found

    def put(self, name: str, opened: OpenedSst) -> None:
        """Keep it, at the size that it has now; one that is larger than the bound is not kept."""
        size = opened.cost
        with self._lock:
            if self._opened.get(name) == (opened, size):
                return
            self._drop(name)
            self._opened[name] = (opened, size)
            self.bytes += size
            while self.bytes > self._bytes_max:
                self._drop(next(iter(self._opened)))

    def drop(self, name: str) -> None:
        with self._lock:
            self._drop(name)

    def _drop(self, name: str) -> None:
        gone = self._opened.pop(name, None)
        if gone is not None:
            self.bytes -= gone[1]
