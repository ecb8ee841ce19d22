"""`information_schema`: what SQL tools ask of a database before they ask for data.

Its tables are made from `Database.tables()` for each query, a few hundred rows of Arrow, and read by a DuckDB of their
own that holds nothing else and can reach nothing else: no files, no network, one thread, bounded memory and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from dataplane.tsdb.protocols.cursor import Unsupported
from dataplane.tsdb.protocols.select import CATALOG, CATALOG_PREFIX
from dataplane.tsdb.protocols.sql_types import GREPTIME_NAMES, MYSQL_NAMES, shown_options, type_name
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableSchema
from providers.base.errors import Invalid

MEMORY_MAX = "128MB"
QUERY_S_MAX = 10.0
_CONFIG = {
    "enable_external_access": "false",
    "lock_configuration": "true",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "memory_limit": MEMORY_MAX,
    "threads": "1",
}

_S, _I = pa.string(), pa.int64()
_TABLES: dict[str, dict[str, pa.DataType]] = {
    "schemata": {
        "catalog_name": _S,
        "schema_name": _S,
        "default_character_set_name": _S,
        "default_collation_name": _S,
        "sql_path": _S,
        "options": _S,
    },
    "tables": {
        "table_catalog": _S,
        "table_schema": _S,
        "table_name": _S,
        "table_type": _S,
        "table_id": _I,
        "engine": _S,
        "version": _I,
        "row_format": _S,
        "table_rows": _I,
        "avg_row_length": _I,
        "data_length": _I,
        "max_data_length": _I,
        "index_length": _I,
        "data_free": _I,
        "auto_increment": _I,
        "create_time": pa.timestamp("s"),
        "update_time": pa.timestamp("s"),
        "check_time": pa.timestamp("s"),
        "table_collation": _S,
        "checksum": _I,
        "create_options": _S,
        "table_comment": _S,
    },
    "columns": {
        "table_catalog": _S,
        "table_schema": _S,
        "table_name": _S,
        "column_name": _S,
        "ordinal_position": _I,
        "column_default": _S,
        "is_nullable": _S,
        "data_type": _S,
        "character_maximum_length": _I,
        "character_octet_length": _I,
        "numeric_precision": _I,
        "numeric_scale": _I,
        "datetime_precision": _I,
        "character_set_name": _S,
        "collation_name": _S,
        "column_type": _S,
        "column_key": _S,
        "extra": _S,
        "privileges": _S,
        "column_comment": _S,
        "generation_expression": _S,
        "srs_id": _I,
        "greptime_data_type": _S,
        "semantic_type": _S,
    },
    "key_column_usage": {
        "constraint_catalog": _S,
        "constraint_schema": _S,
        "constraint_name": _S,
        "table_catalog": _S,
        "table_schema": _S,
        "table_name": _S,
        "column_name": _S,
        "ordinal_position": _I,
        "position_in_unique_constraint": _I,
        "referenced_table_schema": _S,
        "referenced_table_name": _S,
        "referenced_column_name": _S,
    },
    "table_constraints": {
        "constraint_catalog": _S,
        "constraint_schema": _S,
        "constraint_name": _S,
        "table_schema": _S,
        "table_name": _S,
        "constraint_type": _S,
        "enforced": _S,
    },
    "statistics": {
        "table_catalog": _S,
        "table_schema": _S,
        "table_name": _S,
        "non_unique": _I,
        "index_schema": _S,
        "index_name": _S,
        "seq_in_index": _I,
        "column_name": _S,
        "collation": _S,
        "cardinality": _I,
        "sub_part": _I,
        "packed": _S,
        "nullable": _S,
        "index_type": _S,
        "comment": _S,
        "index_comment": _S,
        "is_visible": _S,
        "expression": _S,
    },
    "referential_constraints": {
        "constraint_catalog": _S,
        "constraint_schema": _S,
        "constraint_name": _S,
        "unique_constraint_name": _S,
        "match_option": _S,
        "update_rule": _S,
        "delete_rule": _S,
        "table_name": _S,
        "referenced_table_name": _S,
    },
    "views": {"table_catalog": _S, "table_schema": _S, "table_name": _S, "view_definition": _S},
    "routines": {"routine_catalog": _S, "routine_schema": _S, "routine_name": _S, "routine_type": _S},
    "triggers": {"trigger_catalog": _S, "trigger_schema": _S, "trigger_name": _S},
    "partitions": {"table_schema": _S, "table_name": _S, "partition_name": _S},
    "engines": {"engine": _S, "support": _S, "comment": _S, "transactions": _S, "xa": _S, "savepoints": _S},
    "character_sets": {"character_set_name": _S, "default_collate_name": _S, "description": _S, "maxlen": _I},
    "collations": {
        "collation_name": _S,
        "character_set_name": _S,
        "id": _I,
        "is_default": _S,
        "is_compiled": _S,
        "sortlen": _I,
    },
}

TABLE_NAMES = tuple(_TABLES)
Row = dict[str, Any]
_PRECISIONS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def catalog(database: str, schemas: Sequence[TableSchema]) -> dict[str, pa.Table]:
    """All tables of `information_schema`, by name."""
    rows: dict[str, list[Row]] = {name: [] for name in _TABLES}
    for name in (database, CATALOG):
        rows["schemata"].append(
            {
                "catalog_name": "greptime",
                "schema_name": name,
                "default_character_set_name": "utf8mb4",
                "default_collation_name": "utf8mb4_general_ci",
            }
        )
    for at, schema in enumerate(schemas, start=1):
        rows["tables"].append(_table(database, schema, at))
        rows["columns"] += [_column(database, schema, c, place) for place, c in enumerate(schema.columns, start=1)]
        for role, key in ((ColumnRole.TAG, "PRIMARY"), (ColumnRole.TIME, "TIME INDEX")):
            columns = [column for column in schema.columns if column.role is role]
            if not columns:
                continue
            for place, column in enumerate(columns, start=1):
                of = {"table_schema": database, "table_name": schema.name, "column_name": column.name}
                named = {"constraint_schema": database, "constraint_name": key}
                rows["key_column_usage"].append({**of, **named, "ordinal_position": place})
                rows["statistics"].append(
                    {
                        **of,
                        "non_unique": 1,  # the tags name a series, not a row
                        "index_schema": database,
                        "index_name": key,
                        "seq_in_index": place,
                        "nullable": "YES" if column.nullable else "",
                        "is_visible": "YES",
                    }
                )
            rows["table_constraints"].append(
                {
                    "constraint_schema": database,
                    "constraint_name": key,
                    "table_schema": database,
                    "table_name": schema.name,
                    "constraint_type": "PRIMARY KEY" if role is ColumnRole.TAG else "TIME INDEX",
                    "enforced": "YES",
                }
            )
    rows["engines"].append({"engine": "mito", "support": "DEFAULT", "comment": "time series", "transactions": "NO"})
    rows["character_sets"].append(
        {"character_set_name": "utf8mb4", "default_collate_name": "utf8mb4_general_ci", "maxlen": 4}
    )
    rows["collations"].append(
        {"collation_name": "utf8mb4_general_ci", "character_set_name": "utf8mb4", "id": 45, "is_default": "Yes"}
    )
    return {
        name: pa.Table.from_pylist(rows[name], schema=pa.schema(list(columns.items())))
        for name, columns in _TABLES.items()
    }


def _table(database: str, schema: TableSchema, at: int) -> Row:
    options = " ".join(f"{name}={value}" for name, value in shown_options(schema.options).items())
    return {
        "table_catalog": "greptime",
        "table_schema": database,
        "table_name": schema.name,
        "table_type": "BASE TABLE",
        "table_id": at,
        "engine": "mito",
        "version": schema.version,
        "table_collation": "utf8mb4_general_ci",
        "create_options": options,
    }


def key(column: Column) -> str:
    """As GreptimeDB's DESCRIBE and `column_key` name it."""
    return {ColumnRole.TAG: "PRI", ColumnRole.TIME: "PRI", ColumnRole.FIELD: ""}[column.role]


def semantic_type(column: Column) -> str:
    return {ColumnRole.TAG: "TAG", ColumnRole.TIME: "TIMESTAMP", ColumnRole.FIELD: "FIELD"}[column.role]


def _column(database: str, schema: TableSchema, column: Column, place: int) -> Row:
    text = column.type in (ColumnType.STRING, ColumnType.BINARY)
    return {
        "table_catalog": "greptime",
        "table_schema": database,
        "table_name": schema.name,
        "column_name": column.name,
        "ordinal_position": place,
        "is_nullable": "YES" if column.nullable else "NO",
        "data_type": MYSQL_NAMES[column.type],
        "character_maximum_length": 2_147_483_647 if text else None,
        "character_octet_length": 2_147_483_647 if text else None,
        "datetime_precision": _PRECISIONS[column.type.unit] if column.type.is_timestamp else None,
        "character_set_name": "utf8mb4" if column.type is ColumnType.STRING else None,
        "collation_name": "utf8mb4_general_ci" if column.type is ColumnType.STRING else None,
        "column_type": type_name(column).lower(),
        "column_key": "TIME INDEX" if column.role is ColumnRole.TIME else key(column),
        "extra": "",
        "privileges": "select,insert",
        "column_comment": "",
        "greptime_data_type": GREPTIME_NAMES[column.type],
        "semantic_type": semantic_type(column),
    }


def prefixed(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Under the names by which a rewritten SELECT asks for them."""
    return {CATALOG_PREFIX + name: table for name, table in tables.items()}


async def ask(make: Callable[[], Mapping[str, pa.Table]], sql: str, *, prelude: str = "") -> pa.Table:
    """Run a rewritten SELECT over a catalog. `make` gives its tables by name, in a thread; `prelude`: SQL of our own
    that runs before.

    Raises:
        Invalid: it is no good SELECT of these tables, or takes too much time or memory.
    """
    connection = await asyncio.to_thread(_opened, make, prelude)
    try:
        running = asyncio.ensure_future(asyncio.to_thread(_run, connection, sql))
        done, _ = await asyncio.wait({running}, timeout=QUERY_S_MAX)
        if not done:
            connection.interrupt()
            await asyncio.wait({running})
            running.exception()
            raise Invalid(f"a query of {CATALOG} took longer than {QUERY_S_MAX:.0f} s")
        return await running
    finally:
        connection.close()


def _opened(make: Callable[[], Mapping[str, pa.Table]], prelude: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=dict(_CONFIG))
    for name, table in make().items():
        connection.register(name, table)
    if prelude:
        connection.execute(prelude)
    return connection


def _run(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    try:
        return connection.sql(sql).to_arrow_table()
    except duckdb.CatalogException as error:
        wanted = str(error).partition(CATALOG_PREFIX)[2].partition(" ")[0].strip('"!')
        if wanted:
            raise Unsupported(
                f"{CATALOG}.{wanted} is not there", hint="there are " + ", ".join(sorted(_TABLES))
            ) from None
        raise Invalid(_first_line(error)) from None
    except duckdb.Error as error:
        raise Invalid(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].replace(CATALOG_PREFIX, f"{CATALOG}.")
