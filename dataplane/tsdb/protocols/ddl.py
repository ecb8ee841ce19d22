"""CREATE TABLE, ALTER TABLE, DROP TABLE, TRUNCATE TABLE: read into values, which `statements.py` acts on.

    CREATE TABLE [IF NOT EXISTS] t (
      host STRING, ts TIMESTAMP(3) TIME INDEX, cpu DOUBLE NOT NULL, PRIMARY KEY (host)
    ) ENGINE = mito WITH (ttl = '7d', 'append_mode' = 'true')

What GreptimeDB has beyond that and we have not (partitions, indexes, defaults, comments) is refused by name: nothing is
read over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.lexer import Kind
from dataplane.tsdb.protocols.sql_types import FIXED_OPTIONS, read_type, with_options
from dataplane.tsdb.schema.tables import Column, ColumnRole, ColumnType, TableOptions, TableSchema
from providers.base.errors import Invalid

COLUMNS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class CreateTable:
    table: tuple[str | None, str]
    """Database, if one is named, and table: so in all of these."""
    columns: tuple[Column, ...]
    options: TableOptions
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropTable:
    table: tuple[str | None, str]
    if_exists: bool


@dataclass(frozen=True, slots=True)
class TruncateTable:
    table: tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class AddColumn:
    column: Column
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class ModifyColumn:
    name: str
    type: ColumnType
    decimals: int | None


@dataclass(frozen=True, slots=True)
class SetOptions:
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class AlterTable:
    """One kind of change: several ADD COLUMN are one, and so is one SET of several options."""

    table: tuple[str | None, str]
    add: tuple[AddColumn, ...] = ()
    modify: tuple[ModifyColumn, ...] = ()
    set: SetOptions | None = None


def table_name(cursor: Cursor) -> tuple[str | None, str]:
    """`t`, `db.t` or GreptimeDB's `greptime.db.t`."""
    names = [cursor.name("a table's name")]
    while cursor.takes("."):
        names.append(cursor.name("a table's name"))
    if len(names) == 3 and names[0] == "greptime":
        names = names[1:]
    if len(names) > 2:
        raise Invalid(f"{'.'.join(names)} is not a table's name: it has a database and a table")
    return (names[0] if len(names) == 2 else None), names[-1]


# ── CREATE TABLE ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Draft:
    """A table while its definition is read."""

    columns: list[tuple[str, tuple[ColumnType, int | None], bool | None]] = field(default_factory=list)
    """Name, type with its decimals, and whether it may be null if that was said."""
    time: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def built(self, table: str) -> tuple[Column, ...]:
        names = [name for name, _, _ in self.columns]
        for what, listed in (("TIME INDEX", self.time), ("PRIMARY KEY", self.tags)):
            for name in listed:
                if name not in names:
                    raise Invalid(f"{what} names {name!r}, which is not a column of table {table!r}")
        if len(self.time) != 1:
            raise Invalid(
                f"table {table!r} needs exactly one TIME INDEX and has {len(self.time)}",
                hint="ts TIMESTAMP(3) TIME INDEX, or TIME INDEX (ts)",
            )
        if len(set(self.tags)) < len(self.tags):
            raise Invalid(f"the PRIMARY KEY of table {table!r} names a column twice")
        if self.time[0] in self.tags:
            raise Invalid(f"column {self.time[0]!r} is the TIME INDEX and cannot be in the PRIMARY KEY")
        # In which order the key names the tags decides only how files are sorted: here by the columns' order.
        return tuple(
            Column(at, name, kind, self._role(name), self._nullable(name, nullable), decimals)
            for at, (name, (kind, decimals), nullable) in enumerate(self.columns, start=1)
        )

    def _role(self, name: str) -> ColumnRole:
        if name == self.time[0]:
            return ColumnRole.TIME
        return ColumnRole.TAG if name in self.tags else ColumnRole.FIELD

    def _nullable(self, name: str, said: bool | None) -> bool:
        if name != self.time[0]:
            return said is not False
        if said:
            raise Invalid(f"the TIME INDEX {name!r} cannot be NULL")
        return False


def read_create(cursor: Cursor) -> CreateTable:
    """After CREATE. Raises Invalid."""
    for other in ("DATABASE", "SCHEMA", "VIEW", "OR", "EXTERNAL", "FLOW", "TEMPORARY", "INDEX", "UNIQUE", "USER"):
        if cursor.sees(other):
            raise Unsupported(f"CREATE {other} is not there: only CREATE TABLE")
    cursor.expect("TABLE")
    if_not_exists = cursor.takes("IF", "NOT", "EXISTS")
    table = table_name(cursor)
    if cursor.sees("LIKE") or cursor.sees("AS"):
        raise Unsupported("CREATE TABLE … LIKE and … AS are not there: name the columns")
    cursor.expect("(")
    draft = _Draft()
    while True:
        _item(cursor, draft)
        if len(draft.columns) > COLUMNS_MAX:
            raise Invalid(f"table {table[1]!r} has more than {COLUMNS_MAX} columns")
        if cursor.takes(")"):
            break
        cursor.expect(",")
        if cursor.takes(")"):  # GreptimeDB lets a comma stand before the end
            break
    if cursor.sees("PARTITION"):
        raise Unsupported("PARTITION ON is not there: a table is one region")
    if cursor.takes("ENGINE"):
        cursor.takes("=")
        engine = cursor.name("an engine")
        if engine.lower() != "mito":
            raise Unsupported(f"engine {engine!r} is not there", hint="ENGINE=mito, or leave it out")
    written = _options(cursor) if cursor.takes("WITH") else {}
    cursor.end()
    columns = draft.built(table[1])
    folded = [column.name.lower() for column in columns]
    if len(set(folded)) < len(folded):
        raise Invalid(f"table {table[1]!r} has two columns whose names differ by case only, or not at all")
    options = with_options(TableOptions(), written)
    TableSchema(table[1], columns, options=options)  # says what is wrong with it
    return CreateTable(table, columns, options, if_not_exists)


def _item(cursor: Cursor, draft: _Draft) -> None:
    if cursor.sees("PRIMARY", "KEY"):
        cursor.takes("PRIMARY", "KEY")
        if draft.tags:
            raise Invalid("a table has one PRIMARY KEY")
        draft.tags = _names(cursor)
        return
    if cursor.sees("TIME", "INDEX"):
        cursor.takes("TIME", "INDEX")
        draft.time += _names(cursor)
        return
    if cursor.sees("CONSTRAINT", "TIME_INDEX", "TIME", "INDEX") or cursor.sees("CONSTRAINT"):
        cursor.takes("CONSTRAINT")
        cursor.name("a constraint's name")
        cursor.expect("TIME", "INDEX")
        draft.time += _names(cursor)
        return
    if cursor.sees("INDEX") and (cursor.peek(1) is None or not _is_type_next(cursor)):
        raise Unsupported("INDEX is not there: files are pruned by time and series")
    name = cursor.name("a column's name")
    kind = read_type(cursor)
    draft.columns.append((name, kind, _column_options(cursor, draft, name)))


def _is_type_next(cursor: Cursor) -> bool:
    token = cursor.peek(1)
    return token is not None and token.kind is Kind.WORD and not cursor.sees("INDEX", "(")


def _column_options(cursor: Cursor, draft: _Draft, name: str) -> bool | None:
    nullable: bool | None = None
    while True:
        if cursor.takes("NOT", "NULL"):
            nullable = False
        elif cursor.takes("NULL") or cursor.takes("DEFAULT", "NULL"):
            nullable = True
        elif cursor.takes("TIME", "INDEX"):
            draft.time.append(name)
        elif cursor.takes("PRIMARY", "KEY"):
            draft.tags.append(name)
        elif cursor.sees("DEFAULT"):
            raise Unsupported(f"DEFAULT of column {name!r} is not there: what an INSERT leaves out is null")
        elif cursor.sees("COMMENT"):
            raise Unsupported(f"COMMENT of column {name!r} is not there")
        elif any(cursor.sees(word) for word in ("INVERTED", "SKIPPING", "FULLTEXT")):
            raise Unsupported(f"an index of column {name!r} is not there: files are pruned by time and series")
        else:
            return nullable


def _names(cursor: Cursor) -> list[str]:
    cursor.expect("(")
    names = []
    while True:
        names.append(cursor.name("a column's name"))
        if cursor.takes(")"):
            return names
        cursor.expect(",")


def _options(cursor: Cursor) -> dict[str, str]:
    """`(key = 'value', …)`."""
    cursor.expect("(")
    written: dict[str, str] = {}
    if cursor.takes(")"):
        return written
    while True:
        _option(cursor, written)
        if cursor.takes(")"):
            return written
        cursor.expect(",")


def _option(cursor: Cursor, written: dict[str, str]) -> None:
    parts = [cursor.next("an option's name")]
    while cursor.takes("."):
        parts.append(cursor.next("an option's name"))
    if any(part.kind not in (Kind.WORD, Kind.NAME, Kind.STRING) for part in parts):
        raise cursor.unexpected("an option's name before this")
    name = ".".join(part.text for part in parts).lower()
    sign = "-" if cursor.takes("=-") else ""  # one operator, when no space is between
    if not sign:
        cursor.expect("=")
        sign = "-" if cursor.takes("-") else ""
    value = cursor.next(f"a value of {name}")
    if value.kind not in (Kind.STRING, Kind.NUMBER, Kind.WORD) or (sign and value.kind is not Kind.NUMBER):
        raise Invalid(f"option {name} has no value that could be read", hint=f"{name} = '…'")
    if name in written:
        raise Invalid(f"option {name} is said twice")
    written[name] = sign + value.text


# ── ALTER, DROP, TRUNCATE ───────────────────────────────────────────────────────────────────────────────────────────


def read_alter(cursor: Cursor) -> AlterTable:
    """After ALTER. Raises Invalid."""
    if cursor.sees("DATABASE"):
        raise Unsupported("ALTER DATABASE is not there: options are a table's")
    cursor.expect("TABLE")
    table = table_name(cursor)
    if cursor.sees("ADD"):
        return AlterTable(table, add=_added(cursor))
    if cursor.sees("MODIFY"):
        return AlterTable(table, modify=_modified(cursor))
    for unset in (False, True):
        if cursor.takes("UNSET" if unset else "SET"):
            written: dict[str, str] = {}
            while True:
                if unset:
                    name = cursor.next("an option's name").text.lower()
                    if name != "ttl":
                        raise Unsupported(f"UNSET {name!r} is not there: only 'ttl'", hint=f"SET '{name}' = …")
                    written[name] = "forever"
                else:
                    _option(cursor, written)
                if not cursor.takes(","):
                    break
            cursor.end()
            if fixed := [name for name in written if name in FIXED_OPTIONS]:
                raise Invalid(f"{fixed[0]} of a table is said when it is created, and cannot change")
            return AlterTable(table, set=SetOptions(written))
    for other in ("DROP", "RENAME", "CHANGE", "PARTITION", "SPLIT", "MERGE"):
        if cursor.sees(other):
            raise Unsupported(
                f"ALTER TABLE … {other} is not there: a table grows by columns and by wider types, and by nothing else"
            )
    raise cursor.unexpected("ADD COLUMN, MODIFY COLUMN or SET")


def _added(cursor: Cursor) -> tuple[AddColumn, ...]:
    added: list[AddColumn] = []
    while True:
        cursor.expect("ADD")
        cursor.takes("COLUMN")
        if_not_exists = cursor.takes("IF", "NOT", "EXISTS")
        name = cursor.name("a column's name")
        kind, decimals = read_type(cursor)
        draft = _Draft()
        nullable = _column_options(cursor, draft, name)
        if draft.time or draft.tags or nullable is False:
            raise Invalid(f"column {name!r} cannot be added so: an added column is a field that may be null")
        if cursor.sees("FIRST") or cursor.sees("AFTER"):
            raise Unsupported("ADD COLUMN … FIRST and … AFTER are not there: added columns come last")
        added.append(AddColumn(Column(0, name, kind, decimals=decimals), if_not_exists))
        if not cursor.takes(","):
            break
    cursor.end()
    return tuple(added)


def _modified(cursor: Cursor) -> tuple[ModifyColumn, ...]:
    cursor.expect("MODIFY")
    cursor.takes("COLUMN")
    name = cursor.name("a column's name")
    if cursor.sees("SET") or cursor.sees("UNSET"):
        raise Unsupported(f"MODIFY COLUMN {name} SET … is not there: only a wider type")
    kind, decimals = read_type(cursor)
    cursor.end()
    return (ModifyColumn(name, kind, decimals),)


def read_drop(cursor: Cursor) -> DropTable:
    """After DROP. Raises Invalid."""
    for other in ("DATABASE", "SCHEMA", "VIEW", "FLOW", "INDEX", "USER"):
        if cursor.sees(other):
            raise Unsupported(f"DROP {other} is not there: only DROP TABLE")
    cursor.expect("TABLE")
    if_exists = cursor.takes("IF", "EXISTS")
    table = table_name(cursor)
    if cursor.sees(","):
        raise Unsupported("DROP TABLE of several tables is not there: one statement each")
    cursor.end()
    return DropTable(table, if_exists)


def read_truncate(cursor: Cursor) -> TruncateTable:
    """After TRUNCATE. Raises Invalid."""
    cursor.takes("TABLE")
    table = table_name(cursor)
    cursor.end()
    return TruncateTable(table)
