"""A database over HTTP, as GreptimeDB's and InfluxDB's clients speak it. Begin at `app`.

    /v1/sql                                         SQL, in GreptimeDB's formats (`sql_results.py`)
    /v1/influxdb/write, /write                      line protocol, version 1     ping: /v1/influxdb/ping, /ping
    /v1/influxdb/api/v2/write, /api/v2/write        version 2                    health: /v1/influxdb/health, /health
    /api/v3/write_lp                                version 3
    /v1/opentsdb/api/put, /api/put                  OpenTSDB's data points
    /v1/arrow/write?table=                          our own: Arrow's stream format, rows of a table that is there
    /health /ready /status /metrics /config         of this process

Other interfaces of GreptimeDB are named, and answer 501 with what is there instead. One process serves one database: a
request may name it, or `public`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from aiohttp import web

from dataplane.metrics.page import CONTENT_TYPE, Page
from dataplane.tsdb.engine import Database, Rows
from dataplane.tsdb.protocols.http_errors import NO_DATABASE, NOT_THERE, Dialect, answer
from dataplane.tsdb.protocols.http_guard import Guard, Handler, HttpSettings, Route
from dataplane.tsdb.protocols.influx import InfluxWriter, Written
from dataplane.tsdb.protocols.line_protocol import unit_ns
from dataplane.tsdb.protocols.opentsdb import OpenTsdbWriter
from dataplane.tsdb.protocols.session import Session
from dataplane.tsdb.protocols.sql_results import FORMATS, checked_format, rendered
from dataplane.tsdb.protocols.statements import execute
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound

VERSION = "0.1.0"
DEFAULTS = HttpSettings()
INFLATES_MAX = 8
"""Arrow's compressed buffers: bytes of rows by bytes of body."""
Figures = Callable[[Page], None]

_INSTEAD = {
    "/v1/prometheus": "Prometheus' remote write and query are",
    "/v1/promql": "PromQL is",
    "/v1/otlp": "OpenTelemetry's protocol is",
    "/v1/loki": "Loki's push is",
    "/v1/splunk": "Splunk's collector is",
    "/v1/elasticsearch": "Elasticsearch's bulk is",
    "/v1/ingest": "ingestion by pipelines is",
    "/v1/events": "ingestion by pipelines is",
    "/v1/pipelines": "pipelines are",
    "/v1/jaeger": "Jaeger's query is",
    "/query": "InfluxQL is",
    "/api/v2/query": "Flux is",
    "/api/v3/query_sql": "InfluxDB 3's query is",
    "/greptime.v1.GreptimeDatabase": "gRPC is",
}


def app(
    database: Database,
    *,
    clock: Clock,
    settings: HttpSettings = DEFAULTS,
    users: Mapping[str, str] | None = None,
    ready: Callable[[], bool] = lambda: True,
    figures: Figures = lambda _: None,
    config: Mapping[str, Any] | None = None,
) -> web.Application:
    """The application. Run it with aiohttp's `AppRunner`, whose `cleanup` lets requests under way end.

    `users`: passwords by name; `ready`: whether the database serves; `figures`: adds families to `/metrics`; `config`:
    what `/config` shows, without secrets.
    """
    return _Http(database, clock, settings, users or {}, ready, figures, config or {}).application()


class _Http:
    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: HttpSettings,
        users: Mapping[str, str],
        ready: Callable[[], bool],
        figures: Figures,
        config: Mapping[str, Any],
    ) -> None:
        self._database = database
        self._clock = clock
        self._settings = settings
        self._ready = ready
        self._figures = figures
        self._config = config
        self._guard = Guard(clock=clock, settings=settings, users=users)
        self._influx = InfluxWriter(database, clock)
        self._opentsdb = OpenTsdbWriter(database)
        self._began_ms = clock.monotonic_ms()

    def application(self) -> web.Application:
        application = web.Application(
            middlewares=[self._guard.middleware], client_max_size=self._settings.body_bytes_max
        )

        def route(
            name: str, dialect: Dialect, handler: Handler, *paths: str, verbs: str, is_open: bool = False
        ) -> None:
            for path in paths:
                resource = application.router.add_resource(path)
                self._guard.routes[resource] = Route(name, dialect, is_open)
                for verb in verbs.split():
                    resource.add_route(verb, handler)

        greptimedb, influxdb, opentsdb = Dialect.GREPTIMEDB, Dialect.INFLUXDB, Dialect.OPENTSDB
        route("sql", greptimedb, self._sql, "/v1/sql", verbs="GET POST")
        route("arrow_write", greptimedb, self._arrow_write, "/v1/arrow/write", verbs="POST")
        route("influx_v1", influxdb, self._influx_v1, "/v1/influxdb/write", "/write", verbs="POST")
        v2 = ("/v1/influxdb/api/v2/write", "/api/v2/write")
        route("influx_v2", influxdb, self._influx_v2, *v2, verbs="POST")
        route("influx_v3", influxdb, self._influx_v3, "/api/v3/write_lp", verbs="POST")
        route("opentsdb", opentsdb, self._put, "/v1/opentsdb/api/put", "/api/put", verbs="POST")
        opened: tuple[tuple[str, Handler, tuple[str, ...]], ...] = (
            ("ping", self._ping, ("/ping", "/v1/influxdb/ping")),
            ("health", self._health, ("/health", "/v1/influxdb/health", "/-/healthy")),
            ("ready", self._readiness, ("/ready", "/-/ready")),
            ("status", self._status, ("/status",)),
            ("metrics", self._metrics, ("/metrics",)),
        )
        for name, handler, paths in opened:
            route(name, greptimedb, handler, *paths, verbs="*", is_open=True)
        route("config", greptimedb, self._configuration, "/config", verbs="GET")
        for prefix, what in _INSTEAD.items():
            handler = _not_there(what)
            route("not_there", greptimedb, handler, prefix, prefix + "/{rest:.*}", verbs="*", is_open=True)
        application.on_shutdown.append(self._close)
        return application

    async def _close(self, _: web.Application) -> None:
        """Requests that come on open connections are told to go elsewhere; those under way end."""
        self._guard.closing = True

    # ── SQL ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _sql(self, request: web.Request) -> web.Response:
        asked: dict[str, str] = dict(request.query)
        if request.method == "POST":
            asked |= {key: value for key, value in (await request.post()).items() if isinstance(value, str)}
        name = asked.get("db") or request.headers.get("x-greptime-db-name")
        if (refused := self._other_database(name, Dialect.GREPTIMEDB)) is not None:
            return refused
        if not asked.get("sql", "").strip():
            raise Invalid("sql is missing", hint="GET /v1/sql?sql=… or POST it as a form")
        form = checked_format(asked.get("format"))
        limit = _whole(asked, "limit")
        began_ms = self._clock.monotonic_ms()
        session = Session(database=name or "public")
        outcomes = await execute(self._database, asked["sql"], session=session, clock=self._clock)
        took_ms = round(self._clock.monotonic_ms() - began_ms)
        body = await asyncio.to_thread(
            rendered, outcomes, form, took_ms, limit=limit, compression=asked.get("compression")
        )
        headers = {
            "Content-Type": FORMATS[form],
            "x-greptime-format": asked.get("format", "greptimedb_v1"),
            "x-greptime-execution-time": str(took_ms),
        }
        return web.Response(body=body, headers=headers)

    # ── writes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _influx_v1(self, request: web.Request) -> web.Response:
        # A database may be named with its retention policy: db and rp. There is one policy, the table's.
        return await self._lines(request, request.query.get("db"))

    async def _influx_v2(self, request: web.Request) -> web.Response:
        bucket = request.query.get("bucket") or request.query.get("db")
        return await self._lines(request, bucket.partition("/")[0] if bucket else None)

    async def _influx_v3(self, request: web.Request) -> web.Response:
        partial = request.query.get("accept_partial", "true").lower() != "false"
        return await self._lines(request, request.query.get("db"), partial=partial)

    async def _lines(self, request: web.Request, name: str | None, *, partial: bool = True) -> web.Response:
        if (refused := self._other_database(name, Dialect.INFLUXDB)) is not None:
            return refused
        unit = unit_ns(request.query.get("precision"))
        done = await self._influx.write(await request.read(), unit, partial=partial)
        self._guard.counters.rows += done.rows
        self._guard.counters.refused += done.refused
        return web.Response(status=204) if not done.refused else partly(done, partial=partial)

    async def _put(self, request: web.Request) -> web.Response:
        done = await self._opentsdb.put(await request.read())
        self._guard.counters.rows += done.success
        self._guard.counters.refused += done.failed
        told: dict[str, Any] = {"success": done.success, "failed": done.failed}
        details = "details" in request.query
        if details:
            told["errors"] = [{"datapoint": point, "error": why} for point, why in done.errors]
        if details or "summary" in request.query:
            return web.json_response(told, status=400 if done.failed else 200)
        if not done.failed:
            return web.Response(status=204)
        why = f"{done.failed} data points were refused, {done.success} stored; the first: {done.errors[0][1]}"
        return web.json_response({"error": {"code": 400, "message": why, "details": "see ?details"}}, status=400)

    async def _arrow_write(self, request: web.Request) -> web.Response:
        name = request.query.get("table")
        if not name:
            raise Invalid("table is missing", hint="POST /v1/arrow/write?table=NAME")
        schema = self._database.table(name)
        if schema is None:
            raise NotFound(f"there is no table {name!r}", hint="create it first: Arrow's stream names no tags")
        rows = await asyncio.to_thread(_arrow_rows, await request.read(), schema)
        began_ms = self._clock.monotonic_ms()
        stored = await self._database.write([Rows(name, rows)]) if len(rows) else 0
        self._guard.counters.rows += stored
        took_ms = round(self._clock.monotonic_ms() - began_ms)
        return web.json_response({"output": [{"affectedrows": stored}], "execution_time_ms": took_ms})

    def _other_database(self, name: str | None, dialect: Dialect) -> web.Response | None:
        """GreptimeDB's `catalog-database` names the same."""
        known = {None, "", "public", "greptime-public", self._database.name, f"greptime-{self._database.name}"}
        if name in known:
            return None
        why = f"there is no database {name!r}: this is {self._database.name!r}, or public"
        return answer(NO_DATABASE, why, dialect)

    # ── of this process ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _ping(self, _: web.Request) -> web.Response:
        # Clients of version 1 read the version, and Telegraf the build.
        return web.Response(status=204, headers={"X-Influxdb-Version": f"yunhe-{VERSION}", "X-Influxdb-Build": "OSS"})

    async def _health(self, _: web.Request) -> web.Response:
        body = {"name": "yunhe", "message": "ready for queries and writes", "status": "pass", "version": VERSION}
        return web.json_response(body)

    async def _readiness(self, _: web.Request) -> web.Response:
        serves = self._ready() and not self._guard.closing
        return web.json_response({"ready": serves}, status=200 if serves else 503)

    async def _status(self, _: web.Request) -> web.Response:
        up_ms = round(self._clock.monotonic_ms() - self._began_ms)
        tables = len(self._database.tables())
        name, role = self._database.name, self._database.role
        return web.json_response({"name": name, "role": role, "version": VERSION, "up_ms": up_ms, "tables": tables})

    async def _configuration(self, _: web.Request) -> web.Response:
        shown = {**self._config, "http": {name: getattr(self._settings, name) for name in HttpSettings.__slots__}}
        return web.Response(text=json.dumps(shown, indent=2, default=str), content_type="application/json")

    async def _metrics(self, _: web.Request) -> web.Response:
        counters = self._guard.counters
        page = Page()
        by = [({"route": r, "status": str(s)}, n) for (r, s), n in sorted(counters.requests.items())]
        page.counter("yunhe_http_requests_total", "Answers by route and status.", by)
        page.gauge("yunhe_http_requests_under_way", "Requests now.", counters.under_way)
        page.counter("yunhe_http_busy_total", "Requests that were told to come again.", counters.busy)
        page.counter("yunhe_http_seconds_total", "Time in requests.", counters.milliseconds / 1_000)
        page.counter("yunhe_http_rows_total", "Rows stored, SQL's not among them.", counters.rows)
        page.counter("yunhe_http_refused_total", "Lines and points refused.", counters.refused)
        self._figures(page)
        return web.Response(body=page.text(), headers={"Content-Type": CONTENT_TYPE})


def partly(done: Written, *, partial: bool) -> web.Response:
    """400, as InfluxDB answers a partial write: what is told is version 1's and 2's message, and 3's list."""
    first = done.errors[0] if done.errors else None
    where = f"line {first.line}, column {first.column}: {first.reason}" if first else "see the list"
    outcome = f"{done.rows} rows stored, {done.refused} lines refused"
    title = "partial write of line protocol occurred" if partial else "parsing failed for write_lp endpoint"
    message = f"{title}: {outcome}; {where}"
    errors = [
        {"line_number": e.line, "column": e.column, "error_message": e.reason, "original_line": e.text}
        for e in done.errors
    ]
    body: dict[str, Any] = {"code": "invalid", "message": message, "error": message, "data": errors}
    body |= {"accepted": done.rows, "refused": done.refused}
    if first:
        body |= {"line": first.line, "column": first.column}
    return web.Response(status=400, text=json.dumps(body, ensure_ascii=False), content_type="application/json")


def _not_there(what: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        instead = (
            "line protocol (/v1/influxdb/write, /v1/influxdb/api/v2/write), OpenTSDB's put (/v1/opentsdb/api/put), "
            "Arrow (/v1/arrow/write) and SQL (/v1/sql, and on the cloud side the wires of MySQL and Postgres)"
        )
        return answer(NOT_THERE, f"{what} not implemented; there are {instead}", Dialect.GREPTIMEDB)

    return handler


def _whole(asked: Mapping[str, str], name: str) -> int | None:
    """Raises Invalid: not a whole number of 0 or more."""
    if name not in asked:
        return None
    if not asked[name].isascii() or not asked[name].isdigit() or len(asked[name]) > 18:
        raise Invalid(f"{name} is a whole number, and not {asked[name]!r}")
    return int(asked[name])


def _arrow_rows(body: bytes, schema: TableSchema) -> pa.Table:
    """The stream's rows in the table's types, where no value changes by it.

    Raises:
        Invalid: no stream of Arrow's, columns that the table does not have, or values that do not fit.
    """
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            batches, size = [], 0
            for batch in reader:
                size += batch.nbytes
                if size > INFLATES_MAX * max(len(body), 1 << 20):
                    raise Invalid(f"the rows take more than {INFLATES_MAX} times the bytes of the body")
                batches.append(batch)
            rows = pa.Table.from_batches(batches, reader.schema)
        rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Invalid(f"the body is no stream of Arrow's: {str(error).splitlines()[0]}") from error
    columns = {}
    for name in rows.column_names:
        column = schema.column(name)
        if column is None:
            raise Invalid(f"table {schema.name!r} has no column {name!r}")
        if name in columns:
            raise Invalid(f"column {name!r} is given twice")
        try:
            columns[name] = rows.column(name).cast(column.type.arrow)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            why = str(error).splitlines()[0]
            raise Invalid(f"column {name!r} of table {schema.name!r} is {column.type}: {why}") from error
    return pa.table(columns)
