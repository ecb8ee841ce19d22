"""Functions that Postgres's tools call in queries of its catalog, as DuckDB's macros.

What they would tell of indexes, constraints, comments or rights is nothing: there are none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dataplane.tsdb.protocols.lexer import quoted_string
from dataplane.tsdb.protocols.postgres_settings import SCHEMA, VERSION_TEXT
from dataplane.tsdb.protocols.postgres_types import ARRAYS, NAMES


@dataclass(frozen=True, slots=True)
class Said:
    """What functions say of a connection."""

    user: str
    database: str
    process: int
    settings: Mapping[str, str]


_NOTHING = "CAST(NULL AS VARCHAR)"
_MACROS: dict[str, tuple[str, ...]] = {
    "array_lower": ("(a, d) AS CASE WHEN len(a) > 0 THEN 1 END",),
    "array_upper": ("(a, d) AS CASE WHEN len(a) > 0 THEN len(a) END",),
    "col_description": (f"(o, n) AS {_NOTHING}",),
    "has_any_column_privilege": ("(o, p) AS true", "(u, o, p) AS true"),
    "has_column_privilege": ("(o, c, p) AS true", "(u, o, c, p) AS true"),
    "has_database_privilege": ("(o, p) AS true", "(u, o, p) AS true"),
    "has_schema_privilege": ("(o, p) AS true", "(u, o, p) AS true"),
    "has_table_privilege": ("(o, p) AS true", "(u, o, p) AS true"),
    "json_build_object": (f"({', '.join(f'a{at}' for at in range(14))}) AS {_NOTHING}",),  # of sequences: none
    "obj_description": (f"(o) AS {_NOTHING}", f"(o, c) AS {_NOTHING}"),
    "parse_ident": ("(s) AS str_split(replace(s, '\"', ''), '.')",),
    "pg_database_size": ("(o) AS 0",),
    "pg_encoding_to_char": ("(e) AS 'UTF8'",),
    "pg_function_is_visible": ("(o) AS true",),
    "pg_get_constraintdef": (f"(o) AS {_NOTHING}", f"(o, p) AS {_NOTHING}"),
    "pg_get_expr": (f"(e, o) AS {_NOTHING}", f"(e, o, p) AS {_NOTHING}"),
    "pg_get_function_arguments": (f"(o) AS {_NOTHING}",),
    "pg_get_function_identity_arguments": (f"(o) AS {_NOTHING}",),
    "pg_get_function_result": (f"(o) AS {_NOTHING}",),
    "pg_get_indexdef": (f"(o) AS {_NOTHING}", f"(o, c, p) AS {_NOTHING}"),
    "pg_get_partkeydef": (f"(o) AS {_NOTHING}",),
    "pg_get_ruledef": (f"(o) AS {_NOTHING}", f"(o, p) AS {_NOTHING}"),
    "pg_get_serial_sequence": (f"(t, c) AS {_NOTHING}",),
    "pg_get_statisticsobjdef_columns": (f"(o) AS {_NOTHING}",),
    "pg_get_triggerdef": (f"(o) AS {_NOTHING}", f"(o, p) AS {_NOTHING}"),
    "pg_get_viewdef": (f"(o) AS {_NOTHING}", f"(o, p) AS {_NOTHING}"),
    "pg_is_in_recovery": ("() AS false",),
    "pg_is_other_temp_schema": ("(o) AS false",),
    "pg_my_temp_schema": ("() AS 0",),
    "pg_relation_is_publishable": ("(o) AS false",),
    "pg_relation_size": ("(o) AS 0", "(o, f) AS 0"),
    "pg_size_pretty": ("(n) AS n || ' bytes'",),
    "pg_table_is_visible": ("(o) AS true",),
    "pg_table_size": ("(o) AS 0",),
    "pg_tablespace_location": ("(o) AS ''",),
    "pg_total_relation_size": ("(o) AS 0",),
    "pg_type_is_visible": ("(o) AS true",),
    "quote_ident": (
        "(s) AS CASE WHEN regexp_full_match(s, '[a-z_][a-z0-9_]*') THEN s "
        "ELSE '\"' || replace(s, '\"', '\"\"') || '\"' END",
    ),
    "quote_literal": ("(s) AS '''' || replace(CAST(s AS VARCHAR), '''', '''''') || ''''",),
    "set_config": ("(n, v, l) AS CASE WHEN n = 'jit' THEN v ELSE error('set_config is not there: use SET') END",),
    "shobj_description": (f"(o, c) AS {_NOTHING}",),
    "to_regclass": ("(n) AS (SELECT oid FROM pg_class WHERE relname = parse_ident(n)[-1])",),
    "to_regtype": ("(n) AS (SELECT oid FROM pg_type WHERE typname = parse_ident(n)[-1])",),
    "txid_current": ("() AS 1",),
}
"""Definitions, one for each number of arguments."""
_OF_CONNECTION = ("current_database", "current_schemas", "current_setting", "format_type", "pg_get_userbyid")
_PLAIN = ("current_schema", "pg_backend_pid", "version")
FUNCTIONS = frozenset({*_MACROS, *_OF_CONNECTION, *_PLAIN}) - {"current_database", *_PLAIN}
"""Those that look into the catalog or the settings; the others are answered beside data, too."""


_NEEDS = {"to_regclass": ("parse_ident", "pg_class"), "to_regtype": ("parse_ident", "pg_type")}


def with_needs(names: Collection[str]) -> frozenset[str]:
    """These, and what those of them that are functions need."""
    return frozenset(names).union(*(_NEEDS.get(name, ()) for name in names))


def macros(said: Said, names: Collection[str]) -> str:
    """Statements that define those of them that are named: each takes DuckDB milliseconds."""
    types = {int(oid): name for oid, name in NAMES.items()}
    types |= {oid: f"{NAMES[element]}[]" for oid, element in ARRAYS.items()}
    formats = " ".join(f"WHEN {oid} THEN {quoted_string(name)}" for oid, name in types.items())
    settings = " ".join(
        f"WHEN {quoted_string(name)} THEN {quoted_string(value)}" for name, value in said.settings.items()
    )
    setting = f"CASE lower(n) {settings} ELSE %s END"
    unknown = "error('unrecognized configuration parameter')"
    made: dict[str, tuple[str, ...]] = {
        **_MACROS,
        "current_database": (f"() AS {quoted_string(said.database)}",),
        "current_schema": (f"() AS {quoted_string(SCHEMA)}",),
        "current_schemas": (f"(b) AS CASE WHEN b THEN ['pg_catalog', '{SCHEMA}'] ELSE ['{SCHEMA}'] END",),
        "current_setting": (f"(n) AS {setting % unknown}", f"(n, m) AS {setting % 'NULL'}"),
        "format_type": (
            "(o, m) AS CASE WHEN o = 1114 AND m >= 0 THEN 'timestamp(' || m || ') without time zone' "
            f"ELSE CASE CAST(o AS BIGINT) {formats} ELSE '???' END END",
        ),
        "pg_backend_pid": (f"() AS {said.process}",),
        "pg_get_userbyid": (f"(o) AS {quoted_string(said.user)}",),
        "version": (f"() AS {quoted_string(VERSION_TEXT)}",),
    }
    return "".join(f"CREATE MACRO {name}{', '.join(forms)};" for name, forms in made.items() if name in names)
