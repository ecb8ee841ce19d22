"""What a writer declares before it writes to a table, held against the database's own table."""

from __future__ import annotations

from typing import Any

from dataplane.contract.codec import from_plain
from dataplane.tsdb.engine import Database
from dataplane.tsdb.ring.records import Declared
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    TableOptions,
    TableSchema,
    said_decimals,
    widens,
)
from providers.base.errors import Invalid, NotFound


async def declare(database: Database, content: dict[str, Any]) -> Declared:
    """The table of a DECLARE message. It may name some of the table's columns, in any order, of narrower types than the
    table has; with `create`, a table that is not there is made, and fields that are not there are added. A column that
    says no decimals has those of the table's.

    Raises:
        NotFound: no such table or column, and `create` is not asked for. Invalid: no such message; a column that is
            another in the table; a column left out that cannot be null.
    """
    unknown = sorted(set(content) - {"table", "columns", "options", "create"})
    name, plain, create = content.get("table"), content.get("columns"), content.get("create", False)
    if unknown or not isinstance(name, str) or not isinstance(create, bool) or not isinstance(plain, list):
        raise Invalid("a DECLARE has a table's name, its columns and, if wanted, options and create")
    columns = tuple(_column(at, column) for at, column in enumerate(plain, 1))
    schema = database.table(name)
    if schema is None:
        if not create:
            raise NotFound(f"there is no table {name!r}", hint="declare it with `create`")
        options = from_plain(TableOptions, content.get("options") or {})
        TableSchema(name, columns)  # says what is wrong with it
        schema = await database.create_table(name, columns, options, if_not_exists=True)
    fresh = [column for column in columns if schema.column(column.name) is None]
    if fresh and not create:
        raise NotFound(f"table {name!r} has no column {fresh[0].name!r}", hint="declare it with `create`")
    if fresh:
        schema = await database.add_columns(name, fresh)
    return _held(schema, columns)


def _column(at: int, plain: Any) -> Column:
    if not isinstance(plain, dict) or not isinstance(plain.get("name"), str):
        raise Invalid(f"column {at} has no name")
    try:
        kind, role = ColumnType(str(plain.get("type"))), ColumnRole(plain.get("role", "field"))
    except ValueError as error:
        raise Invalid(f"column {plain['name']!r}: {error}") from error
    nullable = plain.get("nullable", role is not ColumnRole.TIME)
    if not isinstance(nullable, bool):
        raise Invalid(f"column {plain['name']!r}: nullable is true or false")
    decimals = plain.get("decimals")
    if decimals is not None and type(decimals) is not int:
        raise Invalid(f"column {plain['name']!r}: decimals is a whole number")
    return Column(at, plain["name"], kind, role, nullable, decimals)


def _held(schema: TableSchema, columns: tuple[Column, ...]) -> Declared:
    if len({column.name for column in columns}) < len(columns):
        raise Invalid(f"the columns declared of table {schema.name!r} name one twice")
    held, narrow = [], False
    for column in columns:
        its = schema.column(column.name)
        if its is None or its.role is not column.role or not widens(column.type, its.type):
            found = "not there" if its is None else f"{its.type}, a {its.role}"
            raise Invalid(
                f"column {column.name!r} of table {schema.name!r} is {found}, not {column.type}, a {column.role}"
            )
        if column.decimals not in (None, its.decimals):
            raise Invalid(f"column {column.name!r} of table {schema.name!r} has {said_decimals(its)}")
        narrow |= its.type is not column.type
        held.append(Column(its.id, column.name, column.type, its.role, its.nullable, its.decimals))
    names = {column.name for column in held}
    if left := [column.name for column in schema.columns if column.name not in names and not column.nullable]:
        raise Invalid(f"column {left[0]!r} of table {schema.name!r} cannot be null, and is not declared")
    # Rows of a version that is none of the table's are cast to what it has when they are handed over.
    return Declared(schema.name, tuple(held), -1 if narrow else schema.version)


def as_the_table(schema: TableSchema | None, version: int, rows: Any) -> Any:
    """`rows`, declared at that version, in the types that the table has by now."""
    if schema is None or schema.version == version:
        return rows
    for at, name in enumerate(rows.column_names):
        column = schema.column(name)
        if column is not None and rows.column(at).type != column.type.arrow:
            rows = rows.set_column(at, name, rows.column(at).cast(column.type.arrow))
    return rows
