"""Settings of a connection, as Postgres's clients set and ask them, and what its session functions say.

What would change the meaning of a statement or of an answer (the time zone, how dates or strings are written) can be
set to what holds anyway, and to nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dataplane.tsdb.protocols.cursor import Cursor, Unsupported
from dataplane.tsdb.protocols.lexer import Kind
from providers.base.errors import Invalid, NotFound

VERSION = "16.3-Yunhe"
"""What clients take for the version of Postgres's language: they choose their own by it."""
VERSION_TEXT = f"PostgreSQL {VERSION}, SQL as GreptimeDB speaks it"
SCHEMA = "public"

_UTC = frozenset({"utc", "etc/utc", "gmt", "z", "+00:00", "0", "default", "local"})
_OFF = frozenset({"off", "false", "0", "no"})
_ON = frozenset({"on", "true", "1", "yes"})


@dataclass(frozen=True, slots=True)
class _Setting:
    value: str
    only: frozenset[str] | None = None
    """In lower case; what it can be set to, its value staying. None: to anything."""
    told: str | None = None
    """The name under which clients are told of it, when they connect and when it changes."""


_FIXED: frozenset[str] = frozenset()
_SETTINGS: dict[str, _Setting] = {
    "application_name": _Setting("", told="application_name"),
    "bytea_output": _Setting("hex", frozenset({"hex"})),
    "client_encoding": _Setting("UTF8", frozenset({"utf8", "utf-8", "unicode", "default"}), "client_encoding"),
    "client_min_messages": _Setting("notice"),
    "datestyle": _Setting("ISO, MDY", frozenset({"iso", "iso, mdy", "iso,mdy", "iso, ymd", "iso, dmy"}), "DateStyle"),
    "default_transaction_isolation": _Setting("read committed"),
    "default_transaction_read_only": _Setting("off", _OFF),
    "extra_float_digits": _Setting("1"),
    "idle_in_transaction_session_timeout": _Setting("0"),
    "integer_datetimes": _Setting("on", _FIXED, "integer_datetimes"),
    "intervalstyle": _Setting("postgres", frozenset({"postgres"}), "IntervalStyle"),
    "is_superuser": _Setting("off", _FIXED, "is_superuser"),
    "jit": _Setting("off"),
    "lc_collate": _Setting("C", _FIXED),
    "lc_ctype": _Setting("C", _FIXED),
    "lock_timeout": _Setting("0"),
    "max_identifier_length": _Setting("63", _FIXED),
    "search_path": _Setting('"$user", public'),
    "server_encoding": _Setting("UTF8", _FIXED, "server_encoding"),
    "server_version": _Setting(VERSION, _FIXED, "server_version"),
    "server_version_num": _Setting("160003", _FIXED),
    "session_authorization": _Setting("", _FIXED, "session_authorization"),
    "standard_conforming_strings": _Setting("on", _ON, "standard_conforming_strings"),
    "statement_timeout": _Setting("0"),
    "timezone": _Setting("UTC", _UTC, "TimeZone"),
    "transaction_isolation": _Setting("read committed"),
    "transaction_read_only": _Setting("off", _OFF),
}
_SPOKEN = {
    ("TIME", "ZONE"): "timezone",
    ("TRANSACTION", "ISOLATION", "LEVEL"): "transaction_isolation",
    ("SESSION", "AUTHORIZATION"): "session_authorization",
    ("NAMES",): "client_encoding",
}
"""Settings with names of several words."""
_SEARCHED = ("$user", SCHEMA, "pg_catalog")
_UNITS_MS = {"": 1, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
STATEMENT_MS_MAX = 86_400_000


def reported() -> dict[str, str]:
    """Settings that clients are told of, by the name that they know."""
    return {name: setting.told for name, setting in _SETTINGS.items() if setting.told is not None}


@dataclass(slots=True)
class Settings:
    """Of one connection."""

    user: str = ""
    values: dict[str, str] = field(default_factory=lambda: {name: s.value for name, s in _SETTINGS.items()})

    def __post_init__(self) -> None:
        self.values["session_authorization"] = self.user

    @property
    def statement_ms(self) -> int:
        """How long a statement may take; 0: as long as the database lets it."""
        return _milliseconds(self.values["statement_timeout"])

    def get(self, name: str) -> str:
        """Raises NotFound: no such setting."""
        if name.lower() not in self.values:
            raise _unknown(name)
        return self.values[name.lower()]

    def set(self, name: str, value: str | None) -> None:
        """None: its default.

        Raises:
            NotFound: no such setting. Invalid: it cannot be set, or not to that.
        """
        known = _SETTINGS.get(name.lower())
        if known is None:
            raise _unknown(name)
        if value is None or value.lower() == "default":
            if known.only is not _FIXED:
                self.values[name.lower()] = known.value
            return
        if known.only is _FIXED:
            raise Invalid(f"parameter {name!r} cannot be changed", sqlstate="55P02")
        if known.only is not None and value.strip().lower() not in known.only:
            raise Unsupported(
                f"{name} {value[:40]!r} is not there: only {known.value!r}",
                hint="times are UTC, and text is UTF-8" if name.lower() in ("timezone", "client_encoding") else None,
            )
        if name.lower() == "search_path":
            _check_path(value)
        if name.lower() == "statement_timeout":
            _milliseconds(value)
        if known.only is None:
            self.values[name.lower()] = value

    def reset(self) -> None:
        """All to their defaults."""
        for name in self.values:
            self.set(name, None)


def _unknown(name: str) -> NotFound:
    return NotFound(f"unrecognized configuration parameter {name[:60]!r}", sqlstate="42704")


def _check_path(value: str) -> None:
    for part in value.split(","):
        name = part.strip().strip("\"'")
        if name and name not in _SEARCHED:
            raise Unsupported(f"schema {name[:60]!r} cannot be searched: tables are in {SCHEMA!r}")


def _milliseconds(written: str) -> int:
    match = re.fullmatch(r"(\d{1,9})\s*(ms|s|min|h|d|)", written.strip().lower())
    if match is None or (found := int(match.group(1)) * _UNITS_MS[match.group(2)]) > STATEMENT_MS_MAX:
        raise Invalid(f"{written[:40]!r} is not a time in milliseconds up to a day", sqlstate="22023")
    return found


# ── statements ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _name(cursor: Cursor) -> str:
    for words, name in _SPOKEN.items():
        if cursor.takes(*words):
            return name
    parts = [cursor.name("a parameter's name")]
    while cursor.takes("."):
        parts.append(cursor.name("a parameter's name"))
    return ".".join(parts)


def read_set(cursor: Cursor, settings: Settings) -> str | None:
    """After SET: do it; the setting's name. Raises as `Settings.set`."""
    cursor.takes("SESSION", "CHARACTERISTICS", "AS") or cursor.takes("LOCAL") or (
        not cursor.sees("SESSION", "AUTHORIZATION") and cursor.takes("SESSION")
    )
    if cursor.sees("TRANSACTION") and not cursor.sees("TRANSACTION", "="):
        return None  # every statement is its own transaction, whatever is asked for
    spoken = cursor.sees("TIME", "ZONE") or cursor.sees("NAMES") or cursor.sees("SESSION", "AUTHORIZATION")
    name = _name(cursor)
    if not (cursor.takes("=") or cursor.takes("TO") or spoken):
        raise cursor.unexpected("'=' or TO")
    values = [_value(cursor)]
    while cursor.takes(","):
        values.append(_value(cursor))
    cursor.end()
    settings.set(name, ", ".join(values))
    return name.lower()


def _value(cursor: Cursor) -> str:
    sign = "-" if cursor.takes("-") else ""
    token = cursor.next("a value")
    if token.kind not in (Kind.WORD, Kind.NAME, Kind.STRING, Kind.NUMBER):
        cursor.at -= 1
        raise cursor.unexpected("a value")
    return sign + token.text


def shown(cursor: Cursor, settings: Settings) -> list[tuple[str, str]] | None:
    """After SHOW: settings and their values; None: it asks for no setting."""
    at = cursor.at
    if cursor.takes("ALL") and cursor.ended:
        return sorted(settings.values.items())
    cursor.at = at
    try:
        name = _name(cursor)
        if cursor.ended and name.lower() in settings.values:
            return [(name.lower(), settings.get(name))]
    except Invalid:
        pass
    cursor.at = at
    return None


def read_reset(cursor: Cursor, settings: Settings) -> str | None:
    """After RESET: do it; the setting's name, None: all. Raises as `Settings.set`."""
    if cursor.takes("ALL"):
        settings.reset()
        return None
    name = _name(cursor)
    cursor.end()
    settings.set(name, None)
    return name.lower()
