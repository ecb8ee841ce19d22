"""The guard: what a client sent is one SELECT, or EXPLAIN [ANALYZE] of one, over this database's tables, or is refused.

DuckDB's own parser says what the text is, so that nothing is read here otherwise than it will be run. What is not known
to be harmless is refused: kinds of nodes and of table references by a list of those allowed, functions by a list of
those that look at, or change, anything beside the query. The session that runs it (`session.py`) has neither files nor
network either way.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from providers.base.errors import Invalid, NotFound

SQL_BYTES_MAX = 1 << 20
SCHEMAS = ("public",)
"""Names under which the tables may be qualified: GreptimeDB's own."""
_SPACE = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_EXPLAIN = re.compile(rf"{_SPACE}explain\b{_SPACE}(analyze\b)?", re.IGNORECASE | re.DOTALL)
_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"}
_REFERENCES = {"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "TABLE_FUNCTION", "EXPRESSION_LIST", "PIVOT", "COLUMN_DATA"}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
_REFUSED = {
    "add_parquet_key",
    "copy_database",
    "current_connection_id",
    "current_query",
    "current_query_id",
    "current_setting",
    "currval",
    "getenv",
    "getvariable",
    "import_database",
    "in_search_path",
    "json_execute_serialized_sql",
    "json_serialize_plan",
    "nextval",
    "parse_duckdb_log_message",
    "pg_conf_load_time",
    "pg_get_viewdef",
    "pg_postmaster_start_time",
    "pg_sleep",
    "query",
    "query_table",
    "setseed",
    "setval",
    "sleep_ms",
    "write_log",
}
"""Functions that look at the engine rather than at rows, change its state, or only wait."""
_READS = re.compile(r"(read|scan|sniff|glob|parquet|pragma|duckdb)_.*|.*_(scan|scan_dumb)", re.IGNORECASE)


class Explain(Enum):
    """What is asked of a SELECT's plan."""

    NO = 0
    PLAN = 1
    ANALYZE = 2


@dataclass(frozen=True, slots=True)
class Statement:
    """A SELECT that may be run. `tables`: by the name in the text, the database's."""

    select: str
    explain: Explain
    tables: Mapping[str, str]
    words: frozenset[str] | None
    """All names and texts in it, in lower case, but for references to columns; None: it makes names that are not in it.
    A column whose name is not among them is called so by nothing else in the query's plan."""


def checked(sql: str, tables: Iterable[str], parse: Callable[[str], str]) -> Statement:
    """What `sql` asks. `parse`: DuckDB's `json_serialize_sql`.

    Raises:
        Invalid: it is not one SELECT, or uses what is not allowed. NotFound: it names a table that is not there.
    """
    if len(sql.encode(errors="replace")) > SQL_BYTES_MAX:
        raise Invalid(f"a query has at most {SQL_BYTES_MAX} bytes")
    select, explain = sql, Explain.NO
    if found := _EXPLAIN.match(sql):
        select = sql[found.end() :]
        explain = Explain.ANALYZE if found.group(1) else Explain.PLAN
    try:
        answer = json.loads(parse(select))
        if answer["error"]:
            raise Invalid(_why(answer), hint="one SELECT, or EXPLAIN of one, is taken here")
        statements = answer["statements"]
        if len(statements) != 1:
            raise Invalid(f"one statement is taken at a time, not {len(statements)}")
        nodes = list(_dicts(statements[0]))
        return Statement(select, explain, _tables(nodes, list(tables)), _words(nodes))
    except RecursionError as error:
        raise Invalid("the query is nested too deep") from error


def _why(answer: Mapping[str, Any]) -> str:
    message = str(answer.get("error_message", "")).strip().splitlines()
    if answer.get("error_type") == "not implemented" or not message:
        return "only SELECT, and EXPLAIN of a SELECT, can be run as a query"
    return f"the query cannot be understood: {message[0][:300]}"


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of the parsed query, in its order."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _dicts(value)


def _words(nodes: list[dict[str, Any]]) -> frozenset[str] | None:
    words: set[str] = set()
    for node in nodes:
        if node.get("class") == "STAR" and (node.get("columns") or node.get("rename_list") or node.get("replace_list")):
            return None
        if node.get("type") == "PIVOT":
            return None
        for key, value in node.items():
            if (node.get("class"), key) != ("COLUMN_REF", "column_names"):
                words.update(text.lower() for text in (key, *_texts(value)))
    return frozenset(words)


def _texts(value: Any) -> list[str]:
    """Those of a value and of the lists in it; objects are looked at by themselves."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _tables(nodes: list[dict[str, Any]], known: list[str]) -> dict[str, str]:
    named = {item["key"] for node in nodes if "cte_map" in node for item in node["cte_map"]["map"]}
    named |= {node["cte_name"] for node in nodes if node.get("type") in ("CTE_NODE", "RECURSIVE_CTE_NODE")}
    defined = {name.lower() for name in named}
    found: dict[str, str] = {}
    for node in nodes:
        kind = node.get("type")
        if not isinstance(kind, str):
            continue
        if "class" in node:
            _check_expression(node)
        elif kind.endswith("_NODE"):
            if kind not in _NODES:
                raise Invalid("a query changes nothing: only SELECT is taken")
        elif "sample" in node and "alias" in node:
            _check_reference(node)
            if kind == "BASE_TABLE" and not (node["table_name"].lower() in defined and not node["schema_name"]):
                name = node["table_name"]
                found[name] = _resolved(name, node["schema_name"], node["catalog_name"], known)
    if len({name.lower() for name in found.values()}) < len(set(found.values())):
        raise Invalid("tables whose names differ only by case cannot be in one query")
    return found


def _check_expression(node: dict[str, Any]) -> None:
    if node["class"] == "PARAMETER":
        raise Invalid("a query with parameters is not taken: put the values into the text")
    if node["class"] in ("FUNCTION", "WINDOW"):
        name = str(node.get("function_name", "")).lower()
        if name in _REFUSED or _READS.fullmatch(name):
            raise Invalid(f"function {name!r} cannot be used in a query: it reads more than this database's tables")


def _check_reference(node: dict[str, Any]) -> None:
    kind = node["type"]
    if kind == "SHOW_REF":
        raise Invalid("DESCRIBE, SHOW and SUMMARIZE cannot be part of a query")
    if kind not in _REFERENCES:
        raise Invalid(f"a {kind.replace('_', ' ').lower()} cannot be part of a query")
    if kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        name = str(function.get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            raise Invalid(
                f"table function {name!r} cannot be used: a query reads this database's tables and nothing else",
                hint=f"allowed are {', '.join(sorted(_TABLE_FUNCTIONS))}",
            )


def _resolved(name: str, schema: str, catalog: str, known: list[str]) -> str:
    """The database's table of that name; case matters only where two differ by nothing else."""
    if catalog or (schema and schema.lower() not in SCHEMAS):
        raise NotFound(
            f"there is no table {'.'.join(part for part in (catalog, schema, name) if part)!r}",
            hint="name tables of this database alone, or as public.<table>",
        )
    if name in known:
        return name
    alike = [table for table in known if table.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    close = difflib.get_close_matches(name.lower(), [table.lower() for table in known], 1)
    meant = [table for table in known if close and table.lower() == close[0]]
    raise NotFound(f"there is no table {name!r}", hint=f"did you mean {meant[0]!r}?" if meant else None)
