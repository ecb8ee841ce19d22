"""Promises of the Postgres wire, judged by clients that nobody here wrote: psycopg2, psycopg 3, psql, and SQLAlchemy in
GreptimeDB's dialect and in Postgres's own."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.generators import execute
from psycopg.pq import ExecStatus

from providers.base.errors import AlreadyExists, Fenced, Full, Internal, Invalid, NotFound, OutcomeUnknown, Unavailable
from tests.dataplane.tsdb.protocols.postgres_served import Served, Slow, serving

AT = datetime.datetime(2025, 1, 2, 3, 4, 5, 678_000)
FIRST = ("a", datetime.datetime(1970, 1, 1, 0, 0, 1), 1.5, Decimal(2**64 - 1), b"\x00\xff", True, -128)
NASTY = "it's \\ \" ` % $1 ? é \n ' OR 1=1 -- "


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(users={"u": "p"}) as served:
        yield served


@pytest.fixture(scope="module")
def psycopg3(server: Served) -> Iterator[psycopg.Connection]:
    with server.psycopg() as connection:
        yield connection


def rows(connection: Any, sql: str, parameters: Any = None) -> list[Any]:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql, parameters)
        return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()]


# ── GreptimeDB's dialect of SQLAlchemy ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["public", "fleet"])
def engine(server: Served, request: pytest.FixtureRequest) -> Iterator[sa.engine.Engine]:
    engine = sa.create_engine(f"greptimedb://u:p@127.0.0.1:{server.server.port}/{request.param}", future=True)
    yield engine
    engine.dispose()


def test_greptimedb_s_dialect_creates_inserts_selects_and_drops(engine: sa.engine.Engine) -> None:
    table = sa.Table(
        "trip", sa.MetaData(), sa.Column("car", sa.String), sa.Column("at", sa.DateTime), sa.Column("km", sa.Float)
    )
    with engine.connect() as connection:
        connection.execute(
            sa.text("CREATE TABLE trip (car STRING, at TIMESTAMP(3), km DOUBLE, TIME INDEX (at), PRIMARY KEY (car))")
        )
        try:
            connection.execute(
                sa.insert(table), [{"car": NASTY, "at": AT, "km": 1.5}, {"car": "b", "at": AT, "km": None}]
            )
            connection.execute(sa.insert(table).values([{"car": f"c{k}", "at": AT, "km": k / 4} for k in range(300)]))
            read = sa.select(table).where(table.c.car == NASTY, table.c.at >= AT - datetime.timedelta(hours=1))
            assert connection.execute(read).fetchall() == [(NASTY, AT, 1.5)]
            grouped = sa.select(sa.func.count(), sa.func.max(table.c.km)).where(table.c.car.like("c%"))
            assert connection.execute(grouped).one() == (300, 74.75)
            ordered = sa.select(table.c.car).where(table.c.km > 70).order_by(table.c.km.desc()).limit(2).offset(1)
            assert connection.scalars(ordered).all() == ["c298", "c297"]
            assert connection.execute(sa.delete(table).where(table.c.car == "b")).rowcount == 1
        finally:
            connection.execute(sa.text("DROP TABLE trip"))
        assert "trip" not in sa.inspect(connection).get_table_names()


def test_greptimedb_s_dialect_reflects(engine: sa.engine.Engine) -> None:
    with engine.connect() as connection:
        inspected = sa.inspect(connection)
        assert inspected.get_schema_names() == ["information_schema", "public"]
        assert inspected.get_table_names() == ["cpu"]
        assert inspected.has_table("cpu") and not inspected.has_table("cpus")
    found = sa.Table("cpu", sa.MetaData(), autoload_with=engine)
    assert [(column.name, type(column.type).__name__) for column in found.columns] == [
        ("host", "String"),
        ("ts", "TimestampMillisecond"),
        ("v", "Float64"),
        ("n", "UInt64"),
        ("b", "Binary"),
        ("ok", "Boolean"),
        ("i", "Int8"),
    ]
    with engine.connect() as connection:
        read = sa.select(found.c.host, found.c.ts, found.c.n, found.c.ok).where(found.c.host == "a")
        assert connection.execute(read).fetchall() == [(FIRST[0], FIRST[1], FIRST[3], True)]


def test_postgres_s_own_dialect_reflects_too(server: Served) -> None:
    engine = sa.create_engine(f"postgresql+psycopg2://u:p@127.0.0.1:{server.server.port}/fleet", future=True)
    try:
        found = sa.Table("cpu", sa.MetaData(), autoload_with=engine)
        assert [(c.name, str(c.type), c.nullable) for c in found.columns][:4] == [
            ("host", "TEXT", True),
            ("ts", "TIMESTAMP", False),
            ("v", "DOUBLE_PRECISION", True),
            ("n", "NUMERIC", True),
        ]
        assert not found.primary_key.columns and not found.indexes
    finally:
        engine.dispose()


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_psycopg2_reads_each_type_as_its_own_and_what_it_wrote(server: Served) -> None:
    with server.psycopg2() as connection:
        assert rows(connection, "SELECT * FROM cpu WHERE host = %s", ("a",)) == [FIRST]
        with closing(connection.cursor()) as cursor:
            values = (NASTY, AT, -2.5, b"\x00\xff'\\\"", False, None)
            cursor.execute("INSERT INTO cpu (host, ts, v, b, ok, i) VALUES (%s, %s, %s, %s, %s, %s)", values)
            assert (cursor.rowcount, cursor.statusmessage) == (1, "INSERT 0 1")
        assert rows(connection, "SELECT host, ts, v, b, ok, i FROM cpu WHERE host = %s AND ts = %s", (NASTY, AT)) == [
            values
        ]
        east = AT.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=8))) + datetime.timedelta(hours=8)
        assert rows(connection, "SELECT host FROM cpu WHERE ts = %s", (east,)) == [(NASTY,)]
        assert rows(connection, "SELECT host FROM cpu WHERE host = ANY(%s)", ([NASTY, "x"],)) == [(NASTY,)]
        with closing(connection.cursor()) as cursor:
            cursor.execute("DELETE FROM cpu WHERE host = %s", (NASTY,))
            assert cursor.rowcount == 1
        connection.commit()


EVERY = (
    "SELECT sum(n), NULL, [1, 2], 1.5::numeric(5,2), DATE '2020-01-01', TIME '10:11:12.5', INTERVAL '1 day 2 hours', "
    "1.5::float4, {'a': 1}, -0.00012345::decimal(12,8), 'nan'::double, TIMESTAMP '0044-03-15 (BC) 01:02:03' < now() "
    "FROM cpu WHERE n > 0"
)


@pytest.mark.parametrize("binary", [False, True])
def test_psycopg_3_reads_each_type_as_text_and_in_binary(psycopg3: psycopg.Connection, binary: bool) -> None:
    cursor = psycopg3.cursor(binary=binary)
    assert cursor.execute("SELECT * FROM cpu WHERE host = %s", ("a",)).fetchall() == [FIRST]
    found = cursor.execute(EVERY).fetchone()
    assert found is not None
    assert found[:10] == (
        Decimal(2**64 - 1),
        None,
        [1, 2],
        Decimal("1.50"),
        datetime.date(2020, 1, 1),
        datetime.time(10, 11, 12, 500_000),
        datetime.timedelta(days=1, hours=2),
        1.5,
        {"a": 1},
        Decimal("-0.00012345"),
    )
    assert found[10] != found[10] and found[11] is True
    assert cursor.description is not None
    assert [column.type_code for column in cursor.description] == [
        1700,
        25,
        114,
        1700,
        1082,
        1083,
        1186,
        700,
        114,
        1700,
        701,
        16,
    ]


@example("IV", 1.0, 7, b"", False)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20),
    st.floats(allow_nan=False),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=10),
    st.booleans(),
)
def test_parameters_stay_values(
    psycopg3: psycopg.Connection, host: str, v: float, n: int, b: bytes, binary: bool
) -> None:
    form = "%b" if binary else "%t"
    write = f"INSERT INTO cpu (host, ts, v, n, b) VALUES ({', '.join([form] * 5)})"
    key = ("p" + host, AT)
    number = Decimal(n) if n >= 2**63 else n
    assert psycopg3.execute(write, (*key, v, number, b)).rowcount == 1
    read = f"SELECT host, ts, v, n, b, 1 -{form}::int8 FROM cpu WHERE host = {form} AND ts = {form}"
    cursor = psycopg3.cursor(binary=binary)
    assert cursor.execute(read, (-5, *key)).fetchall() == [(*key, v, n, b, 6)]
    assert psycopg3.execute("DELETE FROM cpu WHERE host = %s", key[:1]).rowcount == 1  # its n may be another test's


def test_a_column_with_decimals_is_a_float_that_is_shown_as_it_was_declared(server: Served) -> None:
    with server.psycopg() as connection:
        connection.execute("CREATE TABLE speeds (ts TIMESTAMP(3) TIME INDEX, v DOUBLE PRECISION(10,2))")
        connection.execute("INSERT INTO speeds VALUES (1, %s), (2, %s)", (7 * 0.01, 1.005))
        assert connection.execute("SELECT v FROM speeds ORDER BY ts").fetchall() == [(0.07,), (1.0,)]
        [(_, shown)] = connection.execute("SHOW CREATE TABLE speeds").fetchall()
        connection.execute("DROP TABLE speeds")
        connection.execute(shown)
        assert server.database.schemas["speeds"].columns[1].decimals == 2
        connection.execute("DROP TABLE speeds")


def test_a_statement_prepared_on_the_server_runs_many_times(psycopg3: psycopg.Connection) -> None:
    sql = "SELECT v + %s FROM cpu WHERE host = %s AND ts < %s AND host = ANY(%s) LIMIT %s"
    for k in range(8):
        values = (k, "a", AT, ["a", "b"], 1)
        assert psycopg3.execute(sql, values, prepare=True).fetchall() == [(1.5 + k,)]
    psycopg3.prepare_threshold, before = 1, psycopg3.prepare_threshold
    psycopg3.prepared_max = 2
    for k in range(6):  # the client deallocates those that are too many
        assert psycopg3.execute(f"SELECT {k} + %s", (1,)).fetchall() == [(k + 1,)]
        assert psycopg3.execute(f"SELECT {k} + %s", (1,)).fetchall() == [(k + 1,)]
    psycopg3.prepare_threshold, psycopg3.prepared_max = before, 100


def test_what_a_client_leaves_untyped_has_the_type_of_its_column(psycopg3: psycopg.Connection) -> None:
    psycopg3.execute(
        "INSERT INTO cpu (n, ok, host, ts, v, b) VALUES (%s, %s, %s, %s, %s, %s)",
        ("7", "yes", "text", "2025-01-02T03:04:05.678+00", "1e-3", "\\x00ff"),
    )
    found = psycopg3.execute(
        "SELECT host, ts, v, n, b, ok FROM cpu WHERE n = %s AND ts BETWEEN %s AND %s", ("7", "2025-01-02", "2025-01-03")
    )
    assert found.fetchall() == [("text", AT, 0.001, 7, b"\x00\xff", True)]
    with pytest.raises(psycopg.errors.InvalidTextRepresentation, match="parameter \\$1"):
        psycopg3.execute("SELECT host FROM cpu WHERE n = %s", ("seven",))
    psycopg3.execute("DELETE FROM cpu WHERE host = 'text'")


def test_a_description_before_the_parameters_holds_for_the_answer(psycopg3: psycopg.Connection) -> None:
    """As asyncpg, pgx and pgjdbc ask: Parse, Describe, then Bind and Execute without another description."""
    pgconn = psycopg3.pgconn

    def result() -> Any:
        # The calls that wait by themselves hold the interpreter, in which the server runs, too.
        [found] = psycopg3.wait(execute(pgconn))
        return found

    for sql, values, oids, types in (
        ("SELECT host, v, n FROM cpu WHERE host = $1 AND v > $2", [b"a", b"1"], [25, 701], [25, 701, 1700]),
        ("SELECT $1::int8 + 1, $2", [b"4", b"x"], [20, 25], [20, 25]),
        ("SELECT count(*) FROM cpu WHERE ts > $1 LIMIT $2", [b"1970-01-01", b"1"], [1114, 20], [20]),
        ("SHOW TABLES", [], [], [25]),
        ("EXPLAIN SELECT 1", [], [], [25, 25]),
        ("SELECT relname FROM pg_class WHERE relname = $1", [b"cpu"], [25], [25]),
        (
            "INSERT INTO cpu (host, ts, n) VALUES ($1, $2, $3)",
            [b"a", b"1970-01-01 00:00:01", b"1"],
            [25, 1114, 1700],
            [],
        ),
    ):
        pgconn.send_prepare(b"s", sql.encode())
        assert result().status == ExecStatus.COMMAND_OK, sql
        pgconn.send_describe_prepared(b"s")
        described = result()
        assert [described.param_type(at) for at in range(described.nparams)] == oids, sql
        assert [described.ftype(at) for at in range(described.nfields)] == types, sql
        if types:
            pgconn.send_query_prepared(b"s", values, result_format=1)
            ran = result()
            assert (ran.status, ran.ntuples) == (ExecStatus.TUPLES_OK, 1), (sql, ran.error_message)
            assert [ran.ftype(at) for at in range(ran.nfields)] == types, sql
        psycopg3.execute("DEALLOCATE s")


def test_many_rows_arrive_in_order_by_cursors_and_pipelines(server: Served) -> None:
    with server.psycopg(autocommit=False) as connection:
        with connection.cursor(name="c") as cursor:
            cursor.itersize = 700
            assert [row[0] for row in cursor.execute("SELECT range FROM range(5000)")] == list(range(5_000))
        connection.commit()
        with connection.pipeline():
            found = [connection.execute("SELECT %s::int8", (k,)) for k in range(50)]
        assert [one.fetchall() for one in found] == [[(k,)] for k in range(50)]
        assert len(connection.execute("SELECT range FROM range(200000)").fetchall()) == 200_000
        with connection.cursor() as cursor:
            values = [(f"m{k}", AT, k / 2) for k in range(200)]
            cursor.executemany("INSERT INTO cpu (host, ts, v) VALUES (%s, %s, %s)", values)
            assert cursor.rowcount == 200
            assert cursor.execute("DELETE FROM cpu WHERE host LIKE 'm%%'").rowcount == 200
        connection.commit()


# ── what a connection may do ────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_transaction_takes_nothing_until_its_end_and_rollback_says_what_it_is(server: Served) -> None:
    with server.psycopg2() as connection:
        status = psycopg2.extensions
        assert connection.get_transaction_status() == status.TRANSACTION_STATUS_IDLE
        rows(connection, "SELECT 1")
        assert connection.get_transaction_status() == status.TRANSACTION_STATUS_INTRANS
        with pytest.raises(psycopg2.Error):
            rows(connection, "SELECT nothing FROM cpu")
        assert connection.get_transaction_status() == status.TRANSACTION_STATUS_INERROR
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            rows(connection, "SELECT 1")
        connection.rollback()
        assert connection.notices == []
        connection.cursor().execute("INSERT INTO cpu (host, ts) VALUES ('kept', 1)")
        connection.rollback()
        assert "takes nothing back" in connection.notices[0]
        with closing(connection.cursor()) as cursor:
            cursor.execute("DELETE FROM cpu WHERE host = 'kept'")
            assert cursor.rowcount == 1
        connection.commit()


def test_settings_are_kept_told_and_refused_where_they_would_lie(server: Served) -> None:
    options = {"options": "-c statement_timeout=5s", "application_name": "tests"}
    with server.psycopg(**options) as connection:
        assert connection.info.parameter_status("application_name") == "tests"
        assert connection.info.parameter_status("server_version") == "16.3-Yunhe"
        assert connection.execute("SHOW statement_timeout").fetchall() == [("5s",)]
        connection.execute("SET application_name TO 'others'")
        assert connection.info.parameter_status("application_name") == "others"
        connection.execute("SET SESSION TIME ZONE 'UTC'; SET client_encoding = 'UTF8'; SET datestyle = ISO")
        connection.execute("RESET ALL")
        assert connection.execute("SHOW TimeZone").fetchall() == [("UTC",)]
        for sql, error in (
            ("SET TIME ZONE 'Asia/Shanghai'", psycopg.errors.FeatureNotSupported),
            ("SET standard_conforming_strings = off", psycopg.errors.FeatureNotSupported),
            ("SET nothing = 1", psycopg.errors.UndefinedObject),
            ("SET server_version = '9'", psycopg.errors.CantChangeRuntimeParam),
        ):
            with pytest.raises(error):
                connection.execute(sql)
        names = connection.execute(
            "SELECT version(), current_schema(), current_database(), current_user, pg_backend_pid()"
        )
        said = names.fetchone()
        assert said is not None and said[0].startswith("PostgreSQL 16.3")
        assert said[1:] == ("public", "fleet", "u", connection.info.backend_pid)


def test_tools_find_tables_and_columns_in_the_catalog(psycopg3: psycopg.Connection) -> None:
    found = psycopg3.execute(
        "SELECT attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = current_schema() AND a.attrelid = 'cpu'::regclass AND a.attnum > 0 ORDER BY a.attnum"
    )
    assert found.fetchall()[:3] == [
        ("host", "text", False),
        ("ts", "timestamp(3) without time zone", True),
        ("v", "double precision", False),
    ]
    typed = (
        "SELECT data_type, udt_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = %s"
    )
    assert psycopg3.execute(typed, ("n",)).fetchall() == [("numeric", "numeric")]
    assert psycopg.types.TypeInfo.fetch(psycopg3, "int8") is not None
    grafana = "SELECT current_setting('server_version_num')::int / 100 AS version"
    assert psycopg3.execute(grafana).fetchall() == [(1600.03,)]
    with pytest.raises(psycopg.Error, match="cpu"):
        psycopg3.execute("SELECT * FROM pg_class, cpu")
    assert psycopg3.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not on this machine")
def test_psql_describes_and_runs_several_statements(server: Served) -> None:
    def psql(*commands: str) -> str:
        words = [word for command in commands for word in ("-c", command)]
        to = ["-h", "127.0.0.1", "-p", str(server.server.port), "-U", "u", "-d", "fleet"]
        ran = subprocess.run(
            ["psql", "-XAt", *to, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PGPASSWORD": "p"},
            timeout=60,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
        return ran.stdout

    assert psql(r"\dt") == "public|cpu|table|u\n"
    assert "ts|timestamp(3) without time zone||not null|" in psql(r"\d cpu")
    assert psql(r"\dn", r"\l").startswith("public|u\nfleet|u|UTF8|C|C")
    assert psql("SELECT 1; SELECT 'é'", "SELECT 2") == "1\né\n2\n"
    assert psql("SELECT host, v, ok FROM cpu WHERE host = 'a'") == "a|1.5|t\n"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Invalid("no"), "42601"),
        (NotFound("no"), "42P01"),
        (NotFound("no", database="x"), "3D000"),
        (AlreadyExists("no"), "42P07"),
        (Full("no", hint="later"), "53200"),
        (Unavailable("no"), "57P03"),
        (OutcomeUnknown("no"), "08007"),
        (Fenced("no"), "25006"),
        (Internal("no"), "XX000"),
        (RuntimeError("a secret"), "XX000"),
    ],
)
def test_errors_have_their_sqlstate_and_the_connection_lives_on(
    server: Served, psycopg3: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
) -> None:
    async def fail(select: str) -> Any:
        raise error

    for parameters in (None, (1,)):  # the simple query, and the extended
        with monkeypatch.context() as patched:
            patched.setattr(server.database, "query", fail)
            with pytest.raises(psycopg.Error) as refused:
                psycopg3.execute("SELECT 1" if parameters is None else "SELECT %s", parameters)
        assert refused.value.sqlstate == state
        assert "secret" not in str(refused.value)
        assert getattr(error, "hint", None) is None or refused.value.diag.message_hint == "later"
        assert psycopg3.execute("SELECT 2").fetchall() == [(2,)]


def test_a_query_is_given_up_when_its_client_or_its_time_says_so() -> None:
    database = Slow()
    with serving(database) as served, served.psycopg() as connection:
        connection.execute("SET statement_timeout = 50")
        with pytest.raises(psycopg.errors.QueryCanceled, match="timeout"):
            connection.execute("SELECT 1")
        assert database.given_up.is_set()
        connection.execute("SET statement_timeout = 0")
        database.asked.clear()
        database.given_up.clear()

        def cancel() -> None:
            database.asked.wait(20)
            connection.cancel_safe(timeout=20)  # `cancel` holds the interpreter, in which the server runs, too

        canceling = threading.Thread(target=cancel)
        canceling.start()
        with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
            connection.execute("SELECT %s", (1,))
        canceling.join()
        assert database.given_up.is_set()
        assert connection.execute("SHOW jit").fetchall() == [("off",)]
