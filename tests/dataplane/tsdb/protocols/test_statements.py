"""Promises of SQL: what is created is shown as it was made, what is inserted is selected exactly, what is not there is
refused by name, and a SELECT as Grafana or GreptimeDB's users write it means the same here. Judged by DuckDB's answers.
"""

from __future__ import annotations

import asyncio
import math
import struct
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.tsdb.protocols import information_schema, lexer
from dataplane.tsdb.protocols.cursor import Unsupported
from dataplane.tsdb.protocols.lexer import Kind, text, tokens
from dataplane.tsdb.protocols.session import Session
from dataplane.tsdb.protocols.statements import Outcome, execute
from dataplane.tsdb.schema.tables import (
    DECIMALS_MAX,
    Column,
    ColumnRole,
    ColumnType,
    MergeMode,
    TableOptions,
    TableSchema,
    WalSync,
)
from providers.base.errors import AlreadyExists, Invalid, NotFound
from tests.dataplane.tsdb.protocols.sql_fake import FakeDatabase, plain

NOW_MS = 1_764_174_804_123
CPU = "CREATE TABLE cpu (host STRING, ts TIMESTAMP(3) TIME INDEX, v DOUBLE, PRIMARY KEY (host)) ENGINE=mito"
_T = ColumnType


class Stopped:
    """A clock that stands."""

    def wall_ms(self) -> int:
        return NOW_MS

    def monotonic_ms(self) -> float:
        return 0.0

    async def sleep_ms(self, duration_ms: float) -> None:
        raise AssertionError("nothing here sleeps")


def outcomes(fake: FakeDatabase, sql: str, **session: Any) -> list[Outcome]:
    return asyncio.run(execute(fake, sql, session=Session(**{"database": "fleet", **session}), clock=Stopped()))


def rows(fake: FakeDatabase, sql: str, **session: Any) -> list[dict[str, Any]]:
    data = outcomes(fake, sql, **session)[-1].data
    assert data is not None
    found: list[dict[str, Any]] = data.to_pylist()
    return found


def filled() -> FakeDatabase:
    database = FakeDatabase()
    outcomes(database, CPU)
    outcomes(database, "INSERT INTO cpu VALUES ('a', 1000, 1.5), ('a', 61000, 2.5), ('b', 61500, NULL)")
    return database


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_is_what_its_create_statement_says() -> None:
    database = FakeDatabase()
    outcomes(
        database,
        """CREATE TABLE IF NOT EXISTS signals (
             -- one vehicle's
             `vin` STRING NOT NULL, "zone" INT UNSIGNED NULL, ts TIMESTAMP NOT NULL,
             speed FLOAT, odometer BIGINT UNSIGNED, on_ BOOLEAN, frame VARBINARY(64), at TIMESTAMP_NS,
             TIME INDEX (ts), PRIMARY KEY (vin, zone),
           ) ENGINE=mito WITH (
             'merge_mode'='last_non_null', ttl = '1h 30m', "skip_wal"='true', write_buffer_size='2MB',
             'auto_flush_interval'='5s', upload_priority=-3)""",
    )
    schema = database.schemas["signals"]
    assert [(c.name, c.type, c.role, c.nullable) for c in schema.columns] == [
        ("vin", _T.STRING, ColumnRole.TAG, False),
        ("zone", _T.UINT32, ColumnRole.TAG, True),
        ("ts", _T.TIMESTAMP_MS, ColumnRole.TIME, False),
        ("speed", _T.FLOAT32, ColumnRole.FIELD, True),
        ("odometer", _T.UINT64, ColumnRole.FIELD, True),
        ("on_", _T.BOOL, ColumnRole.FIELD, True),
        ("frame", _T.BINARY, ColumnRole.FIELD, True),
        ("at", _T.TIMESTAMP_NS, ColumnRole.FIELD, True),
    ]
    assert schema.options == TableOptions(
        merge_mode=MergeMode.LAST_NON_NULL,
        ttl_ms=5_400_000,
        wal=WalSync.OFF,
        memtable_bytes_max=2 << 20,
        flush_interval_ms=5_000,
        upload_priority=-3,
    )


names = st.text(
    st.characters(exclude_categories=("C", "Zl", "Zp"), exclude_characters='"`/\\'), min_size=1, max_size=12
).filter(lambda name: not name.startswith("__"))


@st.composite
def schemas(draw: st.DrawFn) -> TableSchema:
    columns = draw(st.lists(names, min_size=2, max_size=8, unique_by=str.lower))
    times = [kind for kind in ColumnType if kind.is_timestamp]
    tags = [kind for kind in ColumnType if kind not in (_T.FLOAT32, _T.FLOAT64, _T.BINARY)]
    time_at = draw(st.integers(0, len(columns) - 1))
    made = []
    for at, name in enumerate(columns):
        if at == time_at:
            made.append(Column(at + 1, name, draw(st.sampled_from(times)), ColumnRole.TIME, nullable=False))
            continue
        role = draw(st.sampled_from([ColumnRole.TAG, ColumnRole.FIELD]))
        kind = draw(st.sampled_from(tags if role is ColumnRole.TAG else list(ColumnType)))
        floats = kind in (_T.FLOAT32, _T.FLOAT64)
        decimals = draw(st.none() | st.integers(0, DECIMALS_MAX)) if floats else None
        made.append(Column(at + 1, name, kind, role, draw(st.booleans()), decimals))
    append = draw(st.booleans())
    options = TableOptions(
        append_mode=append,
        merge_mode=MergeMode.LAST_ROW if append else draw(st.sampled_from(MergeMode)),
        ttl_ms=draw(st.none() | st.integers(1, 1 << 45)),
        wal=draw(st.sampled_from(WalSync)),
        wal_sync_interval_ms=draw(st.integers(1, 1 << 40)),
        memtable_bytes_max=draw(st.integers(1, 1 << 45)),
        flush_interval_ms=draw(st.integers(1, 1 << 40)),
        upload_priority=draw(st.integers(-999, 999)),
        greptime_columns=draw(st.booleans()),
    )
    return TableSchema(draw(names), tuple(made), options=options)


def test_decimals_are_written_as_mysql_writes_them_and_m_means_nothing() -> None:
    fake = FakeDatabase()
    outcomes(fake, "CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(10, 2), b float(7,4), c DOUBLE PRECISION(255,0))")
    outcomes(fake, "ALTER TABLE t ADD COLUMN d DOUBLE(15,9), ADD COLUMN IF NOT EXISTS a DOUBLE")
    outcomes(fake, "ALTER TABLE t MODIFY COLUMN a DOUBLE(12,2)")
    assert [(c.type, c.decimals) for c in fake.schemas["t"].columns[1:]] == [
        *((_T.FLOAT64, 2), (_T.FLOAT32, 4), (_T.FLOAT64, 0), (_T.FLOAT64, 9)),
    ]
    types = [row["Type"] for row in rows(fake, "SHOW COLUMNS FROM t")]
    assert types == ["timestamp(3)", "double(15,2)", "float(15,4)", "double(15,0)", "double(15,9)"]
    assert [row["Type"] for row in rows(fake, "DESC t")][1:3] == ["Float64(15,2)", "Float32(15,4)"]
    found = rows(
        fake, "SELECT column_type FROM information_schema.columns WHERE table_name = 't' AND column_name = 'b'"
    )
    assert found == [{"column_type": "float(15,4)"}]


@settings(max_examples=60, deadline=None)
@given(schemas())
def test_show_create_table_makes_the_same_table(schema: TableSchema) -> None:
    first, second = FakeDatabase(), FakeDatabase()
    first.schemas[schema.name] = schema
    quoted = '"' + schema.name + '"'
    statement = rows(first, f"SHOW CREATE TABLE {quoted}")[0]["Create Table"]
    outcomes(second, statement)
    assert second.schemas == {schema.name: schema}


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("CREATE TABLE t (v INT)", "needs exactly one TIME INDEX"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, u TIMESTAMP TIME INDEX)", "and has 2"),
        ("CREATE TABLE t (ts INT TIME INDEX)", "of a timestamp type"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, PRIMARY KEY (nope))", "PRIMARY KEY names 'nope'"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, v DOUBLE PRIMARY KEY)", "names no series"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a INT, A INT)", "differ by case only"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a INT DEFAULT 3)", "DEFAULT of column 'a'"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DECIMAL(3,1))", "column type DECIMAL is not there"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a INT(3,1))", "INT(3, 1) is not a type: only FLOAT and DOUBLE"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(15,10))", "DOUBLE(15, 10) is not a type"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(1,2))", "DOUBLE(1, 2) is not a type"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(256,2))", "DOUBLE(256, 2) is not a type"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(15,x))", "DOUBLE(x…: a length is a whole number"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a DOUBLE(15))", "DOUBLE has no length"),
        ("ALTER TABLE cpu MODIFY COLUMN v DOUBLE(15,2)", "column 'v' of table 'cpu' has no decimals"),
        ("ALTER TABLE cpu ADD COLUMN IF NOT EXISTS v DOUBLE(15,2)", "column 'v' of table 'cpu' has no decimals"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX, a JSON)", "column type JSON is not there"),
        ("CREATE TABLE t (ts TIMESTAMP(4) TIME INDEX)", "TIMESTAMP(4) is not a type"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX) ENGINE=metric", "engine 'metric'"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX) WITH ('compaction.type'='twcs')", "'compaction.type' is not there"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX) WITH (ttl='soon')", "'soon' is not a duration"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX) PARTITION ON COLUMNS (a) ()", "PARTITION"),
        ("CREATE TABLE t (ts TIMESTAMP TIME INDEX", "the statement ends where"),
        ('CREATE TABLE "a/b" (ts TIMESTAMP TIME INDEX)', "name 'a/b' is not allowed"),
        ("CREATE TABLE other.t (ts TIMESTAMP TIME INDEX)", "no database 'other'"),
        ("CREATE DATABASE other", "CREATE DATABASE is not there"),
        ("DROP TABLE nope", "no table 'nope'"),
        ("ALTER TABLE cpu DROP COLUMN v", "DROP is not there"),
        ("ALTER TABLE cpu SET 'append_mode'='true'", "cannot change"),
        ("ALTER TABLE cpu ADD COLUMN v INT", "has a column 'v'"),
        ("ALTER TABLE cpu ADD COLUMN x INT NOT NULL", "may be null"),
        ("ALTER TABLE cpu MODIFY COLUMN v FLOAT", "cannot become float32"),
        ("UPDATE cpu SET v = 1", "UPDATE is not there"),
        ("TQL EVAL (0, 10, '5s') cpu", "TQL is not there"),
        ("DELETE FROM cpu", "without WHERE"),
        ("DELETE FROM cpu WHERE host IN (SELECT host FROM cpu)", "subquery"),
        ("INSERT INTO cpu SELECT * FROM cpu", "INSERT … SELECT is not there"),
        ("INSERT INTO cpu (host) VALUES ('a')", "leaves out 'ts'"),
        ("INSERT INTO cpu VALUES ('a', 1)", "row 1 has 2 values for 3 columns"),
        ("INSERT INTO cpu VALUES ('a', 1, 2), ('a', 2, 'x')", "row 2: 'x' is not a value of column 'v'"),
        ("INSERT INTO cpu VALUES ('a', NULL, 2)", "column 'ts' of table 'cpu' is never null"),
        ("INSERT INTO cpu VALUES ('a', '2024-13-01', 2)", "is not a value of column 'ts'"),
        ("INSERT INTO cpu VALUES ('a', 1, 1e999)", "is not a value of column 'v'"),
        ("INSERT INTO cpu VALUES ('a', 1, 1+1)", "found '+' at line 1, column 34"),
        ("INSERT INTO cpu (host, ts, nope) VALUES ('a', 1, 2)", "no column 'nope'"),
        ("SELECT 'open", "does not end at line 1, column 8"),
        ("SELECT E'a'", "prefix 'E'"),
        ("SELECT $$a$$", "character '$'"),
        ("SELECT avg(v) RANGE '10s' FROM cpu ALIGN '5s'", "range query"),
        ("SELECT now() FROM", "cannot be understood"),
        ("SET time_zone = '+08:00'", "time_zone '+08:00' is not there"),
        ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "NO_BACKSLASH_ESCAPES"),
        ("USE other", "no database 'other'"),
        ("  ;; -- nothing", "no SQL statement"),
    ],
)
def test_what_is_refused_says_why_and_changes_nothing(sql: str, reason: str) -> None:
    database = filled()
    before = (dict(database.schemas), dict(database.rows))
    with pytest.raises((Invalid, NotFound, AlreadyExists)) as refused:
        outcomes(database, sql)
    assert reason in str(refused.value)
    assert (database.schemas, database.rows) == before


def test_a_table_grows_by_columns_and_wider_types_and_its_options_change() -> None:
    database = filled()
    outcomes(database, "ALTER TABLE cpu ADD COLUMN n INT, ADD COLUMN IF NOT EXISTS v DOUBLE")
    outcomes(database, "ALTER TABLE CPU MODIFY COLUMN N BIGINT")
    outcomes(database, "ALTER TABLE cpu SET 'ttl'='7d', 'skip_wal'='true'")
    schema = database.schemas["cpu"]
    assert (schema.columns[-1].name, schema.columns[-1].type) == ("n", _T.INT64)
    assert (schema.options.ttl_ms, schema.options.wal) == (7 * 86_400_000, WalSync.OFF)
    outcomes(database, "ALTER TABLE cpu UNSET 'ttl'; TRUNCATE TABLE cpu")
    assert database.schemas["cpu"].options.ttl_ms is None
    assert len(database.rows["cpu"]) == 0
    outcomes(database, "DROP TABLE cpu; DROP TABLE IF EXISTS cpu")
    assert not database.schemas


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES: dict[ColumnType, st.SearchStrategy[Any]] = {
    _T.STRING: st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    _T.BINARY: st.binary(max_size=12),
    _T.BOOL: st.booleans(),
    _T.FLOAT64: st.floats(),
    _T.FLOAT32: st.floats(width=32),
    **{_T(f"int{b}"): st.integers(-(1 << b - 1), (1 << b - 1) - 1) for b in (8, 16, 32, 64)},
    **{_T(f"uint{b}"): st.integers(0, (1 << b) - 1) for b in (8, 16, 32, 64)},
    **{kind: st.integers(-(1 << 63), (1 << 63) - 1) for kind in ColumnType if kind.is_timestamp},
}


def literal(value: Any, escapes: bool) -> str:
    """As a client writes it: standard SQL, or MySQL's escapes as PyMySQL does them."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        if not escapes:
            return "'" + value.replace("'", "''") + "'"
        from pymysql.converters import escape_string

        return "'" + escape_string(value) + "'"
    if isinstance(value, float) and not math.isfinite(value):
        return f"'{value}'"
    return repr(value)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


ALL = TableSchema(
    "all",
    (
        Column(1, "ts", _T.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
        *(Column(at, f"c {kind.value}", kind) for at, kind in enumerate(ColumnType, start=2)),
    ),
    options=TableOptions(append_mode=True),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(*(st.none() | VALUES[column.type] for column in ALL.columns[1:])), min_size=1, max_size=4),
    st.booleans(),
)
def test_every_value_that_is_inserted_is_stored_exactly(given_rows: list[tuple[Any, ...]], escapes: bool) -> None:
    database = FakeDatabase()
    asyncio.run(database.create_table("all", ALL.columns, ALL.options))
    written = ",\n".join(
        "(" + ", ".join([str(at), *(literal(value, escapes) for value in row)]) + ")"
        for at, row in enumerate(given_rows)
    )
    [outcome] = outcomes(database, f"INSERT INTO `all` VALUES {written};", backslash_escapes=escapes)
    assert outcome.affected == len(given_rows)
    stored = database.rows["all"]
    for at, column in enumerate(ALL.columns[1:]):
        found = plain(stored, column.name)
        assert all(same(row[at], value) for row, value in zip(given_rows, found, strict=True)), column


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30), st.booleans())
def test_a_string_in_a_select_is_that_string_to_duckdb(value: str, escapes: bool) -> None:
    sql = f"SELECT {literal(value, escapes)} AS `a`"
    written = text(tokens(sql, backslash_escapes=escapes))
    assert duckdb.sql(written).fetchall() == [(value,)]


def test_rows_left_out_are_null_and_the_last_row_of_a_series_and_time_wins() -> None:
    database = filled()
    [outcome] = outcomes(database, "INSERT INTO cpu (TS, v) VALUES ('1970-01-01 00:00:01.0009+00:00', 7), (now(), 8)")
    assert outcome.affected == 2
    outcomes(database, "INSERT INTO fleet.cpu VALUES ('a', 1000, 9), (DEFAULT, 1000, -7e0)")
    assert rows(
        database, "SELECT host, CAST(epoch(ts) * 1e3 AS BIGINT) AS at, v FROM public.cpu ORDER BY at, host NULLS LAST"
    ) == [
        {"host": "a", "at": 1000, "v": 9.0},
        {"host": None, "at": 1000, "v": -7.0},
        {"host": "a", "at": 61000, "v": 2.5},
        {"host": "b", "at": 61500, "v": None},
        {"host": None, "at": NOW_MS, "v": 8.0},
    ]


@pytest.mark.parametrize("kind", [kind for kind in ColumnType if "int" in kind.value])
def test_a_whole_number_out_of_its_column_s_range_is_refused(kind: ColumnType) -> None:
    database = FakeDatabase()
    columns = (Column(1, "ts", _T.TIMESTAMP_MS, ColumnRole.TIME, nullable=False), Column(2, "n", kind))
    asyncio.run(database.create_table("t", columns, TableOptions()))
    bits = kind.arrow.bit_width
    low, high = (0, 2**bits - 1) if kind.value.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for value in (low - 1, high + 1, 10**60, "1.5", "'1'", "TRUE"):
        with pytest.raises(Invalid, match=f"is not a value of column 'n', which is {kind}"):
            outcomes(database, f"INSERT INTO t VALUES (1, {value})")
    outcomes(database, f"INSERT INTO t VALUES (1, {low}), (2, {high}), (3, 1e1)")
    assert plain(database.rows["t"], "n") == [low, high, 10]


def test_a_delete_removes_what_its_condition_holds_for() -> None:
    database = filled()
    assert outcomes(database, "DELETE FROM cpu WHERE host = 'a' AND ts < '1970-01-01 00:01:00'")[0].affected == 1
    assert outcomes(database, "DELETE FROM cpu WHERE v > 100 OR v IS NULL")[0].affected == 1
    assert outcomes(database, "DELETE FROM cpu WHERE ts > now()")[0].affected == 0
    assert rows(database, "SELECT host, v FROM cpu") == [{"host": "a", "v": 2.5}]


def test_a_failing_statement_of_several_is_named_and_those_before_hold() -> None:
    database = FakeDatabase()
    with pytest.raises(NotFound, match="statement 2 of 3: there is no table 'nope'"):
        outcomes(database, f"{CPU}; INSERT INTO nope VALUES (1); DROP TABLE cpu")
    assert "cpu" in database.schemas


def test_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    database = filled()
    monkeypatch.setattr(lexer, "SQL_CHARS_MAX", 20_000)
    monkeypatch.setattr(lexer, "TOKENS_MAX", 15_000)
    with pytest.raises(Invalid, match="more than 100"):
        outcomes(database, "SELECT 1;" * 101)
    with pytest.raises(Invalid, match="longer than"):
        outcomes(database, "SELECT '" + "x" * 20_000 + "'")
    with pytest.raises(Invalid, match="words of SQL"):
        tokens("," * 15_001)
    with pytest.raises(Invalid, match="nested too deeply"):
        outcomes(database, "SELECT " + "(" * 5_000 + "now()" + ")" * 5_000)


# ── queries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_grafana_s_time_series_query_is_answered_by_buckets() -> None:
    database = filled()
    sql = (
        'SELECT UNIX_TIMESTAMP(ts) DIV 60 * 60 AS "time", host AS metric, avg(v) AS v FROM fleet.cpu '
        "WHERE ts BETWEEN FROM_UNIXTIME(0) AND FROM_UNIXTIME(61) GROUP BY 1, 2 ORDER BY 1"
    )
    expected = [{"time": 0, "metric": "a", "v": 1.5}, {"time": 60, "metric": "a", "v": 2.5}]
    assert rows(database, sql) == expected
    older = (
        "SELECT cast(cast(UNIX_TIMESTAMP(ts)/(60) as signed)*60 as signed) AS `time`, host AS metric, avg(v) AS v "
        "FROM `cpu` WHERE ts >= FROM_UNIXTIME(0) AND ts < FROM_UNIXTIME(61.2) GROUP BY 1, 2 ORDER BY 1"
    )
    assert rows(database, older) == expected
    # A literal, so that whoever plans sees the range of time.
    assert "CAST('1970-01-01 00:01:01.000000' AS TIMESTAMP)" in database.queries[-2]


def test_integer_division_is_exact_where_floats_are_not() -> None:
    nanos = 1_764_174_804_123_456_789
    found = rows(FakeDatabase(), f"SELECT {nanos} DIV 60000000000 AS a, 7.9 DIV 2 AS b, -7 DIV 2 AS c")
    assert found == [{"a": nanos // 60_000_000_000, "b": 3, "c": -3}]


def test_now_is_one_moment_in_utc_that_the_planner_sees() -> None:
    database = filled()
    found = rows(
        database,
        "SELECT now(), CURRENT_TIMESTAMP AS a, utc_timestamp() AS b, curdate(), unix_timestamp() AS u, "
        "now() - INTERVAL '1 hour' AS c, now() + INTERVAL 2 DAY AS d",
    )[0]
    now = datetime.fromtimestamp(NOW_MS // 1_000, UTC).replace(tzinfo=None, microsecond=123_000)
    assert found["now()"] == found["a"] == found["b"] == now
    assert (found["curdate()"], found["u"]) == (now.date(), NOW_MS // 1_000)
    assert (now - found["c"]).total_seconds() == 3_600
    assert (found["d"] - now).days == 2
    rows(database, "SELECT * FROM cpu WHERE ts > now() - INTERVAL '1 hour'")
    assert "INTERVAL" not in database.queries[-1]


def test_date_bin_counts_from_the_epoch() -> None:
    database = FakeDatabase()
    found = rows(
        database,
        "SELECT date_bin(INTERVAL '7 days', TIMESTAMP '1970-01-09 12:00:00') AS a, "
        "date_bin('5 minutes', TIMESTAMP '2024-01-01 00:07:00', '2024-01-01 00:01:00') AS b",
    )[0]
    assert found == {"a": datetime(1970, 1, 8), "b": datetime(2024, 1, 1, 0, 6)}


def test_a_select_that_needs_nothing_is_passed_on_as_written() -> None:
    database = filled()
    rows(database, "select  `host`, max(v) /* most */ from cpu group by all order by 1 -- end")
    assert database.queries[-1] == 'select "host", max(v) from cpu group by all order by 1'


def test_what_clients_ask_when_they_connect_is_answered() -> None:
    database = filled()
    found = rows(
        database,
        "SELECT version(), DATABASE(), @@session.auto_increment_increment AS i, user(), @@version_comment",
        user="g",
    )[0]
    assert (found["DATABASE()"], found["i"], found["user()"]) == ("fleet", 1, "g@%")
    assert "8.0" in found["version()"]
    assert rows(database, "SELECT 1") == [{"1": 1}]
    assert rows(database, "SHOW VARIABLES LIKE 'lower_case_%'")[0]["Value"] == "0"
    assert rows(database, "SHOW DATABASES") == [{"Database": "information_schema"}, {"Database": "fleet"}]
    assert rows(database, "SHOW TABLES LIKE 'c_u'") == [{"Tables": "cpu"}]
    assert rows(database, "SHOW FULL TABLES FROM `fleet`")[0]["Table_type"] == "BASE TABLE"
    assert [row["Field"] for row in rows(database, "SHOW FULL COLUMNS FROM cpu FROM fleet")] == ["host", "ts", "v"]
    assert [row["Semantic Type"] for row in rows(database, "DESC TABLE cpu")] == ["TAG", "TIMESTAMP", "FIELD"]
    assert rows(database, "SHOW WARNINGS") == []
    for silent in ("SET NAMES utf8mb4", "SET autocommit=1, sql_mode='ANSI'", "BEGIN", "COMMIT", "USE public"):
        assert outcomes(database, silent)[0] == Outcome()


def test_grafana_s_lookups_in_information_schema_are_answered() -> None:
    database = filled()
    schemas_ = "SELECT DISTINCT TABLE_SCHEMA from information_schema.TABLES where TABLE_TYPE != 'SYSTEM VIEW'"
    assert rows(database, schemas_) == [{"table_schema": "fleet"}]
    found = rows(
        database, "SELECT table_name FROM information_schema.tables WHERE table_schema = database() ORDER BY table_name"
    )
    assert found == [{"table_name": "cpu"}]
    columns = (
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'public' AND table_name = 'cpu' ORDER BY column_name"
    )
    assert rows(database, columns, database="public") == [
        {"column_name": "host", "data_type": "varchar"},
        {"column_name": "ts", "data_type": "timestamp"},
        {"column_name": "v", "data_type": "double"},
    ]
    assert not database.queries  # the catalog is no query of the database's


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM information_schema.tables, read_csv('/etc/passwd')",
        "SELECT * FROM information_schema.tables, cpu",
        'SELECT * FROM information_schema.tables, "/etc/passwd"',
        "SELECT *, (SELECT count(*) FROM read_text('/etc/passwd')) FROM information_schema.tables",
        "SELECT * FROM information_schema.tables UNION ALL SELECT * FROM duckdb_settings()",
        "SELECT * FROM information_schema.tables; COPY (SELECT 1) TO '/tmp/x'",
        "WITH a AS (SELECT * FROM '/etc/passwd') SELECT * FROM a, information_schema.tables",
    ],
)
def test_the_catalog_s_reader_reaches_nothing_else(sql: str) -> None:
    with pytest.raises(Invalid):
        outcomes(filled(), sql)


def test_the_catalog_s_reader_is_locked_even_for_sql_that_nobody_checked() -> None:
    for sql in ("SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SET threads = 4"):
        with pytest.raises(Invalid):
            asyncio.run(information_schema.ask(dict, sql))


def test_a_catalog_query_without_an_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information_schema, "QUERY_S_MAX", 0.1)
    with pytest.raises(Invalid, match="took longer"):
        asyncio.run(
            information_schema.ask(dict, "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b")
        )


def test_explain_reaches_the_database() -> None:
    database = filled()
    assert rows(database, "EXPLAIN ANALYZE SELECT `v` FROM public.cpu")
    assert database.queries[-1] == 'EXPLAIN ANALYZE SELECT "v" FROM cpu'
    with pytest.raises(Unsupported, match="FORMAT"):
        outcomes(database, "EXPLAIN FORMAT JSON SELECT 1")


def test_the_two_ways_to_write_a_string_are_never_mixed() -> None:
    assert [t.text for t in tokens(r"'a\'") if t.kind is Kind.STRING] == ["a\\"]
    assert [t.text for t in tokens(r"'a\' OR 1=1 -- '", backslash_escapes=True)] == ["a' OR 1=1 -- "]
    assert pa.array([t.text for t in tokens("'it''s'", backslash_escapes=True)]).to_pylist() == ["it's"]
