"""Floating-point values with a declared number of decimals: rounded when they are taken in, stored as decimals.

A bus carries whole numbers, and its application computes `raw * 0.01` of them, which is not what it looks like:
7 * 0.01 is 0.07000000000000001. Of a column with two decimals that is 0.07, the value nearest to 7 / 100, on every side
and before as after a flush. In files it is the 7 of a Parquet DECIMAL, whole numbers whose deltas are small; readers of
any make see 0.07.

    k = the whole number nearest to v * 10^decimals; v becomes the value nearest to k / 10^decimals, and 0 has no sign

What has no such decimals stays as it is: NaN, infinities, and values of which k has more than `DIGITS` digits. Up to
there k is found again from what it became, so that rounding twice is rounding once. A file with one value that is not
such a decimal has that column as the floats that it is: a file holds exactly the rows that it was given.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataplane.tsdb.schema.tables import DIGITS, TableSchema

STORED_DIGITS = 18
"""Of a DECIMAL that Parquet stores in 64 bits: more than `DIGITS`, so that readers of several files can bring those of
one column to one scale."""
_END = 10.0**DIGITS
_EXACT = 1 << 53
"""Whole numbers up to this are exact in floating point."""


def taken_in(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """`rows`, which have columns of the table by name, each rounded to the decimals that its column has."""
    for column in schema.columns:
        if column.decimals is not None and column.name in rows.column_names:
            at = rows.schema.get_field_index(column.name)
            values = rounded(rows.column(at), column.decimals)
            rows = rows.set_column(at, rows.schema.field(at), values)
    return rows


def rounded(values: pa.ChunkedArray, decimals: int) -> pa.ChunkedArray:
    """`values`, of a floating-point type, to so many decimals."""
    # Memory has them in dozens of chunks, each of which would cost as much as all of them at once.
    whole = pa.chunked_array([values.combine_chunks()]) if values.num_chunks > 1 else values
    return pa.chunked_array([_rounded(chunk, decimals) for chunk in whole.chunks if len(chunk)], values.type)


def stored_type(decimals: int) -> pa.DataType:
    """Of such a column in a file: whole numbers of 64 bits, whatever the values."""
    return pa.decimal64(STORED_DIGITS, decimals)


def as_decimals(values: pa.ChunkedArray, decimals: int) -> pa.ChunkedArray | None:
    """`values` in their `stored_type`, from which `as_floats` makes them again bit by bit; None: one of them is not
    such a decimal."""
    chunks = []
    for chunk in (each for each in values.chunks if len(each)):
        floats = _numbers(chunk)
        whole = _whole(floats, decimals)
        same = _bits(_nearest(whole, decimals, floats.dtype)) == _bits(floats)
        fits = (np.abs(whole) < _END) & same
        if chunk.null_count:
            there = chunk.is_valid().to_numpy(zero_copy_only=False)
            fits |= ~there
            whole = np.where(there, whole, 0.0)
        if not fits.all():
            return None
        chunks.append(_array(stored_type(decimals), whole.astype(np.int64), chunk))
    return pa.chunked_array(chunks, stored_type(decimals))


def finer(values: pa.ChunkedArray, by: int) -> pa.ChunkedArray | None:
    """The same decimals with `by` digits more, which are 0; None: they would not all be exact in 64 bits of floating
    point."""
    kind = stored_type(values.type.scale + by)
    chunks = []
    for chunk in (each for each in values.chunks if len(each)):
        whole = np.frombuffer(chunk.buffers()[1], "<i8", len(chunk), chunk.offset * 8)
        if chunk.null_count:
            whole = np.where(chunk.is_valid().to_numpy(zero_copy_only=False), whole, 0)
        if np.abs(whole).max() > _EXACT // 10**by:
            return None
        chunks.append(_array(kind, whole * 10**by, chunk))
    return pa.chunked_array(chunks, kind)


def as_floats(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Decimals of a file, as Arrow reads them, as the floating-point values of type `kind` that they were. Arrow's own
    cast is off by a bit for a quarter of values.

    Raises:
        ValueError: decimals of more than `STORED_DIGITS`.
    """
    stored = values.type
    if stored.precision > STORED_DIGITS:
        raise ValueError(f"{stored} has more digits than 64 bits")
    chunks = []
    for chunk in (each for each in values.cast(pa.decimal128(stored.precision, stored.scale)).chunks if len(each)):
        # Of the 128 bits of each the lower half.
        halves = np.frombuffer(chunk.buffers()[1], "<i8", 2 * len(chunk), 16 * chunk.offset)
        whole = halves[::2].astype(np.float64)
        chunks.append(_array(kind, _nearest(whole, stored.scale, np.dtype(kind.to_pandas_dtype())), chunk))
    return pa.chunked_array(chunks, kind)


def _rounded(values: pa.Array, decimals: int) -> pa.Array:
    floats = _numbers(values)
    whole = _whole(floats, decimals)
    return _array(values.type, np.where(np.abs(whole) < _END, _nearest(whole, decimals, floats.dtype), floats), values)


def _whole(floats: np.ndarray, decimals: int) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = np.rint(floats.astype(np.float64) * 10.0**decimals)
    return found


def _nearest(whole: np.ndarray, decimals: int, dtype: np.dtype) -> np.ndarray:
    """Both are exact up to `DIGITS`, so that the quotient is the nearest value; adding 0 takes the sign from -0."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: np.ndarray = (whole / 10.0**decimals + 0.0).astype(dtype)
    return found


def _bits(floats: np.ndarray) -> np.ndarray:
    return floats.view(f"i{floats.itemsize}")


def _numbers(values: pa.Array) -> np.ndarray:
    """Without a copy; where there is a null, whatever lies there."""
    dtype = np.dtype(values.type.to_pandas_dtype())
    return np.frombuffer(values.buffers()[1], dtype, len(values), values.offset * dtype.itemsize)


def _array(kind: pa.DataType, values: np.ndarray, like: pa.Array) -> pa.Array:
    """Of these values, with the nulls of `like`."""
    there = None
    if like.null_count:
        valid = like.is_valid().to_numpy(zero_copy_only=False)
        there = pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(values)], like.null_count)
