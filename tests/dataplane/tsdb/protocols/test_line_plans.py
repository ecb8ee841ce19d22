"""Lines of a form that is known to fit are stored as all others are, also once their table has changed."""

from __future__ import annotations

import pyarrow as pa

from dataplane.tsdb.bench.lines import NullDatabase
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.protocols.influx import InfluxWriter
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions
from providers.base.clock import SystemClock
from tests.sim.virtualtime import run

COLUMNS = (
    Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(2, "host", ColumnType.STRING, ColumnRole.TAG),
    Column(3, "v", ColumnType.FLOAT64),
)
LINES = b"cpu,host=a v=1.5 1760000000000\ncpu,host=b v=2.5 1760000000010\n"


class Keeps(NullDatabase):
    """What was written, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Rows] = []

    async def write(self, rows: list[Rows]) -> int:  # type: ignore[override]
        self.written += rows
        return await super().write(rows)


async def repeated(database: Keeps, writer: InfluxWriter, body: bytes, times: int) -> list[pa.Table]:
    before = len(database.written)
    for _ in range(times):
        done = await writer.write(body, 1_000_000)
        assert (done.rows, done.refused) == (2, 0)
    return [rows.data for rows in database.written[before:]]


def test_the_same_lines_become_the_same_rows_each_time() -> None:
    async def scenario() -> None:
        database = Keeps()
        writer = InfluxWriter(database, SystemClock())
        await database.create_table("cpu", COLUMNS, TableOptions())
        found = await repeated(database, writer, LINES, 6)
        for rows in found:
            assert rows.select(["host", "v"]).to_pydict() == {"host": ["a", "b"], "v": [1.5, 2.5]}
            assert rows.column("ts").cast(pa.int64()).to_pylist() == [1_760_000_000_000, 1_760_000_000_010]
        assert found[-1].column_names == ["ts", "host", "v"]  # the table's order, by then

    run(scenario())


def test_a_table_that_was_made_anew_has_its_own_types() -> None:
    """A form that fitted the old one is looked at again."""

    async def scenario() -> None:
        database = Keeps()
        writer = InfluxWriter(database, SystemClock())
        await database.create_table("cpu", COLUMNS, TableOptions())
        await repeated(database, writer, LINES, 4)
        database._tables.clear()
        seconds = Column(1, "at", ColumnType.TIMESTAMP_S, ColumnRole.TIME, nullable=False)
        narrow = Column(3, "v", ColumnType.FLOAT32)
        await database.create_table("cpu", (COLUMNS[1], seconds, narrow), TableOptions())
        for rows in await repeated(database, writer, LINES, 3):
            assert rows.column("v").type == pa.float32()
            assert rows.column("at").cast(pa.int64()).to_pylist() == [1_760_000_000] * 2

    run(scenario())


def test_a_value_that_a_line_leaves_out_is_refused_or_null_as_before() -> None:
    async def scenario() -> None:
        database = Keeps()
        writer = InfluxWriter(database, SystemClock())
        await database.create_table("cpu", COLUMNS, TableOptions())
        await repeated(database, writer, LINES, 4)
        done = await writer.write(b'cpu,host=a v="text" 1760000000000\ncpu,host=a v=3.5 1760000000020\n', 1_000_000)
        assert (done.rows, done.refused) == (1, 1)
        assert "'v' of table 'cpu' is float64" in done.errors[0].reason

    run(scenario())
