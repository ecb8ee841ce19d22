"""Arrow tables in pieces of a few milliseconds, and cells that every wire encodes alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from providers.base.errors import Invalid

BATCH_CELLS = 10_000
"""Encoded at once: a few milliseconds."""

Cells = list[bytes | None]


def batches(data: pa.Table) -> Iterator[list[pa.Array]]:
    """The columns of a few rows at a time, each one array without a dictionary."""
    rows = max(1, BATCH_CELLS // max(1, data.num_columns))
    for start in range(0, len(data), rows):
        part = data.slice(start, rows).combine_chunks()
        yield [_plain(column) for column in part.columns]


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def as_text(array: pa.Array) -> Cells:
    """As Arrow writes it, in UTF-8."""
    cells: Cells = array.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return cells


def micros(array: pa.Array) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Of timestamps: microseconds since the epoch, and which are null. Nanoseconds are cut towards the past.

    Raises:
        Invalid: one is beyond what microseconds count.
    """
    per_us = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[array.type.unit]
    numbers = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if array.type.unit == "ns":
        numbers = numbers // 1_000
    elif per_us > 1:
        limit = np.iinfo(np.int64).max // per_us
        if len(numbers) and (numbers.max() > limit or numbers.min() < -limit):
            raise Invalid("a time of the answer is beyond what a DATETIME counts")
        numbers = numbers * per_us
    return numbers, array.is_null().to_numpy(zero_copy_only=False)
