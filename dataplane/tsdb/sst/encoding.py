"""How each column of an SST is encoded: measured on its own data, and remembered.

No rule of thumb holds for signals: a quantised float is small by dictionary while it has few values and by byte-stream
split when it has many; a counter is small by deltas; noise is small by nothing, and compressing it costs the vehicle's
processor for nothing. So each candidate is tried on a sample, the smallest is taken, and what compression must earn is
said in one place.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataplane.tsdb.sst.decimals import finer

DICTIONARY = "DICTIONARY"
DELTA = "DELTA_BINARY_PACKED"
FINER = (1,)
"""How many digits are tried behind those of a decimal: deltas of five bits, which compression sees across bytes, become
deltas of eight, a byte each, and then it finds what is in them. 2,000 steps of five sizes are 827 bytes instead of
1,125."""
SAMPLE_ROWS = 2_048
"""Rows of a column that candidates are tried on: beyond that their order hardly changes."""
LOOKED_AT_ROWS = 512
DISTINCT_MAX = 0.75
"""Share of distinct values among `LOOKED_AT_ROWS` above which no dictionary is tried: it would be the column itself."""
LEVELS = (1, 6)
"""zstd levels tried. Above 6 the last per cent costs several times the processor time."""
EARNS_MIN = 0.02
"""What compression at all, or a higher level of it, has to save of the bytes to be worth its processor time."""
OTHERWISE = "\x00otherwise"
"""Behind a column's name, in what is remembered: no name ends so."""
REMEASURE_FILES = 256
"""Files of a table after which its columns are measured anew: signals change their nature as a vehicle wakes."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Of one column. `name`: Parquet's, or `DICTIONARY`. `level`: of zstd; None: not compressed. `finer`: of decimals,
    how many digits more than the column's are stored, each 0."""

    name: str
    level: int | None
    finer: int = 0


def candidates(kind: pa.DataType) -> tuple[str, ...]:
    """The encodings of Parquet that may make values of this type small."""
    if pa.types.is_boolean(kind):
        return ("PLAIN",)
    if pa.types.is_decimal(kind):
        return (DELTA, DICTIONARY)
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return (DELTA, DICTIONARY, "BYTE_STREAM_SPLIT")
    if pa.types.is_floating(kind):
        return (DICTIONARY, "BYTE_STREAM_SPLIT", "PLAIN")
    return (DICTIONARY, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")


def choose(values: pa.ChunkedArray) -> Encoding:
    """The encoding that makes these values, or a sample from their middle, smallest."""
    return choose_all({"v": values})["v"]


def choose_all(columns: Mapping[str, pa.ChunkedArray]) -> dict[str, Encoding]:
    """`choose` for each of some columns of one length, of which all are tried in one file: on small ones making a file
    costs more than what is in it."""
    samples = {name: _sample(values) for name, values in columns.items()}
    forms = {name: _likely(values) for name, values in samples.items()}
    best: dict[str, tuple[int, Encoding]] = {}
    for level in LEVELS:
        tries = [(name, Encoding(each, level, more)) for name in samples for each, more in forms[name]]
        sizes = _bytes_of([(stored(samples[name], encoding), encoding) for name, encoding in tries])
        found: dict[str, tuple[int, Encoding]] = {}
        for (name, encoding), (plain, size) in zip(tries, sizes, strict=True):
            if level == LEVELS[0] and (name not in best or plain < best[name][0]):
                best[name] = (plain, Encoding(encoding.name, None, encoding.finer))
            if name not in found or size < found[name][0]:
                found[name] = (size, encoding)
        for name, (size, encoding) in found.items():
            earns = size <= best[name][0] * (1 - EARNS_MIN)
            if earns:
                best[name] = (size, encoding)
            # What a low level makes no smaller, a higher one does not either.
            forms[name] = ((encoding.name, encoding.finer),) if earns else ()
    return {name: encoding for name, (_, encoding) in best.items()}


def stored(values: pa.ChunkedArray, encoding: Encoding) -> pa.ChunkedArray:
    """`values` with as many digits as are stored; with their own, where more would not be exact."""
    more = finer(values, encoding.finer) if encoding.finer and pa.types.is_decimal(values.type) else None
    return values if more is None else more


def _likely(values: pa.ChunkedArray) -> tuple[tuple[str, int], ...]:
    found = tuple((name, 0) for name in _likely_names(values))
    return found + tuple((DELTA, more) for more in FINER) if pa.types.is_decimal(values.type) else found


def _likely_names(values: pa.ChunkedArray) -> tuple[str, ...]:
    found = candidates(values.type)
    few = values.slice(0, LOOKED_AT_ROWS)
    if DICTIONARY in found and len(few) == LOOKED_AT_ROWS:
        distinct = int(pc.count_distinct(few, mode="all").as_py())
        if distinct > DISTINCT_MAX * LOOKED_AT_ROWS:
            return tuple(name for name in found if name != DICTIONARY)
    return found


def _sample(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.slice(max(0, (len(values) - SAMPLE_ROWS) // 2), SAMPLE_ROWS)


def _bytes_of(tries: Sequence[tuple[pa.ChunkedArray, Encoding]]) -> list[tuple[int, int]]:
    """Of each column so encoded: before compression, and after."""
    if not tries or not len(tries[0][0]):
        return [(0, 0)] * len(tries)
    sink = io.BytesIO()
    table = pa.table({str(at): values for at, (values, _) in enumerate(tries)})
    options = writer_options({str(at): encoding for at, (_, encoding) in enumerate(tries)})
    pq.write_table(table, sink, store_schema=False, write_statistics=False, **options)
    group = pq.read_metadata(sink).row_group(0)
    made = [group.column(at) for at in range(len(tries))]
    return [(int(column.total_uncompressed_size), int(column.total_compressed_size)) for column in made]


def writer_options(encodings: Mapping[str, Encoding]) -> dict[str, Any]:
    """As arguments of pyarrow's Parquet writer."""
    return {
        "use_dictionary": [name for name, e in encodings.items() if e.name == DICTIONARY],
        "column_encoding": {name: e.name for name, e in encodings.items() if e.name != DICTIONARY} or None,
        "compression": {name: "none" if e.level is None else "zstd" for name, e in encodings.items()},
        "compression_level": {name: e.level for name, e in encodings.items() if e.level is not None} or None,
        "write_page_checksum": True,
        "store_decimal_as_integer": True,
    }


class Chooser:
    """One writer's memory of what suits its tables' columns."""

    def __init__(self, known: Mapping[str, Mapping[str, Encoding]] | None = None) -> None:
        """`known`: what an earlier writer had chosen, by table and column."""
        self._chosen = {table: dict(columns) for table, columns in (known or {}).items()}
        self._files: dict[str, int] = {}

    def encodings(self, table: str, rows: pa.Table, otherwise: Collection[str] = ()) -> dict[str, Encoding]:
        """By column name, for the next file of `table`. `otherwise`: columns that this file has in another type than
        others have: what suits them so is remembered beside what suits them else."""
        chosen = self._chosen.setdefault(table, {})
        written = self._files.get(table, 1 if chosen else 0)
        self._files[table] = written + 1
        anew = written % REMEASURE_FILES == 0
        keys = {name: name + OTHERWISE if name in otherwise else name for name in rows.column_names}
        columns = dict(zip(keys.values(), rows.columns, strict=True))
        # A column that was widened since may be of a type that its encoding is not for.
        unknown = {
            name: values
            for name, values in columns.items()
            if anew or name not in chosen or chosen[name].name not in candidates(values.type)
        }
        if unknown:
            chosen |= choose_all(unknown)
        return {name: chosen[key] for name, key in keys.items()}

    def chosen(self, table: str) -> Mapping[str, Encoding]:
        """As of the table's last file."""
        return self._chosen.get(table, {})
