"""SHOW and DESCRIBE: answers about tables, as Arrow. `SHOW CREATE TABLE` is read by `ddl.py` as the same table."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.ddl import table_name
from dataplane.tsdb.protocols.information_schema import key, semantic_type
from dataplane.tsdb.protocols.lexer import quoted_name, quoted_string
from dataplane.tsdb.protocols.select import CATALOG
from dataplane.tsdb.protocols.session import Session
from dataplane.tsdb.protocols.sql_types import GREPTIME_NAMES, shown_decimals, shown_options, type_name
from dataplane.tsdb.schema.tables import ColumnRole, TableSchema


def create_statement(schema: TableSchema) -> str:
    """SQL that makes the same table."""
    lines = [f"  {quoted_name(c.name)} {type_name(c)} {'NULL' if c.nullable else 'NOT NULL'}" for c in schema.columns]
    lines.append(f"  TIME INDEX ({quoted_name(schema.time.name)})")
    if schema.tags:
        lines.append(f"  PRIMARY KEY ({', '.join(quoted_name(name) for name in schema.tags)})")
    options = shown_options(schema.options)
    with_ = ""
    if options:
        said = ",\n".join(f"  {name} = {quoted_string(value)}" for name, value in options.items())
        with_ = f"WITH(\n{said}\n)"
    body = ",\n".join(lines)
    return f"CREATE TABLE IF NOT EXISTS {quoted_name(schema.name)} (\n{body}\n)\n\nENGINE=mito\n{with_}".rstrip() + "\n"


def describe(schema: TableSchema) -> pa.Table:
    """As GreptimeDB: Column, Type, Key, Null, Default, Semantic Type."""
    return _strings(
        ["Column", "Type", "Key", "Null", "Default", "Semantic Type"],
        [
            [
                c.name,
                GREPTIME_NAMES[c.type] + shown_decimals(c),
                key(c),
                "YES" if c.nullable else "NO",
                "",
                semantic_type(c),
            ]
            for c in schema.columns
        ],
    )


def columns(schema: TableSchema, like: re.Pattern[str] | None, full: bool) -> pa.Table:
    """As MySQL's SHOW COLUMNS."""
    names = ["Field", "Type", "Null", "Key", "Default", "Extra"]
    rows = [
        [
            c.name,
            type_name(c).lower(),
            "YES" if c.nullable else "NO",
            "TIME INDEX" if c.role is ColumnRole.TIME else key(c),
            None,
            "",
        ]
        for c in schema.columns
        if like is None or like.fullmatch(c.name)
    ]
    if full:
        names += ["Collation", "Privileges", "Comment"]
        rows = [[*row, None, "select,insert", ""] for row in rows]
    return _strings(names, rows)


def indexes(schema: TableSchema) -> pa.Table:
    """As MySQL's SHOW INDEX: tags and time index, though neither is one that a row must be found by."""
    rows: list[list[str | None]] = []
    for name, role in (("PRIMARY", ColumnRole.TAG), ("TIME INDEX", ColumnRole.TIME)):
        named = [column for column in schema.columns if column.role is role]
        for at, column in enumerate(named, start=1):
            rows.append([schema.name, "1", name, str(at), column.name, "YES" if column.nullable else ""])
    return _strings(["Table", "Non_unique", "Key_name", "Seq_in_index", "Column_name", "Null"], rows)


def like_pattern(like: str) -> re.Pattern[str]:
    """SQL's LIKE: % any text, _ any character, a backslash takes the next as it is. Case does not count."""
    pattern = ""
    at = 0
    while at < len(like):
        if like[at] == "\\" and at + 1 < len(like):
            at += 1
            pattern += re.escape(like[at])
        else:
            pattern += {"%": ".*", "_": "."}.get(like[at], re.escape(like[at]))
        at += 1
    return re.compile(pattern, re.DOTALL | re.IGNORECASE)


def table_names(database: str, schemas: Sequence[TableSchema], like: re.Pattern[str] | None, full: bool) -> pa.Table:
    """As SHOW [FULL] TABLES: GreptimeDB calls the column `Tables`, MySQL's clients take the first."""
    rows = [[s.name, "BASE TABLE"] for s in schemas if like is None or like.fullmatch(s.name)]
    if full:
        return _strings([f"Tables_in_{database}", "Table_type"], rows)
    return _strings(["Tables"], [row[:1] for row in rows])


def databases(name: str, like: re.Pattern[str] | None) -> pa.Table:
    return _strings(["Database"], [[each] for each in (CATALOG, name) if like is None or like.fullmatch(each)])


def variables(session: Session, like: re.Pattern[str] | None) -> pa.Table:
    on_off = {"autocommit", "foreign_key_checks", "unique_checks", "sql_notes", "performance_schema"}
    rows = []
    for name, value in sorted(session.variables.items()):
        if like is None or like.fullmatch(name):
            shown = ("ON" if value else "OFF") if name in on_off else ("" if value is None else str(value))
            rows.append([name, shown])
    return _strings(["Variable_name", "Value"], rows)


def nothing(kind: str) -> pa.Table | None:
    """Answers without rows, for what clients ask and we have none of."""
    empty = {
        "WARNINGS": ["Level", "Code", "Message"],
        "ERRORS": ["Level", "Code", "Message"],
        "STATUS": ["Variable_name", "Value"],
        "TRIGGERS": ["Trigger", "Event", "Table"],
        "EVENTS": ["Db", "Name"],
        "PLUGINS": ["Name", "Status", "Type"],
        "PROFILES": ["Query_ID", "Duration", "Query"],
    }
    return _strings(empty[kind], []) if kind in empty else None


def engines() -> pa.Table:
    return _strings(
        ["Engine", "Support", "Comment", "Transactions", "XA", "Savepoints"],
        [["mito", "DEFAULT", "time series", "NO", "NO", "NO"]],
    )


def character_sets(kind: str) -> pa.Table:
    if kind == "COLLATION":
        return _strings(
            ["Collation", "Charset", "Id", "Default", "Compiled", "Sortlen"],
            [["utf8mb4_general_ci", "utf8mb4", "45", "Yes", "Yes", "1"]],
        )
    return _strings(
        ["Charset", "Description", "Default collation", "Maxlen"],
        [["utf8mb4", "UTF-8 Unicode", "utf8mb4_general_ci", "4"]],
    )


def read_like(cursor: Cursor) -> re.Pattern[str] | None:
    """LIKE '…', or nothing. Raises Invalid; Unsupported: WHERE."""
    if cursor.sees("WHERE"):
        raise Unsupported("SHOW … WHERE is not there", hint=f"LIKE, or a SELECT from {CATALOG}")
    return like_pattern(cursor.string("a pattern")) if cursor.takes("LIKE") else None


def read_from(cursor: Cursor) -> tuple[str | None, str]:
    """FROM t [FROM db]. Raises Invalid."""
    if not (cursor.takes("FROM") or cursor.takes("IN")):
        raise cursor.unexpected("FROM")
    database, table = table_name(cursor)
    if cursor.takes("FROM") or cursor.takes("IN"):
        database = cursor.name("a database")
    return database, table


def _strings(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> pa.Table:
    return pa.table(
        [pa.array([row[at] for row in rows], pa.string()) for at in range(len(names))],
        schema=pa.schema([(name, pa.string()) for name in names]),
    )
