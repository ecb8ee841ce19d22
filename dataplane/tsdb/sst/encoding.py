"""How each column of an SST is encoded: measured on its own data, and remembered.

No rule of thumb holds for signals: a quantised float is small by dictionary while it has few values and by byte-stream
split when it has many; a counter is small by deltas; noise is small by nothing, and compressing it costs the vehicle's
processor for nothing. So each candidate is tried on a sample, the smallest is taken, and what compression must earn is
said in one place.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DICTIONARY = "DICTIONARY"
SAMPLE_ROWS = 16_384
"""Rows of a column that candidates are tried on: beyond that their order hardly changes."""
LEVELS = (1, 6)
"""zstd levels tried. Above 6 the last per cent costs several times the processor time."""
EARNS_MIN = 0.02
"""What compression at all, or a higher level of it, has to save of the bytes to be worth its processor time."""
REMEASURE_FILES = 256
"""Files of a table after which its columns are measured anew: signals change their nature as a vehicle wakes."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Of one column. `name`: Parquet's, or `DICTIONARY`. `level`: of zstd; None: not compressed."""

    name: str
    level: int | None


def candidates(kind: pa.DataType) -> tuple[str, ...]:
    """The encodings of Parquet that may make values of this type small."""
    if pa.types.is_boolean(kind):
        return ("PLAIN",)
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return ("DELTA_BINARY_PACKED", DICTIONARY, "BYTE_STREAM_SPLIT")
    if pa.types.is_floating(kind):
        return (DICTIONARY, "BYTE_STREAM_SPLIT", "PLAIN")
    return (DICTIONARY, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")


def choose(values: pa.ChunkedArray) -> Encoding:
    """The encoding that makes these values, or a sample from their middle, smallest."""
    first = max(0, (len(values) - SAMPLE_ROWS) // 2)
    sample = values.slice(first, SAMPLE_ROWS)
    names = candidates(sample.type)

    def smallest(level: int | None) -> tuple[int, Encoding]:
        tried = [Encoding(name, level) for name in names]
        return min(((_bytes_of(sample, encoding), encoding) for encoding in tried), key=lambda found: found[0])

    best_size, best = smallest(None)
    for level in LEVELS:
        size, encoding = smallest(level)
        if size <= best_size * (1 - EARNS_MIN):
            best_size, best = size, encoding
        names = (best.name,)
    return best


def _bytes_of(values: pa.ChunkedArray, encoding: Encoding) -> int:
    sink = io.BytesIO()
    pq.write_table(pa.table({"v": values}), sink, store_schema=False, **writer_options({"v": encoding}))
    column = pq.read_metadata(sink).row_group(0).column(0) if len(values) else None
    return int(column.total_compressed_size) if column is not None else 0


def writer_options(encodings: Mapping[str, Encoding]) -> dict[str, Any]:
    """As arguments of pyarrow's Parquet writer."""
    return {
        "use_dictionary": [name for name, e in encodings.items() if e.name == DICTIONARY],
        "column_encoding": {name: e.name for name, e in encodings.items() if e.name != DICTIONARY} or None,
        "compression": {name: "none" if e.level is None else "zstd" for name, e in encodings.items()},
        "compression_level": {name: e.level for name, e in encodings.items() if e.level is not None} or None,
        "write_page_checksum": True,
    }


class Chooser:
    """One writer's memory of what suits its tables' columns."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, str], Encoding] = {}
        self._files: dict[str, int] = {}

    def encodings(self, table: str, rows: pa.Table) -> dict[str, Encoding]:
        """By column name, for the next file of `table`."""
        written = self._files.get(table, 0)
        self._files[table] = written + 1
        anew = written % REMEASURE_FILES == 0
        found: dict[str, Encoding] = {}
        for name in rows.column_names:
            key = (table, name)
            if anew or key not in self._chosen:
                self._chosen[key] = choose(rows.column(name))
            found[name] = self._chosen[key]
        return found
