"""What a connection remembers between statements, and what its variables may be.

MySQL's clients ask for two dozen variables when they connect, and set some. Those that would change what a statement
means here (the time zone, the way strings are escaped) can be set to what holds anyway, and to nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.lexer import Kind
from providers.base.errors import Invalid

VERSION = "8.0.29-Yunhe"
"""What clients take for the version of MySQL's language: they choose their own by it."""
DEFAULT_DATABASE = "public"
"""What GreptimeDB's clients name when they name none; here another name of the one database."""

_VARIABLES: dict[str, str | int | None] = {
    "auto_increment_increment": 1,
    "autocommit": 1,
    "character_set_client": "utf8mb4",
    "character_set_connection": "utf8mb4",
    "character_set_database": "utf8mb4",
    "character_set_results": "utf8mb4",
    "character_set_server": "utf8mb4",
    "collation_connection": "utf8mb4_general_ci",
    "collation_database": "utf8mb4_general_ci",
    "collation_server": "utf8mb4_general_ci",
    "default_storage_engine": "mito",
    "foreign_key_checks": 1,
    "init_connect": "",
    "interactive_timeout": 28_800,
    "license": "Apache-2.0",
    "lower_case_table_names": 0,
    "max_allowed_packet": 16_777_216,
    "max_execution_time": 0,
    "net_buffer_length": 16_384,
    "net_read_timeout": 30,
    "net_write_timeout": 60,
    "performance_schema": 0,
    "query_cache_size": 0,
    "query_cache_type": "OFF",
    "sql_auto_is_null": 0,
    "sql_mode": "ANSI_QUOTES,PIPES_AS_CONCAT",
    "sql_notes": 1,
    "sql_safe_updates": 0,
    "sql_select_limit": 18_446_744_073_709_551_615,
    "system_time_zone": "UTC",
    "time_zone": "+00:00",
    "transaction_isolation": "READ-COMMITTED",
    "transaction_read_only": 0,
    "tx_isolation": "READ-COMMITTED",
    "tx_read_only": 0,
    "unique_checks": 1,
    "version": VERSION,
    "version_comment": "Yunhe, SQL as GreptimeDB speaks it",
    "wait_timeout": 28_800,
}
_ONLY: dict[str, frozenset[str]] = {
    # Times are UTC on both sides of the wire: another zone would be a lie in every answer.
    "time_zone": frozenset({"+00:00", "utc", "system", "default", "etc/utc", "-00:00"}),
    **dict.fromkeys(
        ("character_set_client", "character_set_connection", "character_set_results", "names"),
        frozenset({"utf8mb4", "utf8", "utf8mb3", "null", "default"}),
    ),
}
"""Variables that can be set to these only, in lower case."""
_READ_ONLY = ("version", "version_comment", "license", "system_time_zone", "lower_case_table_names")


@dataclass(slots=True)
class Session:
    """Of one connection; over HTTP, of one request."""

    database: str | None = None
    """As the client names it; what USE said last."""
    user: str = ""
    connection_id: int = 0
    backslash_escapes: bool = False
    """Whether strings are escaped as MySQL's clients do it."""
    postgres: bool = False
    """Whether strings and parameters are written as Postgres's clients do it."""
    functions: Mapping[str, str | int] = field(default_factory=dict)
    """What functions of the session say, by their names in upper case, where it is not as MySQL's clients expect it.
    Those of names that SQL keeps for itself (CURRENT_USER) also stand without parentheses."""
    variables: dict[str, str | int | None] = field(default_factory=lambda: dict(_VARIABLES))

    def value(self, name: str) -> str | int | None:
        """Raises Invalid: no such variable."""
        if name not in self.variables:
            raise Invalid(f"unknown system variable {name!r}")
        return self.variables[name]


def read_set(cursor: Cursor, session: Session) -> None:
    """After SET: do it.

    Raises:
        Invalid: a variable that is not there, or a value that it cannot have.
    """
    if cursor.takes("NAMES"):
        _settable("names", cursor.next("a character set").text)
        if cursor.takes("COLLATE"):
            cursor.next("a collation")
        cursor.end()
        return
    if cursor.takes("CHARACTER", "SET") or cursor.takes("CHARSET"):
        _settable("names", cursor.next("a character set").text)
        cursor.end()
        return
    if cursor.sees("SESSION", "TRANSACTION") or cursor.sees("TRANSACTION") or cursor.sees("GLOBAL", "TRANSACTION"):
        return  # every statement is its own transaction, whatever the isolation asked for
    changed: dict[str, str | int | None] = {}
    while True:
        name, value = _assignment(cursor, session)
        if name not in session.variables:
            raise Invalid(f"unknown system variable {name!r}")
        if name in _READ_ONLY:
            raise Invalid(f"variable {name!r} cannot be set")
        if name == "sql_mode":
            _keeps_strings_as_they_are(str(value))
            value = session.variables["sql_mode"]
        _settable(name, str(value))
        changed[name] = value
        if not cursor.takes(","):
            break
    cursor.end()
    session.variables.update(changed)


def _assignment(cursor: Cursor, session: Session) -> tuple[str, str | int | None]:
    if cursor.sees("@"):
        raise Unsupported("variables of one's own (@name) are not there")
    if cursor.sees("GLOBAL") or cursor.sees("PERSIST"):
        raise Unsupported("SET GLOBAL is not there: variables are a connection's")
    token = cursor.peek()
    if token is not None and token.kind is Kind.VARIABLE:
        if "global" in cursor.sql[token.start : token.end].lower():
            raise Unsupported("SET GLOBAL is not there: variables are a connection's")
        cursor.at += 1
        name = token.text
    else:
        cursor.takes("SESSION") or cursor.takes("LOCAL")
        name = cursor.name("a variable").lower()
    if not (cursor.takes("=") or cursor.takes(":=")):
        raise cursor.unexpected("'='")
    value = cursor.next(f"a value of {name}")
    if value.kind is Kind.VARIABLE:
        return name, session.value(value.text)
    if value.kind is Kind.NUMBER and value.text.isdigit():
        return name, int(value.text)
    if value.kind is Kind.WORD and value.text.upper() in ("ON", "TRUE", "OFF", "FALSE"):
        return name, int(value.text.upper() in ("ON", "TRUE"))
    if value.kind not in (Kind.WORD, Kind.STRING, Kind.NUMBER, Kind.NAME):
        cursor.at -= 1
        raise cursor.unexpected(f"a value of {name}")
    if value.kind is Kind.WORD and value.text.upper() == "DEFAULT":
        return name, _VARIABLES.get(name)
    return name, value.text


def _settable(name: str, value: str) -> None:
    allowed = _ONLY.get(name)
    if allowed is not None and value.lower() not in allowed:
        what = "character set" if name == "names" else name
        raise Unsupported(
            f"{what} {value!r} is not there: only {sorted(allowed)[0]!r}",
            hint="times are UTC, and text is UTF-8" if name in ("time_zone", "names") else None,
        )


def _keeps_strings_as_they_are(mode: str) -> None:
    """A client that turns backslash escapes off would be read wrongly: it is told, whatever else it asks for."""
    if "NO_BACKSLASH_ESCAPES" in mode.upper():
        raise Unsupported("sql_mode NO_BACKSLASH_ESCAPES is not there: backslashes escape on this wire")
