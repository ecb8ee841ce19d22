"""Tables that the spec names: made where they are not there, and grown to it where they can be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any

from dataplane.contract.database import TableSpec
from dataplane.tsdb.engine import Database
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    MergeMode,
    TableOptions,
    WalSync,
    said_decimals,
)
from providers.base.errors import Invalid, YunheError

log = logging.getLogger(__name__)

_ENUMS: Mapping[str, type[StrEnum]] = {"wal": WalSync, "merge_mode": MergeMode}


def columns_of(spec: TableSpec) -> tuple[Column, ...]:
    """Raises Invalid: a type or a role that is none."""
    found = []
    for at, column in enumerate(spec.columns, 1):
        try:
            kind, role = ColumnType(column.type), ColumnRole(column.role)
        except ValueError as error:
            raise Invalid(f"column {column.name!r} of table {spec.name!r}: {error}") from error
        nullable = column.nullable and role is not ColumnRole.TIME
        found.append(Column(at, column.name, kind, role, nullable, column.decimals))
    return tuple(found)


def options_of(spec: TableSpec) -> TableOptions:
    """Raises Invalid: an option that is none, or a value of another type."""
    known = {field.name for field in fields(TableOptions)}
    values: dict[str, Any] = {}
    for name, value in spec.options.items():
        if name not in known:
            raise Invalid(f"table {spec.name!r} has no option {name!r}", hint=f"one of: {', '.join(sorted(known))}")
        if name in _ENUMS:
            try:
                values[name] = _ENUMS[name](str(value))
            except ValueError as error:
                raise Invalid(f"option {name!r} of table {spec.name!r}: {error}") from error
            continue
        wanted = bool if isinstance(getattr(TableOptions(), name), bool) else int
        if type(value) is not wanted:
            raise Invalid(f"option {name!r} of table {spec.name!r} is a {wanted.__name__}, not {value!r}")
        values[name] = value
    return TableOptions(**values)


async def keep_to(database: Database, specs: Sequence[TableSpec]) -> list[str]:
    """Make or grow the tables of `specs`; one sentence each that cannot be as its spec says, and stays as it is."""
    refused = []
    for spec in specs:
        try:
            await _keep_one(database, spec)
        except YunheError as error:
            refused.append(f"table {spec.name!r} stays as it is: {error}")
    return refused


async def _keep_one(database: Database, spec: TableSpec) -> None:
    columns, options = columns_of(spec), options_of(spec)
    present = database.table(spec.name)
    if present is None:
        await database.create_table(spec.name, columns, options, if_not_exists=True)
        return
    for column in columns:
        there = present.column(column.name)
        if there is not None and there.role is not column.role:
            raise Invalid(f"column {column.name!r} is a {there.role}, and the spec says {column.role}")
        if there is not None and there.decimals != column.decimals:
            raise Invalid(
                f"column {column.name!r} has {said_decimals(there)}, and the spec says {said_decimals(column)}"
            )
        if there is not None and there.type is not column.type:
            await database.widen_column(spec.name, column.name, column.type)
    await database.add_columns(spec.name, [replace(c, id=0) for c in columns if present.column(c.name) is None])
    if options != present.options:
        await database.set_options(spec.name, options)
