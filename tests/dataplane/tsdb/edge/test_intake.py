"""What is handed over becomes the table's columns, or is refused; what has them already is taken as it is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataplane.tsdb.edge.intake import Intake, Put
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from providers.base.errors import Invalid

SCHEMA = TableSchema(
    "engine",
    (
        Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        Column(2, "rpm", ColumnType.FLOAT32),
        Column(3, "gear", ColumnType.UINT8),
    ),
)
TEXT = TableSchema("text", (*SCHEMA.columns, Column(4, "note", ColumnType.STRING)))


def comes(times: list[int | None], **more: list[str]) -> pa.Table:
    stamps = pa.array(times, pa.timestamp("ms"))
    rpm, gear = pa.array([1.5] * len(times), pa.float32()), pa.array([3] * len(times), pa.uint8())
    return pa.table({"ts": stamps, "rpm": rpm, "gear": gear, **more})


def test_a_batch_with_the_tables_columns_is_taken_as_it_is() -> None:
    intake = Intake(SCHEMA)
    intake.batch(Put("engine", comes([1])))
    rows = comes([1, 2, 3])
    assert (
        intake.batch(Put("engine", rows)).column(0).buffers()[1].address == rows.column(0).chunk(0).buffers()[1].address
    )


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_null_time_is_refused_whatever_was_taken_before(before: int) -> None:
    intake = Intake(SCHEMA)
    for _ in range(before):
        intake.batch(Put("engine", comes([1])))
    with pytest.raises(Invalid, match="'ts' of table 'engine' is null in 1 rows"):
        intake.batch(Put("engine", comes([1, None])))
    assert intake.batch(Put("engine", comes([7]))).num_rows == 1


def test_other_orders_and_columns_left_out_come_in_the_tables_order() -> None:
    intake = Intake(SCHEMA)
    for names in (["gear", "ts", "rpm"], ["ts", "gear"], ["ts", "rpm", "gear"]) * 2:
        batch = intake.batch(Put("engine", comes([5, 6]).select(names)))
        assert batch.schema.names == ["ts", "rpm", "gear"]
        assert batch.column(1).null_count == (0 if "rpm" in names else 2)


@pytest.mark.parametrize("schema", [SCHEMA, TEXT], ids=["numbers", "text"])
@pytest.mark.parametrize("count", [1, 23, 5_000])
def test_the_size_that_is_made_sure_of_is_no_less_than_the_messages(schema: TableSchema, count: int) -> None:
    intake = Intake(schema)
    more = {"note": ["a rather long note"] * count} if schema is TEXT else {}
    batch = intake.batch(Put(schema.name, comes(list(range(count)), **more)))
    body = batch.serialize().size
    assert body <= intake.size(batch) <= 2 * body + 1_024
