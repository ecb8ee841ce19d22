"""Vehicle signals of realistic entropy, the same for the same seed: what benchmarks write, send and ask for.

A wide table as a gateway records it each 10 ms: half of the signals are floats quantised by their CAN message's factor
that walk, a fifth is noise of full precision, which nothing makes small, a fifth are status words that seldom change,
a tenth are slow floats. A constant column would make any figure look good.

The narrow tables, which an edge takes, have the noise as a vehicle's bus carries it: whole numbers times a factor, here
a hundredth of its deviation, as a yaw rate or an acceleration has it (`narrow_fields`; `exact` leaves it at full
precision, which no bus carries). An application that knows its bus declares how many decimals such a signal has, so
walks and noise are declared to have two. The wide table, of imports and queries, has it at full precision.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema

WALKS, NOISE, STATUS, SLOW = 50, 20, 20, 10
SIGNALS = WALKS + NOISE + STATUS + SLOW
FACTOR = np.float32(0.05)
"""Of a walk's steps: a speed's or a temperature's in an ordinary CAN database."""
NOISE_FACTOR = 0.01
"""Of a narrow table's noise, whose standard deviation is 1: some nine bits of entropy a value."""
DECIMALS = 2
"""Of both factors' multiples."""
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


NARROW_FIELDS = 10
"""Signals of a narrow table, in the proportions of the wide one."""


def narrow(name: str, options: TableOptions, *, exact: bool = False) -> TableSchema:
    """A table as a vehicle's application keeps it for one control unit: no tags, ten signals. `exact`: its noise has
    full precision, and so no decimals."""
    fields: tuple[tuple[str, ColumnType, int | None], ...] = (
        *((f"walk_{at}", ColumnType.FLOAT32, DECIMALS) for at in range(5)),
        *((f"noise_{at}", ColumnType.FLOAT64, None if exact else DECIMALS) for at in range(2)),
        *((f"status_{at}", ColumnType.UINT8, None) for at in range(2)),
        ("slow_0", ColumnType.FLOAT64, None),
    )
    return TableSchema(
        name,
        (
            Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
            *(Column(at, field, kind, decimals=digits) for at, (field, kind, digits) in enumerate(fields, 2)),
        ),
        options=options,
    )


def narrow_fields(seed: int, rows: int, *, exact: bool = False) -> dict[str, pa.Array]:
    """The signals of `narrow`, without their times. `exact`: the noise has full precision."""
    fields = _signals(np.random.default_rng(seed), rows, 5, 2, 2, 1)
    for name, values in fields.items():
        if name.startswith("noise_") and not exact:
            fields[name] = pa.array(np.rint(values.to_numpy() / NOISE_FACTOR) * NOISE_FACTOR)
    return fields


def times(first_row: int, rows: int) -> pa.Array:
    """Times of rows of a drive, by `PERIOD_MS`."""
    return pa.array(EPOCH_MS + (first_row + np.arange(rows, dtype=np.int64)) * PERIOD_MS, pa.timestamp("ms"))


def wide(seed: int, vehicle: str, first_row: int, rows: int) -> pa.Table:
    """Rows of one vehicle, from `first_row` of its drive on; `SIGNALS` points each."""
    tag = pa.array([vehicle]).take(pa.array(np.zeros(rows, dtype=np.int32)))
    signals = _signals(np.random.default_rng(seed), rows, WALKS, NOISE, STATUS, SLOW)
    return pa.table({"vehicle": tag, "ts": times(first_row, rows), **signals})


def _signals(
    rng: np.random.Generator, rows: int, walks: int, noise: int, status: int, slow: int
) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for at in range(walks):
        steps = rng.integers(-2, 3, rows, dtype=np.int8)
        columns[f"walk_{at}"] = pa.array(
            (rng.integers(0, 2_000) + np.cumsum(steps, dtype=np.int32)).astype(np.float32) * FACTOR
        )
    for at in range(noise):
        columns[f"noise_{at}"] = pa.array(rng.normal(size=rows))
    for at in range(status):
        columns[f"status_{at}"] = pa.array(_held(rng, rows, STATUS_CHANGES, rng.integers(0, 16, rows, dtype=np.uint8)))
    for at in range(slow):
        columns[f"slow_{at}"] = pa.array(_held(rng, rows, SLOW_CHANGES, rng.normal(50, 10, rows)))
    return columns


def _held(rng: np.random.Generator, rows: int, changes: float, values: np.ndarray) -> np.ndarray:
    """`values`, each held until the next change."""
    at = np.where(rng.random(rows) < changes, np.arange(rows), 0)
    held: np.ndarray = values[np.maximum.accumulate(at)]
    return held
