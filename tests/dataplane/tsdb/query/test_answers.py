"""Promises of answers: whatever way rows were dealt out to files and memory, a query gives what DuckDB gives over the
same rows as one plain table, and leaving files out loses none.
"""

from __future__ import annotations

import math

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.tsdb.query.engine import QuerySettings, TableView
from dataplane.tsdb.schema.tables import Column, ColumnType, MergeMode, TableSchema, widened, with_columns
from providers.base.errors import Invalid, NotFound
from tests.dataplane.tsdb.query.tables import (
    COLUMNS,
    EPOCH_MS,
    NAMES,
    Delete,
    Made,
    Put,
    Statement,
    arrow,
    ask,
    ask_all,
    dealt,
    expected,
    schema,
)

pytestmark = pytest.mark.usefixtures("statistics_in_small_files")

CARS = [None, "", "a", "a,1", "b", "z'x"]
BUSES = [None, -1, 1, 10]
TIMES = [EPOCH_MS + at * 1_000 for at in range(6)]
key = st.tuples(st.sampled_from(CARS), st.sampled_from(BUSES), st.sampled_from(TIMES))
fields = st.tuples(
    st.one_of(st.none(), st.integers(-3, 3)),
    st.one_of(st.none(), st.sampled_from([0.5, -1.0, math.inf, 2.5, -0.0, math.nan])),
    st.one_of(st.none(), st.booleans()),
)
row = st.builds(lambda k, f: (*k, *f), key, fields)
put = st.builds(lambda rows: Put(tuple(rows)), st.lists(row, min_size=1, max_size=6))
delete = st.builds(lambda keys: Delete(tuple(keys)), st.lists(key, min_size=1, max_size=3))
literal = st.sampled_from([f"TIMESTAMP '{t}'" for t in ("2025-10-09 08:53:21", "2025-10-09 08:53:23", "2025-10-09")])
atom = st.one_of(
    st.builds(
        lambda op, t: f"ts {op} {t}",
        st.sampled_from(["<", "<=", "=", ">", ">=", "<>"]),
        st.one_of(literal, st.sampled_from(["'2025-10-09 08:53:22'", "to_timestamp(1760000002)", "DATE '2025-10-10'"])),
    ),
    st.builds(lambda low, high: f"ts BETWEEN {low} AND {high}", literal, literal),
    st.builds(lambda low: f"{low} < ts", literal),
    st.sampled_from(
        [
            "car = 'a'",
            "car IN ('b', 'z''x')",
            "car = ''",
            "car IS NULL",
            "car <> 'a'",
            "bus = 1",
            "bus IN (-1, 10)",
            "car = 'a' AND bus = 1",
            "car || '' = 'b'",
            "car LIKE 'a%'",
            "CAST(ts AS DATE) = DATE '2025-10-09'",
            "date_trunc('minute', ts) = TIMESTAMP '2025-10-09 08:53:00'",
            "ts = (SELECT max(ts) FROM t)",
            "v > 0",
            "v > 2",
            "v < 0.5",
            "v <= 0.0",
            "v = 0",
            "v BETWEEN 0.4 AND 2.4",
            "v IN (2.5, -1)",
            "NOT v > -0.5",
            "v > 3 OR v = 'nan'::DOUBLE",
            '"a.c" = 1',
            '"a.c" >= 2',
            '"a.c" > 1.5',
            '2 > "a.c" AND v > 0.5',
            "ok",
            "car IN (SELECT car FROM t x WHERE x.ts > TIMESTAMP '2025-10-09 08:53:22')",
        ]
    ),
)
condition = st.recursive(
    atom,
    lambda inner: st.one_of(
        st.builds(lambda a, b: f"({a} AND {b})", inner, inner),
        st.builds(lambda a, b: f"({a} OR {b})", inner, inner),
        st.builds(lambda a: f"(NOT {a})", inner),
    ),
    max_leaves=3,
)
QUERIES = [
    "SELECT * FROM t WHERE {0}",
    'SELECT "a.c", car FROM public.t AS x WHERE {0}',
    "SELECT count(*) AS n, sum(v) AS s, max(ts) AS m FROM t WHERE {0}",
    'WITH q AS (SELECT ts, car, bus, v, ok, "a.c" FROM t) SELECT v FROM q t WHERE {0}',
    "SELECT t.ts, y.v FROM t JOIN t y USING (car, bus, ts) WHERE t.{1}",
    "SELECT t.car, y.bus FROM t LEFT JOIN (SELECT * FROM t WHERE {0}) y ON t.ts = y.ts AND t.car = y.car",
    "SELECT car, count(*) n FROM (SELECT * FROM t WHERE {0} UNION ALL SELECT * FROM t WHERE {1}) GROUP BY car",
]


def plain(table: pa.Table) -> list[str]:
    """Rows without order, times as numbers and floats as text."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_timestamp(field.type):
            column = column.cast(pa.timestamp(field.type.unit)).cast(pa.timestamp("ns")).cast(pa.int64())
        columns.append(column.to_pylist())
    return sorted(
        repr(tuple(float(v) if isinstance(v, int) else v for v in values)) for values in zip(*columns, strict=True)
    )


def by_duckdb(sql: str, rows: pa.Table) -> pa.Table:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("CREATE SCHEMA public")
    connection.register("given", rows)
    connection.execute("CREATE TABLE public.t AS SELECT * FROM given")
    connection.execute("SET search_path = 'public'")
    return connection.sql(sql).to_arrow_table()  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.one_of(put, put, delete), min_size=1, max_size=8),
    st.lists(st.integers(1, 7), max_size=5),
    st.integers(0, 3),
    st.sampled_from(["last_row", "last_non_null", "append"]),
    st.one_of(st.none(), st.sampled_from([1_000, 3_000])),
    st.sampled_from(QUERIES),
    condition,
    atom.filter(lambda text: text.startswith(("ts ", "car "))),
    st.sampled_from([1, 1 << 20]),
    st.sampled_from([None, 1]),
)
def test_an_answer_is_what_duckdb_says_of_the_same_rows_in_one_table(
    statements: list[Statement],
    cuts: list[int],
    memory: int,
    mode: str,
    ttl_ms: int | None,
    query: str,
    first: str,
    second: str,
    merge_bytes: int,
    decimals: int | None,
) -> None:
    append = mode == "append"
    table = schema(MergeMode.LAST_ROW if append else MergeMode(mode), append=append, ttl_ms=ttl_ms, decimals=decimals)
    if append:
        statements = [s for s in statements if isinstance(s, Put)]
    now_ms = EPOCH_MS + 5_000
    made = Made()
    view = dealt(made, table, statements, cuts, min(memory, len(statements)))
    sql = query.format(first, second)
    rows = arrow(expected(statements, table.options, now_ms))
    found = ask(made, sql, view, now_ms, QuerySettings(threads=1, merge_bytes_max=merge_bytes))
    assert plain(found) == plain(by_duckdb(sql, rows))


def test_types_are_the_schema_s_and_times_have_no_zone() -> None:
    kinds = list(ColumnType)
    from tests.dataplane.tsdb.sst.test_sst import ALL_TYPES, rows_of_all  # the same rows of every type

    made, rows = Made(), rows_of_all()
    view = TableView(ALL_TYPES, [made.add(ALL_TYPES, rows)])
    found = ask(made, 'SELECT * FROM "all"', view)
    assert {f.name: f.type for f in found.schema} == {c.name: c.type.arrow for c in ALL_TYPES.columns}
    assert plain(found) == plain(rows.select(found.column_names)) and len(kinds) == len(found.column_names) - 2
    made, view = simple()
    total = ask(made, "SELECT sum(bus) AS s, now() AS n, count(*) AS c FROM t", view)
    assert [f.type for f in total.schema] == [pa.int64(), pa.timestamp("us"), pa.int64()]


def simple() -> tuple[Made, TableView]:
    made = Made()
    table = schema()
    puts = [Put(((f"car-{at}", 1, EPOCH_MS + at * 60_000, at, float(at), True),)) for at in range(20)]
    return made, TableView(table, [made.add(table, arrow(p.rows)) for p in puts])


@pytest.mark.parametrize(
    ("where", "files"),
    [
        ("", 20),
        ("WHERE ts < TIMESTAMP '2025-10-09 08:56:18'", 3),
        ("WHERE ts < '2025-10-09 08:56:20' AND ts > DATE '2025-10-09'", 3),
        ("WHERE car = 'car-7'", 1),
        ("WHERE car IN ('car-7', 'car-9', 'nobody') AND bus = 1", 2),
        ("WHERE car = 'car-7' AND car = 'car-8'", 0),
        ("WHERE ts >= to_timestamp(1760000000 + 18 * 60)", 2),
        ("WHERE ts BETWEEN TIMESTAMP '2025-10-09 08:55:00' AND TIMESTAMP '2025-10-09 08:57:30' OR car = 'car-7'", 20),
        ("WHERE ts > TIMESTAMP '2025-10-09 09:05:00' OR ts > TIMESTAMP '2025-10-09 09:10:00'", 8),
        ("WHERE v > 3", 20),
        ("x JOIN t y USING (car) WHERE x.car = 'car-3'", 1),
    ],
)
def test_files_that_can_hold_no_row_are_not_opened(where: str, files: int) -> None:
    made, view = simple()
    plan = ask(made, f"EXPLAIN SELECT count(*) FROM t {where}", view)
    assert f"{files} of 20 files" in plan.column("plan").to_pylist()[1] or files == 0
    assert made.reads == 0
    ask(made, f"SELECT count(*) FROM t {where}", view)
    assert made.reads <= files * 2 * (2 if "JOIN" in where else 1)


def read(made: Made, view: TableView, where: str) -> tuple[int, int]:
    """How many files a query reads, and how many rows it answers."""
    select = f"SELECT * FROM t WHERE {where}"
    plan, rows = ask_all(made, [f"EXPLAIN ANALYZE {select}", select], view)
    return int(plan.column("plan").to_pylist()[1].split(" of ")[0]), len(rows)


@pytest.mark.parametrize("mode", ["last_row", "last_non_null"])
@pytest.mark.parametrize("newer", [Put((("a", 1, EPOCH_MS, 1, 10.0, True),)), Delete((("a", 1, EPOCH_MS),))])
def test_an_older_row_does_not_come_back_because_its_successor_s_file_was_left_out(mode: str, newer: Statement) -> None:
    made, table = Made(), schema(MergeMode(mode))
    older = Put((("a", 1, EPOCH_MS, 1, 300.0, True),))
    view = dealt(made, table, [older, newer], [1], 0)
    assert len(view.files) == 2 and read(made, view, "v > 200") == (2, 0)
    beside = TableView(table, view.files[:1], [arrow(newer.rows)] if isinstance(newer, Put) else view.memory)
    assert ask(made, "SELECT v FROM t WHERE v < 200", beside).to_pylist() == [{"v": 10.0}] * isinstance(newer, Put)


def test_of_files_that_share_rows_the_oldest_are_left_out_as_long_as_statistics_rule_them_out() -> None:
    puts = [Put((("a", 1, EPOCH_MS, 1, v, True), ("a", 1, EPOCH_MS + 1, 1, v, None))) for v in (1.0, 2.0, 300.0, 3.0)]
    made, table = Made(), schema()
    view = dealt(made, table, puts, [1, 2, 3], 0)
    assert read(made, view, "v > 200") == (2, 0) and read(made, view, "v > 500") == (0, 0)
    # Field by field a row may have parts of an older file, so that one field has to rule out all of them.
    made, table = Made(), schema(MergeMode.LAST_NON_NULL)
    view = dealt(made, table, puts, [1, 2, 3], 0)
    assert read(made, view, "v > 200") == (4, 0) and read(made, view, "v > 500") == (0, 0)
    rest = [Put((("a", 1, EPOCH_MS, 7, 1.0, None),)), Put((("a", 1, EPOCH_MS, None, 300.0, None),))]
    made = Made()
    view = dealt(made, table, rest, [1], 0)
    assert read(made, view, 'v > 200 AND "a.c" = 7') == (2, 1)
    view = dealt(made, table, rest, [1], 1)  # the newer one in memory
    assert ask(made, 'SELECT "a.c" FROM t WHERE v > 200', view).to_pylist() == [{"a.c": 7}]


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize(
    ("value", "where", "files"),
    [
        (100.0, "v > 200", 0),
        (100.0, "v > 200 OR v < 150", 1),
        (100.0, "v BETWEEN 101 AND 150", 0),
        (100.0, "v = 100", 1),
        (100.0, "v < -5", 0),
        (-7.5, "v <= -7.5", 1),
        (-7.5, "v IN (-1.5, -2)", 0),
        (100.0, "NOT v = 100", 1),
        (100.0, "v > 200 OR ok", 1),
        (100.0, "v IS NULL", 1),
        (None, "v > 0", 0),
        (math.nan, "v > 200", 1),
        (math.nan, "v < 200", 1),
        (-0.0, "v >= 0", 1),
        (0.0, "v <= -0.0", 1),
        (math.inf, "v > 1e300", 1),
        (-math.inf, "v > -1e300", 0),
    ],
)
def test_a_file_is_left_out_if_the_statistics_of_a_field_leave_no_row(
    value: float, where: str, files: int, decimals: int | None
) -> None:
    made, table = Made(), schema(decimals=decimals)
    rows = [("a", 1, EPOCH_MS, 1, value, True), ("a", 2, EPOCH_MS, 1, value, True)]
    found, answered = read(made, TableView(table, [made.add(table, arrow(rows))]), where)
    assert found == files
    assert answered == len(by_duckdb(f"SELECT * FROM t WHERE {where}", arrow(rows)))


def test_one_nan_among_numbers_keeps_its_file() -> None:
    made, table = Made(), schema()
    rows = [("a", 1, EPOCH_MS + at, 1, v, True) for at, v in enumerate((1.0, math.nan, 2.0))]
    assert read(made, TableView(table, [made.add(table, arrow(rows))]), "v > 200") == (1, 1)
    assert read(made, TableView(table, [made.add(table, arrow(rows))]), "v < 0") == (0, 0)


def test_every_type_s_own_values_are_found_by_their_literals() -> None:
    kinds = [ColumnType.FLOAT32, ColumnType.INT8, ColumnType.UINT64, ColumnType.INT64, ColumnType.STRING]
    fields = tuple(Column(at + 7, f"f{at}", kind) for at, kind in enumerate(kinds))
    table = TableSchema("t", (*COLUMNS, *fields))
    made = Made()
    values = (0.7, -7, 2**64 - 1, -(2**53) - 1, "gr\u00fcn")
    view = TableView(table, [made.add(table, arrow([("a", 1, EPOCH_MS, 1, 1.0, True, *values)], table.columns))])
    for where in ("f0 = 0.7", "f0 >= 0.7", f"f2 >= {2**64 - 1}", f"f3 <= {-(2**53) - 1}", "f4 = 'gr\u00fcn'"):
        assert read(made, view, where) == (1, 1), where
    for where in ("f0 > 0.71", "f1 > -7 + 1", f"f3 = {-(2**53)}", "f4 > 'h'", "f4 < 'g'", "f1 < -8 AND ok"):
        assert read(made, view, where) == (0, 0), where
    later = with_columns(widened(table, "f1", ColumnType.INT64), (Column(0, "late", ColumnType.STRING),))
    assert read(made, TableView(later, view.files), "late = 'x'") == (0, 0)
    assert read(made, TableView(later, view.files), "f1 = -7") == (1, 1)


@pytest.mark.parametrize(
    "source",
    [
        "(SELECT other AS ts, ts AS other, v FROM t)",
        "(SELECT v, other, ts FROM t) AS q(v, ts, other)",
        "(SELECT * RENAME (ts AS other, other AS ts) FROM t)",
        "(SELECT * REPLACE (other AS ts) FROM t)",
        "(SELECT COLUMNS('other') AS ts, v FROM t)",
        "(WITH c(v, ts) AS (SELECT v, other FROM t) SELECT * FROM c)",
        "(SELECT v, unnest({'ts': other}) FROM t)",
        "(SELECT v, x.other AS ts FROM t x)",
    ],
)
def test_another_column_under_the_time_index_s_name_prunes_nothing_by_it(source: str) -> None:
    table = TableSchema("t", (*COLUMNS, Column(9, "other", ColumnType.TIMESTAMP_MS)))
    made = Made()
    rows = [("a", 1, EPOCH_MS + at * 1_000, at, float(at), True, EPOCH_MS - 3_600_000 * at) for at in range(9)]
    view = TableView(table, [made.add(table, arrow([row], table.columns)) for row in rows])
    sql = f"SELECT v FROM {source} WHERE ts < TIMESTAMP '2025-10-09 04:00:00'"
    assert plain(ask(made, sql, view)) == plain(by_duckdb(sql, arrow(rows, table.columns))) and "8.0" in str(
        plain(ask(made, sql, view))
    )


def test_only_files_that_may_share_rows_are_merged() -> None:
    made = Made()
    table = schema()
    apart = [
        made.add(
            table, arrow([("a", 1, EPOCH_MS + at * 10, at, 1.0, True), ("a", 1, EPOCH_MS + at * 10 + 5, at, 1.0, True)])
        )
        for at in range(5)
    ]
    others = [made.add(table, arrow([("b", 1, EPOCH_MS + at, 9, 2.0, False)])) for at in (1, 1)]
    view = TableView(table, [*apart, *others])
    plan = ask(made, "EXPLAIN ANALYZE SELECT sum(v) FROM t", view)
    assert "7 of 7 files were read, 2 of them merged" in plan.column("plan").to_pylist()[1]
    assert ask(made, "SELECT sum(v) AS s FROM t", view).to_pylist() == [{"s": 12.0}]


def test_files_of_older_schemas_answer_as_the_present_one() -> None:
    made = Made()
    old = TableSchema("t", (*COLUMNS, Column(7, "n", ColumnType.INT16)))
    older = made.add(old, arrow([("a", 1, EPOCH_MS, 1, 1.0, True, 5)], old.columns))
    new = with_columns(widened(old, "n", ColumnType.INT64), (Column(0, "late", ColumnType.STRING),))
    newer = made.add(new, arrow([("a", 2, EPOCH_MS, 1, 1.0, True, 1 << 40, "x")], new.columns))
    found = ask(made, "SELECT bus, n, late FROM t ORDER BY bus", TableView(new, [older, newer]))
    assert found.to_pylist() == [{"bus": 1, "n": 5, "late": None}, {"bus": 2, "n": 1 << 40, "late": "x"}]
    assert found.schema.field("n").type == pa.int64()


def test_a_table_without_files_is_empty_and_an_unknown_one_is_named() -> None:
    empty = TableView(schema())
    assert ask(Made(), "SELECT * FROM t", empty).column_names == NAMES
    assert ask(Made(), "SELECT count(*) AS n FROM T", empty).to_pylist() == [{"n": 0}]
    assert ask(Made(), "SELECT 1 AS one", empty).to_pylist() == [{"one": 1}]
    with pytest.raises(NotFound) as caught:
        ask(Made(), "SELECT * FROM tt", empty)
    assert caught.value.hint == "did you mean 't'?"
    with pytest.raises(Invalid) as wrong:
        ask(Made(), "SELECT bsu FROM t", empty)
    assert "bsu" in str(wrong.value) and "t0c" not in str(wrong.value.hint)
    with pytest.raises(Invalid):
        twice = TableSchema("t", (*COLUMNS, Column(9, "BUS", ColumnType.BOOL)))
        ask(Made(), "SELECT * FROM t", TableView(twice))
