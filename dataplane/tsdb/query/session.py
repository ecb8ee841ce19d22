"""A DuckDB that can reach nothing: no files, no network, no extensions, no settings; bounded memory and threads.

Each table of a query is a view over its scan, in schema `public`, with the names that users know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.query.plan import column_name, table_bounds
from dataplane.tsdb.query.scan import TableScan
from dataplane.tsdb.query.statement import SCHEMAS, Explain, Statement
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Full, Internal, Invalid, YunheError

BATCH_ROWS = 65_536
_SCAN = "__scan{}"
_SCAN_COLUMN = re.compile(r"\bt(\d+)c(\d+)\b")
_SHOWN = {"Estimated Cardinality", "Function"}
"""What of a plan is not shown: the estimates are not of these tables' rows."""


class Session:
    """One connection, used by one query at a time."""

    def __init__(self, *, threads: int, memory_bytes_max: int) -> None:
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": f"{memory_bytes_max}B",
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "python_enable_replacements": False,
                "temp_directory": "",
            },
        )
        [schema] = SCHEMAS
        for command in (
            "SET TimeZone = 'UTC'",
            "SET preserve_insertion_order = false",
            f"CREATE SCHEMA {schema}",
            f"SET search_path = '{schema}'",
            "SET lock_configuration = true",
        ):
            self._connection.execute(command)

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        """End what runs, if something does; from any thread."""
        self._connection.interrupt()

    def parse(self, sql: str) -> str:
        """DuckDB's own parser: `json_serialize_sql`."""
        try:
            [row] = self._connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
        except duckdb.Error as error:
            raise translated(error) from error
        return str(row[0])

    def run(
        self, statement: Statement, schemas: Sequence[TableSchema], scans: Sequence[TableScan], bytes_max: int
    ) -> pa.Table:
        """The answer, or the plan.

        Raises:
            Invalid: the query is at fault. Full: it needs more memory than it may have, or its answer is larger than
                `bytes_max`. What a scan raises.
        """
        made: list[str] = []
        try:
            for number, (schema, scan) in enumerate(zip(schemas, scans, strict=True)):
                self._connection.register(_SCAN.format(number), scan)
                made.append(_view(schema))
                self._connection.execute(_definition(number, schema))
            plan = self._plan(f"EXPLAIN (FORMAT json) {statement.select}")
            found = table_bounds(plan, schemas, statement.words, self.parse)
            for scan, bounds in zip(scans, found, strict=True):
                scan.bounds = bounds
            if statement.explain is Explain.PLAN:
                return _explained(plan, schemas, [scan.pruned() for scan in scans])
            if statement.explain is Explain.ANALYZE:
                plan = self._plan(f"EXPLAIN (ANALYZE, FORMAT json) {statement.select}")
                return _explained(plan, schemas, [scan.done() for scan in scans])
            return _plain(self._answer(statement.select, bytes_max))
        except duckdb.Error as error:
            for scan in scans:
                if isinstance(scan.error, YunheError):
                    raise scan.error from error
                if scan.error is not None and not isinstance(scan.error, GeneratorExit):
                    raise Internal(f"a scan failed: {scan.error}") from scan.error
            raise translated(error) from error
        finally:
            for number, view in enumerate(made):
                self._connection.execute(f"DROP VIEW IF EXISTS {view}")
                self._connection.unregister(_SCAN.format(number))

    def _plan(self, sql: str) -> str:
        rows = self._connection.execute(sql).fetchall()
        return str(rows[-1][1])

    def _answer(self, select: str, bytes_max: int) -> pa.Table:
        relation = self._connection.sql(select)
        reader = cast(Any, relation).to_arrow_reader(BATCH_ROWS)
        batches, size = [], 0
        for batch in reader:
            size += batch.nbytes
            if size > bytes_max:
                raise Full(f"the answer has more than {bytes_max} bytes", hint="ask for less, or use LIMIT")
            batches.append(batch)
        return pa.Table.from_batches(batches, reader.schema)


def _view(schema: TableSchema) -> str:
    return f'{SCHEMAS[0]}."{schema.name}"'


def _definition(number: int, schema: TableSchema) -> str:
    lowered = [column.name.lower() for column in schema.columns]
    twice = next((name for name in lowered if lowered.count(name) > 1), None)
    if twice is not None:
        raise Invalid(
            f"table {schema.name!r} has columns that differ only by case ({twice!r}): SQL cannot tell them apart"
        )
    columns = ", ".join(f'{column_name(number, at)} AS "{c.name}"' for at, c in enumerate(schema.columns))
    return f'CREATE OR REPLACE VIEW {_view(schema)} AS SELECT {columns} FROM "{_SCAN.format(number)}"'


def _plain(table: pa.Table) -> pa.Table:
    """Without types that no client of ours knows: sums of integers are int64 where they fit, and times have no zone."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_decimal(field.type) and (field.type.precision, field.type.scale) == (38, 0):
            try:
                columns.append(pc.cast(column, pa.int64()))
                continue
            except pa.ArrowInvalid:
                pass  # beyond 64 bits: it stays as it is
        if pa.types.is_timestamp(field.type) and field.type.tz is not None:
            column = column.cast(pa.timestamp(field.type.unit))
        columns.append(column)
    return pa.table(
        columns, schema=pa.schema([pa.field(f.name, c.type) for f, c in zip(table.schema, columns, strict=True)])
    )


def _explained(plan: str, schemas: Sequence[TableSchema], files: Sequence[str]) -> pa.Table:
    """As GreptimeDB shows it: a row of type and text for each plan, and one for each table's files."""
    tree = json.loads(plan)
    text = "\n".join(line for node in (tree if isinstance(tree, list) else [tree]) for line in _lines(node, 0))

    def name(found: re.Match[str]) -> str:
        return schemas[int(found.group(1))].columns[int(found.group(2))].name

    kinds = ["physical_plan", *(f"files of {schema.name}" for schema in schemas)]
    return pa.table({"plan_type": kinds, "plan": [_SCAN_COLUMN.sub(name, text), *files]})


def _lines(node: dict[str, Any], depth: int) -> list[str]:
    kind = str(node.get("name") or node.get("operator_name") or node.get("operator_type") or "QUERY").strip()
    parts = [
        f"{what}: {', '.join(value) if isinstance(value, list) else value}"
        for what, value in node.get("extra_info", {}).items()
        if what not in _SHOWN
    ]
    if "operator_cardinality" in node:
        parts.append(f"rows: {node['operator_cardinality']}")
    if "operator_timing" in node:
        parts.append(f"seconds: {node['operator_timing']:.6f}")
    lines = [f"{'  ' * depth}{kind}" + (f"  {'; '.join(parts)}" if parts else "")]
    for child in node.get("children", []):
        lines += _lines(child, depth + 1)
    return lines


def translated(error: duckdb.Error) -> YunheError:
    """What DuckDB says, for who sent the query."""
    said = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    message = said[0].partition("Error: ")[2] or said[0] if said else "DuckDB refused it"
    if isinstance(error, duckdb.OutOfMemoryException):
        return Full("the query needs more memory than it may have", hint="narrow it by time, or aggregate")
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return Internal(f"DuckDB failed: {message[:300]}")
    hint = next((line for line in said[1:] if line.lower().startswith(("did you mean", "candidate"))), None)
    return Invalid(f"the query cannot be run: {message[:300]}", hint=hint)
