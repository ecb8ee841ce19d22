"""Promises of the guard: nothing but this database's tables is read, nothing is changed, nothing runs for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest

from dataplane.tsdb.query.engine import QueryEngine, QuerySettings, TableView
from dataplane.tsdb.query.spans import Span
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Full, Invalid, NotFound, Unavailable
from tests.dataplane.tsdb.query.tables import EPOCH_MS, Made, arrow, ask, schema

ATTACKS = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_parquet('https://example.com/x.parquet')",
    "SELECT * FROM parquet_metadata('/x')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT (SELECT count(*) FROM read_blob('/etc/passwd'))",
    "WITH a AS (SELECT * FROM read_json('/x')) SELECT * FROM a",
    "SELECT * FROM t WHERE EXISTS (SELECT 1 FROM glob('/*'))",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('t')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM pragma_database_size()",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM __scan0",
    "SELECT current_setting('memory_limit')",
    "SELECT getvariable('x')",
    "SELECT getenv('HOME')",
    "SELECT sleep_ms(10)",
    "SELECT write_log('x')",
    "SELECT nextval('x')",
    "SELECT * FROM json_execute_serialized_sql('{}')",
    "SELECT * FROM python_arrow_scan(1, 2, 3)",
    "SELECT * FROM tables",
    "ATTACH '/tmp/x.db'",
    "COPY t TO '/tmp/x.csv'",
    "COPY (SELECT 1) TO '/tmp/x.csv'",
    "EXPORT DATABASE '/tmp/x'",
    "PRAGMA database_list",
    "SET memory_limit = '1TB'",
    "RESET memory_limit",
    "LOAD httpfs",
    "INSTALL httpfs",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW public.t",
    "INSERT INTO t VALUES (1)",
    "DELETE FROM t",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "UPDATE t SET v = 1",
    "CALL pragma_version()",
    "CHECKPOINT",
    "USE main",
    "SHOW TABLES",
    "DESCRIBE t",
    "SELECT * FROM (SHOW TABLES)",
    "SUMMARIZE t",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "SELECT 1; SELECT 2",
    "EXPLAIN SELECT 1; DROP VIEW public.t",
    "EXPLAIN ANALYZE DELETE FROM t",
    "EXPLAIN ANALYZE COPY t TO '/tmp/x.csv'",
    "EXPLAIN EXPLAIN SELECT 1",
    "SELECT $1",
    "SELECT ?",
    "",
    "-- nothing",
    "SELECT",
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "SELECT '" + "x" * (1 << 20) + "'",
]


@pytest.fixture(scope="module")
def engine_of_attacks() -> Made:
    return Made()


@pytest.mark.parametrize("sql", ATTACKS, ids=lambda sql: sql[:40])
def test_whatever_is_no_query_of_these_tables_is_refused(sql: str, engine_of_attacks: Made) -> None:
    with pytest.raises((Invalid, NotFound)) as caught:
        ask(engine_of_attacks, sql, TableView(schema()))
    assert "\n" not in str(caught.value)


def test_ordinary_queries_are_not_refused() -> None:
    made = Made()
    view = TableView(schema(), [made.add(schema(), arrow([("a", 1, EPOCH_MS, 1, 1.0, True)]))])
    for sql in (
        "/* EXPLAIN */ SELECT * FROM t;",
        "FROM t SELECT v",
        "VALUES (1)",
        "SELECT * FROM range(3) UNION ALL SELECT 1",
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 5) SELECT * FROM r",
        "SELECT x.v FROM t x, unnest([1, 2]) u(n) ORDER BY 1 LIMIT 1",
        "-- why\nexplain /* so */ analyze select max(v) over (partition by car) from public.t",
        "WITH t AS (SELECT 5 AS v) SELECT v FROM t",
    ):
        assert len(ask(made, sql, view)), sql


class Stuck:
    """A reader that never answers."""

    async def columns(self, meta: FileMeta, table: TableSchema, names: Sequence[str]) -> pa.Table:
        await asyncio.Event().wait()
        raise AssertionError

    async def ruled_out(
        self, meta: FileMeta, table: TableSchema, names: Sequence[str], spans: Mapping[str, Span]
    ) -> frozenset[str]:
        return frozenset()


def test_a_query_that_takes_too_long_is_ended_and_the_next_one_runs() -> None:
    made = Made()
    view = TableView(schema(), [made.add(schema(), arrow([("a", 1, EPOCH_MS, 1, 1.0, True)]))])

    async def main() -> None:
        engine = QueryEngine(Stuck(), settings=QuerySettings(threads=1, timeout_ms=300, queries_at_once=1))
        for sql in ("SELECT count(*) FROM range(10000000000) a, range(1000) b", "SELECT sum(v) FROM t"):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await engine.query(sql, {"t": view}, 0)
            assert time.monotonic() - began < 10
        assert (await engine.query("SELECT 1 AS n", {"t": view}, 0)).to_pylist() == [{"n": 1}]
        waiting = asyncio.create_task(engine.query("SELECT sum(v) FROM t", {"t": view}, 0))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await engine.query("SELECT 2 AS n", {"t": view}, 0)).to_pylist() == [{"n": 2}]
        engine.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sql", "limits"),
    [
        ("SELECT list(a) FROM range(100000000) x(a)", QuerySettings(threads=1, memory_bytes_max=64 << 20)),
        ("SELECT * FROM range(10000000)", QuerySettings(threads=1, answer_bytes_max=1 << 20)),
        ("SELECT 1", QuerySettings(queued_max=0)),
    ],
)
def test_memory_answers_and_waiting_queries_are_bounded(sql: str, limits: QuerySettings) -> None:
    with pytest.raises(Full):
        ask(Made(), sql, TableView(schema()), settings=limits)


def test_what_has_expired_is_hidden_to_the_row() -> None:
    made = Made()
    table = schema(ttl_ms=5_000)
    rows = [("a", 1, EPOCH_MS + at * 1_000, at, float(at), True) for at in range(10)]
    view = TableView(table, [made.add(table, arrow(rows))])
    found = ask(made, "SELECT v FROM t ORDER BY v", view, EPOCH_MS + 9_000).column("v").to_pylist()
    assert found == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    reads = made.reads
    assert len(ask(made, "SELECT v FROM t", view, EPOCH_MS + 100_000)) == 0 and made.reads == reads
