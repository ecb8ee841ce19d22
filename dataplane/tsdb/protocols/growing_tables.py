"""Points become rows of tables that grow as GreptimeDB's do. Begin at `TableWriter.store`.

A table that is not there is made: its tags strings, its time index `greptime_timestamp`, its fields float64, int64,
uint64, bool or string, rows of one series and time merged field by field (`last_non_null`). A table that is there
already keeps its own time index and unit, and its types: a number goes into a wider or narrower column where its value
fits, a whole number into a float column, and nothing else into another type.

New fields are added. New tags are not: the rows of a table are told apart by its tags, of which those that are stored
would have none, and as a field it would let two series overwrite each other. Such points are refused, with the reason.
What is wrong with a point refuses that point only; all others are stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataplane.tsdb.engine import Database, Rows
from dataplane.tsdb.protocols.line_batches import Refusals
from dataplane.tsdb.protocols.line_columns import Group
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    MergeMode,
    TableOptions,
    TableSchema,
    with_columns,
)
from providers.base.errors import Conflict, Invalid, NotFound

TIME_INDEX = "greptime_timestamp"
OPTIONS = TableOptions(merge_mode=MergeMode.LAST_NON_NULL)
"""Of tables that are made."""
ATTEMPTS_MAX = 4
"""Times that a schema is looked at again because somebody else changed it meanwhile."""
PLANS_MAX = 4_096
"""Tables of which it is remembered that points fit as they are; when there are more, all of it is forgotten."""
INLINE_POINTS = 200
"""Up to so many become rows in less time than it takes to hand them to a thread."""

_WHOLE = {
    ColumnType.INT8: (-(2**7), 2**7 - 1),
    ColumnType.INT16: (-(2**15), 2**15 - 1),
    ColumnType.INT32: (-(2**31), 2**31 - 1),
    ColumnType.INT64: (-(2**63), 2**63 - 1),
    ColumnType.UINT8: (0, 2**8 - 1),
    ColumnType.UINT16: (0, 2**16 - 1),
    ColumnType.UINT32: (0, 2**32 - 1),
    ColumnType.UINT64: (0, 2**64 - 1),
}
_FLOATS = (ColumnType.FLOAT32, ColumnType.FLOAT64)
_BY_ARROW = {
    pa.float64(): ColumnType.FLOAT64,
    pa.int64(): ColumnType.INT64,
    pa.uint64(): ColumnType.UINT64,
    pa.bool_(): ColumnType.BOOL,
    pa.string(): ColumnType.STRING,
}
_UNIT_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


class TableWriter:
    """Points into a database. `time`: the type of the time index of tables that are made."""

    def __init__(self, database: Database, time: ColumnType = ColumnType.TIMESTAMP_NS) -> None:
        self._database = database
        self._time = time
        self._plans = Plans()

    async def store(self, groups: Sequence[Group], refused: Refused, *, partial: bool = True) -> int:
        """Store what fits, and say in `refused` what does not; returns how many rows were stored. `partial` false: none
        is, if one is refused.

        Raises:
            Full, Unavailable, Fenced: as the database's `write`; storing the same again is harmless.
        """
        tables: dict[str, list[Group]] = {}
        for group in groups:
            tables.setdefault(group.measurement, []).append(group)
        points = sum(len(group.at) for group in groups)
        for _ in range(ATTEMPTS_MAX):
            refused.forget()
            if not partial and refused.count:
                return 0
            schemas: dict[str, TableSchema | None] = {}
            for name, mine in tables.items():
                schema = self._database.table(name)
                known = schema is not None and all(self._plans.of(schema, group) for group in mine)
                schemas[name] = schema if known else await self._schema(name, mine, refused)
            if points <= INLINE_POINTS:
                rows = all_rows(schemas, tables, refused, self._plans)
            else:
                rows = await asyncio.to_thread(all_rows, schemas, tables, refused, self._plans)
            if not rows or (refused.count and not partial):
                return 0
            try:
                return await self._database.write(rows)
            except NotFound:  # dropped since
                continue
        raise Conflict(f"a table was dropped {ATTEMPTS_MAX} times while points were written to it")

    async def _schema(self, name: str, groups: Sequence[Group], refused: Refused) -> TableSchema | None:
        """The table as these points need it; None: all its points are refused."""
        wanted = list(groups)
        for _ in range(ATTEMPTS_MAX):
            schema = self._database.table(name)
            try:
                if schema is None:
                    columns = created(wanted, self._time)
                    # Whose table it is now is seen in the next turn: somebody else may have made it, with less.
                    await self._database.create_table(name, columns, OPTIONS, if_not_exists=True)
                elif added := new_fields(schema, wanted):
                    await self._database.add_columns(name, added)
                else:
                    return schema
            except (Conflict, NotFound):
                continue  # somebody else created, changed or dropped it just now
            except Invalid as error:
                bad = [(group, why) for group in wanted if (why := _why_not_columns(name, schema, group))]
                if not bad:  # each would do by itself, or the database has its own reasons
                    bad = [(group, error.message) for group in wanted if schema is None or _grows(schema, group)]
                for group, why in bad:
                    refused.groups([group], why)
                wanted = [group for group in wanted if not refused.has(group)]
                if not wanted:
                    return schema
        raise Conflict(f"the columns of table {name!r} changed {ATTEMPTS_MAX} times while points were written to it")


@dataclass(frozen=True, slots=True)
class Plan:
    """How points of one form become rows of one version of a table, all of whose values fit as they are."""

    schema: TableSchema
    form: object
    names: tuple[str, ...]
    """Of the columns that the points have, in the table's order."""
    unit: int
    """Nanoseconds of the time index's unit."""
    rows: pa.Schema

    def table(self, group: Group) -> pa.Table:
        """The group's rows."""
        times = group.times if self.unit == 1 else pa.array(group.times.to_numpy() // self.unit)
        time = self.schema.time
        columns = {**group.tags, **group.fields, time.name: times.view(time.type.arrow)}
        return pa.Table.from_arrays([columns[name] for name in self.names], schema=self.rows)


class Plans:
    """Of each table the last form of points that fitted: a client sends the same ones again and again. May be used by
    several threads."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}

    def of(self, schema: TableSchema, group: Group) -> Plan | None:
        """None: it is not known yet whether they fit."""
        plan = self._plans.get(schema.name)
        fits = plan is not None and group.form is not None and plan.form is group.form and plan.schema is schema
        return plan if fits else None

    def learn(self, schema: TableSchema, group: Group) -> None:
        """Remember it of points that the table takes, if each value has its column's type and no tag is left out."""
        given = {**group.tags, **group.fields}
        tags = [column.name for column in schema.columns if column.role is ColumnRole.TAG]
        columns = [c for c in schema.columns if c.name in given or c.role is ColumnRole.TIME]
        fits = all(c.role is ColumnRole.TIME or given[c.name].type == c.type.arrow for c in columns)
        if group.form is None or not fits or len(columns) != len(given) + 1 or list(group.tags.keys() ^ set(tags)):
            return
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        rows = pa.schema([(c.name, c.type.arrow) for c in columns])
        unit = _UNIT_NS[schema.time.type.unit]
        self._plans[schema.name] = Plan(schema, group.form, tuple(rows.names), unit, rows)


class Refused:
    """Refuses points by what names them (`Group.at`), each once, beside what was refused before.

    `where`: of a point and the field that the reason is about, what the message is to point at.
    """

    def __init__(self, before: Refusals, where: Callable[[int, str | None], int]) -> None:
        self._before = before
        self._point_at = where
        self.refusals = Refusals()
        self._gone: set[int] = set()
        self.forget()

    @property
    def count(self) -> int:
        return self.refusals.count

    def forget(self) -> None:
        """What was refused since the beginning."""
        self.refusals = Refusals(self._before.count, list(self._before.kept))
        self._gone = set()

    def point(self, at: int, reason: str, field: str | None = None) -> None:
        if at not in self._gone:
            self._gone.add(at)
            self.refusals.add(at, self._point_at(at, field) if self.refusals.open else at, reason)

    def groups(self, groups: Sequence[Group], reason: str) -> None:
        for group in groups:
            for at in group.at.tolist():
                self.point(at, reason)

    def has(self, group: Group) -> bool:
        """Whether all of the group's points were refused."""
        return int(group.at[0]) in self._gone and set(group.at.tolist()) <= self._gone


def created(groups: Sequence[Group], time: ColumnType = ColumnType.TIMESTAMP_NS) -> list[Column]:
    """Columns of a table that has none yet: tags, the time index, fields, each by first appearance. A field's type is
    that of the first line that has it."""
    tags: dict[str, None] = {}
    fields: dict[str, tuple[int, ColumnType]] = {}
    for group in groups:
        tags |= dict.fromkeys(group.tags)
        first = int(group.at.min())
        for name, values in group.fields.items():
            if name not in fields or first < fields[name][0]:
                fields[name] = (first, _BY_ARROW[values.type])
    columns = [Column(0, name, ColumnType.STRING, ColumnRole.TAG) for name in tags]
    columns.append(Column(0, TIME_INDEX, time, ColumnRole.TIME, nullable=False))
    columns += [
        Column(0, name, kind)
        for name, (_, kind) in sorted(fields.items(), key=lambda one: one[1][0])
        if name not in tags and name != TIME_INDEX
    ]
    return [Column(number, c.name, c.type, c.role, c.nullable) for number, c in enumerate(columns, 1)]


def new_fields(schema: TableSchema, groups: Sequence[Group]) -> list[Column]:
    """Fields that the table does not have yet, of points that it would take with them."""
    known = {column.name for column in schema.columns}
    if all(name in known for group in groups for name in group.fields):
        return []
    fitting = [group for group in groups if why_not(schema, group) is None]
    found: dict[str, tuple[int, ColumnType]] = {}
    for group in fitting:
        first = int(group.at.min())
        for name, values in group.fields.items():
            if name not in known and (name not in found or first < found[name][0]):
                found[name] = (first, _BY_ARROW[values.type])
    return [Column(0, name, kind) for name, (_, kind) in found.items()]


def _grows(schema: TableSchema, group: Group) -> bool:
    return any(schema.column(field) is None for field in group.fields)


def _why_not_columns(name: str, schema: TableSchema | None, group: Group) -> str | None:
    """The reason why no table could have the group's columns, by themselves or beside those that are there."""
    try:
        if schema is None:
            TableSchema(name, tuple(created([group])))
        elif added := new_fields(schema, [group]):
            with_columns(schema, tuple(added))
    except Invalid as error:
        return error.message
    return None


def why_not(schema: TableSchema, group: Group) -> tuple[str, str | None] | None:
    """The reason why the table takes none of the group's points, and the field that it is about; None: it may."""
    known = {column.name: column for column in schema.columns}  # `schema.column` looks through all
    for name in group.tags:
        column = known.get(name)
        if column is None:
            return f"table {schema.name!r} has no tag {name!r}, and tags cannot be added to a table that is there", None
        if column.role is not ColumnRole.TAG:
            return f"{name!r} is a {_role(column)} of table {schema.name!r}, and no tag", None
        if column.type is not ColumnType.STRING:
            return f"tag {name!r} of table {schema.name!r} is {column.type}, and tags of lines are strings", None
    for name, values in group.fields.items():
        column = known.get(name)
        if column is not None and column.role is not ColumnRole.FIELD:
            return f"{name!r} is the {_role(column)} of table {schema.name!r}, and no field", name
        given = _BY_ARROW[values.type]
        if column is not None and not _takes(column.type, given):
            return f"field {name!r} of table {schema.name!r} is {column.type}, and this is {given}", name
    for column in schema.columns:
        there = column.name in group.tags or column.name in group.fields or column.role is ColumnRole.TIME
        if not there and not column.nullable:
            return f"{_role(column)} {column.name!r} of table {schema.name!r} is missing, and may not be null", None
    return None


def _role(column: Column) -> str:
    return "time index" if column.role is ColumnRole.TIME else str(column.role)


def _takes(column: ColumnType, given: ColumnType) -> bool:
    """Whether values of type `given` may go into the column, where they fit."""
    if given in _WHOLE:
        return column in _WHOLE or column in _FLOATS
    return column in _FLOATS if given in _FLOATS else column is given


def all_rows(
    schemas: dict[str, TableSchema | None], tables: dict[str, list[Group]], refused: Refused, plans: Plans
) -> list[Rows]:
    """Rows for each table; what does not fit is refused."""
    found = []
    for name, groups in tables.items():
        schema = schemas[name]
        rows = table_rows(schema, groups, refused, plans) if schema is not None else None
        if rows is not None:
            found.append(Rows(name, rows))
    return found


def table_rows(schema: TableSchema, groups: Sequence[Group], refused: Refused, plans: Plans) -> pa.Table | None:
    """Rows of one table in the order of their lines; None: there are none."""
    parts, orders = [], []
    for group in groups:
        if refused.has(group):
            continue
        if plan := plans.of(schema, group):
            parts.append(plan.table(group))
            orders.append(group.at)
            continue
        if why := why_not(schema, group):
            for at in group.at.tolist():
                refused.point(at, *why)
            continue
        plans.learn(schema, group)
        columns, keep = _fitted(schema, group, refused)
        part = pa.table(columns)
        order = group.at
        if not keep.all():
            part, order = part.filter(pa.array(keep)), order[keep]
        if len(part):
            parts.append(part)
            orders.append(order)
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    # Of one series and time the last line wins, whatever shape it has.
    rows = pa.concat_tables(parts, promote_options="default")
    return rows.take(pa.array(np.argsort(np.concatenate(orders), kind="stable"))).combine_chunks()


def _fitted(schema: TableSchema, group: Group, refused: Refused) -> tuple[dict[str, pa.Array], np.ndarray]:
    """The group's columns in the table's types, and which of its rows are kept."""
    rows = len(group.at)
    keep = np.ones(rows, dtype=bool)
    known = {column.name: column for column in schema.columns}
    time = schema.time
    unit = _UNIT_NS[time.type.unit]
    times = group.times if unit == 1 else pa.array(group.times.to_numpy() // unit)
    columns: dict[str, pa.Array] = dict(group.tags)
    for name, column in known.items():
        if column.role is ColumnRole.TAG and name not in columns:
            columns[name] = pa.nulls(rows, pa.string())
    columns[time.name] = times.view(time.type.arrow)
    for name, values in group.fields.items():
        column = known[name]
        if values.type != column.type.arrow:
            fits = _fits(values, column.type)
            for at in group.at[~fits & keep].tolist():
                refused.point(at, f"field {name!r} of table {schema.name!r} is {column.type}: out of its range", name)
            keep &= fits
            if not fits.all():
                values = pc.if_else(pa.array(fits), values, pa.scalar(None, values.type))
            values = values.cast(column.type.arrow, safe=False)
        columns[name] = values
    return columns, keep


def _fits(values: pa.Array, wanted: ColumnType) -> np.ndarray:
    numbers = values.to_numpy()
    if wanted is ColumnType.FLOAT32:
        fits: np.ndarray = np.abs(numbers.astype(np.float64)) <= np.finfo(np.float32).max
        return fits
    if wanted is ColumnType.FLOAT64:
        return np.ones(len(numbers), dtype=bool)
    low, high = _WHOLE[wanted]
    info = np.iinfo(numbers.dtype)
    inside: np.ndarray = (numbers >= max(low, info.min)) & (numbers <= min(high, info.max))
    return inside
