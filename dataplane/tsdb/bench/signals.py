"""Vehicle signals of realistic entropy, the same for the same seed: what benchmarks write, send and ask for.

A wide table as a gateway records it each 10 ms: half of the signals are floats quantised by their CAN message's factor
that walk, a fifth is noise of full precision, which nothing makes small, a fifth are status words that seldom change,
a tenth are slow floats. A constant column would make any figure look good.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema

WALKS, NOISE, STATUS, SLOW = 50, 20, 20, 10
SIGNALS = WALKS + NOISE + STATUS + SLOW
FACTOR = np.float32(0.05)
"""Of a walk's steps: a speed's or a temperature's in an ordinary CAN database."""
PERIOD_MS = 10
EPOCH_MS = 1_760_000_000_000
STATUS_CHANGES = 0.002
SLOW_CHANGES = 0.01
"""Share of the rows in which a status word or a slow float changes."""

WIDE = TableSchema(
    "signals",
    (
        Column(1, "vehicle", ColumnType.STRING, ColumnRole.TAG, nullable=False),
        Column(2, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        *(Column(3 + at, f"walk_{at}", ColumnType.FLOAT32) for at in range(WALKS)),
        *(Column(3 + WALKS + at, f"noise_{at}", ColumnType.FLOAT64) for at in range(NOISE)),
        *(Column(3 + WALKS + NOISE + at, f"status_{at}", ColumnType.UINT8) for at in range(STATUS)),
        *(Column(3 + WALKS + NOISE + STATUS + at, f"slow_{at}", ColumnType.FLOAT64) for at in range(SLOW)),
    ),
)


def wide(seed: int, vehicle: str, first_row: int, rows: int) -> pa.Table:
    """Rows of one vehicle, from `first_row` of its drive on; `SIGNALS` points each."""
    rng = np.random.default_rng(seed)
    times = EPOCH_MS + (first_row + np.arange(rows, dtype=np.int64)) * PERIOD_MS
    columns: dict[str, pa.Array] = {
        "vehicle": pa.array([vehicle]).take(pa.array(np.zeros(rows, dtype=np.int32))),
        "ts": pa.array(times, pa.timestamp("ms")),
    }
    for at in range(WALKS):
        steps = rng.integers(-2, 3, rows, dtype=np.int8)
        columns[f"walk_{at}"] = pa.array(
            (rng.integers(0, 2_000) + np.cumsum(steps, dtype=np.int32)).astype(np.float32) * FACTOR
        )
    for at in range(NOISE):
        columns[f"noise_{at}"] = pa.array(rng.normal(size=rows))
    for at in range(STATUS):
        columns[f"status_{at}"] = pa.array(_held(rng, rows, STATUS_CHANGES, rng.integers(0, 16, rows, dtype=np.uint8)))
    for at in range(SLOW):
        columns[f"slow_{at}"] = pa.array(_held(rng, rows, SLOW_CHANGES, rng.normal(50, 10, rows)))
    return pa.table(columns)


def _held(rng: np.random.Generator, rows: int, changes: float, values: np.ndarray) -> np.ndarray:
    """`values`, each held until the next change."""
    at = np.where(rng.random(rows) < changes, np.arange(rows), 0)
    held: np.ndarray = values[np.maximum.accumulate(at)]
    return held
