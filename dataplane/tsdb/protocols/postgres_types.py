"""Postgres's types, by the numbers (OIDs) that clients know them by."""

from __future__ import annotations

from enum import IntEnum

from dataplane.tsdb.schema.tables import ColumnType


class Oid(IntEnum):
    """As `pg_type` numbers them, of every Postgres."""

    BOOL = 16
    BYTEA = 17
    CHAR = 18
    """The one in quotes: a single byte."""
    NAME = 19
    INT8 = 20
    INT2 = 21
    INT4 = 23
    TEXT = 25
    OID = 26
    JSON = 114
    FLOAT4 = 700
    FLOAT8 = 701
    UNKNOWN = 705
    BPCHAR = 1042
    VARCHAR = 1043
    DATE = 1082
    TIME = 1083
    TIMESTAMP = 1114
    TIMESTAMPTZ = 1184
    INTERVAL = 1186
    NUMERIC = 1700
    UUID = 2950
    JSONB = 3802


SIZES: dict[Oid, int] = {
    Oid.BOOL: 1,
    Oid.CHAR: 1,
    Oid.NAME: 64,
    Oid.INT8: 8,
    Oid.INT2: 2,
    Oid.INT4: 4,
    Oid.OID: 4,
    Oid.FLOAT4: 4,
    Oid.FLOAT8: 8,
    Oid.DATE: 4,
    Oid.TIME: 8,
    Oid.TIMESTAMP: 8,
    Oid.TIMESTAMPTZ: 8,
    Oid.INTERVAL: 16,
    Oid.UUID: 16,
}
"""Bytes of a value; of the others it varies (-1)."""

NAMES: dict[Oid, str] = {
    Oid.BOOL: "boolean",
    Oid.BYTEA: "bytea",
    Oid.CHAR: '"char"',
    Oid.NAME: "name",
    Oid.INT8: "bigint",
    Oid.INT2: "smallint",
    Oid.INT4: "integer",
    Oid.TEXT: "text",
    Oid.OID: "oid",
    Oid.JSON: "json",
    Oid.FLOAT4: "real",
    Oid.FLOAT8: "double precision",
    Oid.UNKNOWN: "unknown",
    Oid.BPCHAR: "character",
    Oid.VARCHAR: "character varying",
    Oid.DATE: "date",
    Oid.TIME: "time without time zone",
    Oid.TIMESTAMP: "timestamp without time zone",
    Oid.TIMESTAMPTZ: "timestamp with time zone",
    Oid.INTERVAL: "interval",
    Oid.NUMERIC: "numeric",
    Oid.UUID: "uuid",
    Oid.JSONB: "jsonb",
}
"""As SQL writes them, and `format_type` shows them."""

ARRAYS: dict[int, Oid] = {
    1000: Oid.BOOL,
    1001: Oid.BYTEA,
    1003: Oid.NAME,
    1005: Oid.INT2,
    1007: Oid.INT4,
    1009: Oid.TEXT,
    1014: Oid.BPCHAR,
    1015: Oid.VARCHAR,
    1016: Oid.INT8,
    1021: Oid.FLOAT4,
    1022: Oid.FLOAT8,
    1028: Oid.OID,
    1115: Oid.TIMESTAMP,
    1182: Oid.DATE,
    1185: Oid.TIMESTAMPTZ,
    1231: Oid.NUMERIC,
    2951: Oid.UUID,
}
"""Types of arrays, and of what is in them: as parameters."""

_T = ColumnType
OF_COLUMN: dict[ColumnType, Oid] = {
    _T.INT8: Oid.INT2,
    _T.INT16: Oid.INT2,
    _T.INT32: Oid.INT4,
    _T.INT64: Oid.INT8,
    _T.UINT8: Oid.INT2,
    _T.UINT16: Oid.INT4,
    _T.UINT32: Oid.INT8,
    _T.UINT64: Oid.NUMERIC,
    _T.FLOAT32: Oid.FLOAT4,
    _T.FLOAT64: Oid.FLOAT8,
    _T.BOOL: Oid.BOOL,
    _T.STRING: Oid.TEXT,
    _T.BINARY: Oid.BYTEA,
    **{kind: Oid.TIMESTAMP for kind in ColumnType if kind.is_timestamp},
}
"""The smallest of Postgres's that holds every value of ours: it has no unsigned ones, and none of one byte."""

DUCKDB: dict[Oid, str] = {
    Oid.BOOL: "BOOLEAN",
    Oid.BYTEA: "BLOB",
    Oid.INT8: "BIGINT",
    Oid.INT2: "SMALLINT",
    Oid.INT4: "INTEGER",
    Oid.OID: "BIGINT",
    Oid.FLOAT4: "FLOAT",
    Oid.FLOAT8: "DOUBLE",
    Oid.DATE: "DATE",
    Oid.TIME: "TIME",
    Oid.TIMESTAMP: "TIMESTAMP",
    Oid.TIMESTAMPTZ: "TIMESTAMP",
    Oid.INTERVAL: "INTERVAL",
    Oid.NUMERIC: "DOUBLE",
    Oid.UUID: "UUID",
}
"""What a query takes for it; times are UTC, with a zone or without. The rest is VARCHAR."""


def known(oid: int) -> Oid | None:
    """The type of that number; None: there is none here."""
    try:
        return Oid(oid)
    except ValueError:
        return None
