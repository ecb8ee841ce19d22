"""From DuckDB's plan of a query to the bounds of each table that it scans.

The optimizer has already carried conditions through views, aliases, joins, CTEs and subqueries down to the scans; what
stands there, in a FILTER right above a scan or in the scan itself, holds for every row that it takes. Scans name
columns `t<table>c<column>`, which no user's name can be mistaken for. Inside casts DuckDB shows the user's name, which
is taken for the table's column only if nothing in the query gives that name to anything. Whatever is unexpected means
no bounds, and nothing is pruned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dataplane.tsdb.query.bounds import Bounds, bounds_of
from dataplane.tsdb.schema.tables import TableSchema

SCAN = "PYTHON_ARROW_SCAN"
_COLUMN = re.compile(r"t(\d+)c(\d+)")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"#\d+")
_CONDITION_BYTES_MAX = 100_000


def column_name(table: int, column: int) -> str:
    """Of a scan's column, by the table's number in the query and the column's in the table."""
    return f"t{table}c{column}"


def table_bounds(
    plan: str, schemas: Sequence[TableSchema], words: Collection[str] | None, parse: Callable[[str], str]
) -> list[Bounds]:
    """Of each table, what all its scans in `plan` (EXPLAIN's JSON) have in common. `words`: `Statement.words`."""
    found: list[Bounds | None] = [None] * len(schemas)
    try:
        for conditions, scan in _scans(json.loads(plan), []):
            numbers = {int(number) for name in _listed(scan, "Projections") for number, _ in _COLUMN.findall(name)}
            if len(numbers) != 1:
                return [Bounds()] * len(schemas)
            [number] = numbers
            schema = schemas[number]
            names = {column_name(number, at): column.name for at, column in enumerate(schema.columns)}
            names |= {name: name for name in _unmistakable(schema, words)}
            bounds = Bounds()
            for condition in [*conditions, *_listed(scan, "Filters")]:
                tree = _parsed(condition, parse)
                if tree is not None:
                    bounds = bounds.both(bounds_of(tree, names, schema))
            known = found[number]
            found[number] = bounds if known is None else known.either(bounds)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return [Bounds()] * len(schemas)
    # A table without a scan is one that the optimizer needs not: or a plan that is not understood.
    return [bounds if bounds is not None else Bounds() for bounds in found]


def _unmistakable(schema: TableSchema, words: Collection[str] | None) -> list[str]:
    names = [column.name for column in schema.columns]
    if words is None or not all(_PLAIN.fullmatch(name.replace(".", "_")) for name in names):
        return []
    return [name for name in names if name.lower() not in words and "." not in name]


def _scans(node: Any, above: list[str]) -> list[tuple[list[str], Any]]:
    """All scans with the conditions right above them."""
    if isinstance(node, list):
        return [found for child in node for found in _scans(child, [])]
    name = node["name"].strip()
    if name == SCAN:
        return [(above, node)]
    passes: list[str] = []
    if name == "FILTER":
        passes = [*above, *_listed(node, "Expression")]
    elif name == "PROJECTION" and all(_REFERENCE.fullmatch(item) for item in _listed(node, "Projections")):
        passes = above  # columns left out; it makes none
    return [found for child in node.get("children", []) for found in _scans(child, passes)]


def _listed(node: Any, what: str) -> list[str]:
    value = node.get("extra_info", {}).get(what, [])
    return [value] if isinstance(value, str) else list(value)


def _parsed(condition: str, parse: Callable[[str], str]) -> Any:
    if len(condition) > _CONDITION_BYTES_MAX:
        return None
    answer = json.loads(parse(f"SELECT 1 WHERE {condition}"))
    if answer["error"] or len(answer["statements"]) != 1:
        return None
    return answer["statements"][0]["node"]["where_clause"]
