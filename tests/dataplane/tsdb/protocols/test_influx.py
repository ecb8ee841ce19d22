"""Promises of line protocol to tables: they grow as GreptimeDB's, a line that does not fit is refused alone and says
why, and the last line wins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from dataplane.tsdb.protocols.influx import InfluxWriter, Written
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, MergeMode, TableOptions, TableSchema
from providers.base.clock import LoopClock
from providers.base.errors import Full, Unavailable
from tests.dataplane.tsdb.protocols.memory import MemoryDatabase

T = ColumnType


def wrote(database: MemoryDatabase, *bodies: str, unit: int = 1) -> list[Written]:
    async def main() -> list[Written]:
        writer = InfluxWriter(database, LoopClock())
        return [await writer.write(body.encode(), unit) for body in bodies]

    return asyncio.run(main())


def asked(database: MemoryDatabase, select: str) -> list[tuple[Any, ...]]:
    found = asyncio.run(database.query(select))
    return [tuple(row.values()) for row in found.to_pylist()]


def with_table(*columns: Column) -> MemoryDatabase:
    database = MemoryDatabase()
    asyncio.run(database.create_table("t", columns, TableOptions()))
    return database


def shown(schema: TableSchema) -> list[tuple[str, str, str, bool]]:
    return [(c.name, c.type.value, c.role.value, c.nullable) for c in schema.columns]


def test_a_measurement_becomes_a_table_as_greptimedb_makes_it() -> None:
    database = MemoryDatabase()
    [done] = wrote(database, 'cpu,host=a,dc=x load=0.5,n=1i,u=2u,up=t,note="hi" 10\ncpu,host=b,rack=r load=1 20\n')
    assert (done.rows, done.refused) == (2, 0)
    schema = database.schemas["cpu"]
    assert shown(schema) == [
        ("host", "string", "tag", True),
        ("dc", "string", "tag", True),
        ("rack", "string", "tag", True),
        ("greptime_timestamp", "timestamp[ns]", "time", False),
        ("load", "float64", "field", True),
        ("n", "int64", "field", True),
        ("u", "uint64", "field", True),
        ("up", "bool", "field", True),
        ("note", "string", "field", True),
    ]
    assert schema.options.merge_mode is MergeMode.LAST_NON_NULL
    assert asked(database, "SELECT host, dc, rack, load, n, u, up, note FROM cpu ORDER BY host") == [
        ("a", "x", None, 0.5, 1, 2, True, "hi"),
        ("b", None, "r", 1.0, None, None, None, None),
    ]


def test_new_fields_are_added_and_new_tags_refused() -> None:
    database = MemoryDatabase()
    _, done = wrote(database, "m,a=1 f=1 1\n", "m,a=1 f=2,g=5i 2\nm,a=1,b=2 f=3,h=1 3\nm f=4 4\n")
    assert (done.rows, done.refused) == (2, 1)
    assert (done.errors[0].line, done.errors[0].column) == (2, 1)
    assert "has no tag 'b'" in done.errors[0].reason
    assert asked(database, "SELECT * EXCLUDE greptime_timestamp FROM m ORDER BY f") == [
        ("1", 1.0, None), ("1", 2.0, 5), (None, 4.0, None),
    ]  # fmt: skip


def test_a_type_conflict_refuses_its_line_with_the_place_of_the_value() -> None:
    database = MemoryDatabase()
    done, again = wrote(database, "m f=1.5,g=1i 1\nm f=2i,g=2i 2\nm g=2.5,f=1 3\n", 'm g=7i,f="x" 4\nm f=8 5\n')
    # A whole number is a float too; a float is no whole number, a string neither.
    assert (done.rows, done.refused, again.rows, again.refused) == (2, 1, 1, 1)
    assert [(e.line, e.column) for e in (*done.errors, *again.errors)] == [(3, 5), (1, 10)]
    assert done.errors[0].reason == "field 'g' of table 'm' is int64, and this is float64"
    assert asked(database, "SELECT f, g FROM m ORDER BY greptime_timestamp") == [(1.5, 1), (2.0, 2), (8.0, None)]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (T.INT8, ["-128i", "127u"], ["128i", "-129i", "1.0", "t"]),
        (T.UINT16, ["0i", "65535u"], ["-1i", "65536u"]),
        (T.INT64, ["-9223372036854775808i", "9223372036854775807u"], ["9223372036854775808u"]),
        (T.UINT64, ["18446744073709551615u", "0i"], ["-1i"]),
        (T.FLOAT32, ["0.5", "-3i", "3u"], ["1e39", '"1"']),
        (T.FLOAT64, ["1e300", "9007199254740993i"], ["t"]),
        (T.STRING, ['"a"'], ["1", "t"]),
        (T.BOOL, ["f"], ["0i"]),
        (T.TIMESTAMP_MS, [], ["1i"]),
    ],
)
def test_values_go_into_columns_that_are_there_where_they_fit(
    kind: ColumnType, good: list[str], bad: list[str]
) -> None:
    database = with_table(
        Column(1, "ts", T.TIMESTAMP_MS, ColumnRole.TIME, nullable=False), Column(2, "f", kind, ColumnRole.FIELD)
    )
    lines = [f"t f={value} {at}" for at, value in enumerate([*good, *bad])]
    # All together, so that good and bad ones are of one shape, each twice, so that the shape is known.
    [_, _, done] = wrote(database, *["\n".join(lines)] * 3, unit=1_000_000)
    assert (done.rows, done.refused) == (len(good), len(bad))
    assert [e.line for e in done.errors] == list(range(len(good) + 1, len(lines) + 1))
    stored = [row[0] for row in asked(database, "SELECT f FROM t ORDER BY ts")]
    wanted = [{"t": True, "f": False}.get(v) if v in "tf" else v.strip('"') for v in good]
    casts = {T.FLOAT32: float, T.FLOAT64: float, T.STRING: str, T.BOOL: bool}
    assert stored == [
        casts.get(kind, int)(str(v).rstrip("iu") if kind not in (T.STRING, T.BOOL) else v) for v in wanted
    ]


def test_the_time_index_that_is_there_keeps_its_name_and_unit() -> None:
    database = with_table(
        Column(1, "host", T.STRING, ColumnRole.TAG),
        Column(2, "ts", T.TIMESTAMP_S, ColumnRole.TIME, nullable=False),
        Column(3, "f", T.FLOAT64),
    )
    [done] = wrote(database, "t,host=a f=1 1999999999\nt,host=a f=2 -1\nt,host=a ts=5 7\n")
    assert (done.rows, done.refused) == (2, 1)
    assert "'ts' is the time index" in done.errors[0].reason
    assert asked(database, "SELECT epoch(ts)::INT, f FROM t ORDER BY ts") == [(-1, 2.0), (1, 1.0)]


def test_names_that_no_table_may_have_refuse_their_lines_only() -> None:
    database = MemoryDatabase()
    [done] = wrote(database, 'a/b f=1 1\nm f=1 1\nm f=2,"x"=1 2\nm __x=1 3\nm,t=1 t=5 4\n')
    assert (done.rows, done.refused) == (1, 4)
    assert {e.line for e in done.errors} == {1, 3, 4, 5}
    assert "name 'a/b' is not allowed" in done.errors[0].reason
    assert [t.name for t in database.tables()] == ["m"]
    [more] = wrote(database, "m f=3,__y=1 5\nm f=4,z=1 6\n")
    assert (more.rows, more.refused) == (1, 1)


def test_the_last_line_of_one_series_and_time_wins_whatever_its_shape() -> None:
    database = MemoryDatabase()
    for body, row in (
        ("m,s=a f=1,g=1 1\nm,s=a f=2 1\nm,s=a f=3,g=3 1\nm,s=a g=4 1\n", (3.0, 4.0)),
        ("m,s=a f=5i,g=5 1\nm,s=a f=6,g=6 1\nm,s=a f=7i,g=7 1\n", (7.0, 7.0)),
        ("m,s=a f=8 1\nm,s=a f=9,g=9 1\nm,s=a f=10 1\n", (10.0, 9.0)),
    ):
        for _ in range(3):  # by the grammar, and by shapes
            wrote(database, body)
            assert asked(database, "SELECT f, g FROM m") == [row]


def test_points_without_time_have_the_servers() -> None:
    class Noon(LoopClock):
        def wall_ms(self) -> int:
            return 1_700_000_000_123

    async def main() -> None:
        await InfluxWriter(database, Noon()).write(b"m f=1\nn f=1 5", 1_000_000_000)

    database = MemoryDatabase()
    asyncio.run(main())
    assert asked(database, "SELECT epoch_ns(greptime_timestamp) FROM m") == [(1_700_000_000_123_000_000,)]
    assert asked(database, "SELECT epoch_ns(greptime_timestamp) FROM n") == [(5_000_000_000,)]


def test_writers_that_create_the_same_tables_and_fields_at_once_lose_nothing() -> None:
    async def main() -> list[Written]:
        writers = [InfluxWriter(database, LoopClock()) for _ in range(20)]
        bodies = [f"m,w={at} common={at},own{at % 3}=1i {at}\nx{at % 2} f={at} {at}\n" for at in range(20)]
        return await asyncio.gather(*(w.write(b.encode(), 1) for w, b in zip(writers, bodies, strict=True)))

    database = MemoryDatabase()
    done = asyncio.run(main())
    assert [(d.rows, d.refused) for d in done] == [(2, 0)] * 20
    assert asked(database, "SELECT count(*), sum(common), count(own0), count(own1), count(own2) FROM m") == [
        (20, 190.0, 7, 7, 6)
    ]
    assert asked(database, "SELECT (SELECT count(*) FROM x0) + (SELECT count(*) FROM x1)") == [(20,)]


def test_a_table_dropped_meanwhile_is_made_anew() -> None:
    class Dropping(MemoryDatabase):
        async def write(self, rows: Sequence[Any]) -> int:
            if self.writes == 0 and "m" in self.schemas and not dropped:
                dropped.append("m")
                await self.drop_table("m")
            return await super().write(rows)

    dropped: list[str] = []
    database = Dropping()
    [done] = wrote(database, "m f=1 1\nbad\n")
    assert (done.rows, done.refused, dropped) == (1, 1, ["m"])
    assert asked(database, "SELECT f FROM m") == [(1.0,)]


@pytest.mark.parametrize("error", [Full("memory stayed full"), Unavailable("closes")])
def test_what_the_database_refuses_is_not_acked(error: Exception) -> None:
    database = MemoryDatabase()
    database.refuse = error  # type: ignore[assignment]
    with pytest.raises(type(error)):
        wrote(database, "m f=1 1\n")


def test_a_large_body_of_many_tables_arrives_whole() -> None:
    database = MemoryDatabase()
    body = "".join(f"t{at % 50},car=c{at % 7} f={at}.5,i={at}i {at}\n" for at in range(5_000))
    for _ in range(2):
        [done] = wrote(database, body)
        assert (done.rows, done.refused) == (5_000, 0)
    everything = " UNION ALL ".join(f"SELECT f, i FROM t{at}" for at in range(50))
    assert asked(database, f"SELECT count(*), sum(f), sum(i) FROM ({everything})") == [
        (5_000, sum(at + 0.5 for at in range(5_000)), sum(range(5_000)))
    ]
    assert pa.types.is_timestamp(database.rows("t0").column("greptime_timestamp").type)
