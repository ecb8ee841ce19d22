"""OpenTSDB's put: data points as JSON, each metric a table of `greptime_timestamp` (milliseconds), `greptime_value` and
its tags, as GreptimeDB makes it.

A time of fewer than 13 digits is in seconds. A point that is wrong is refused alone, and all others stored, as OpenTSDB
does: the answer says how many with `?summary`, and which and why with `?details`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataplane.tsdb.engine import Database
from dataplane.tsdb.protocols.growing_tables import Refused, TableWriter
from dataplane.tsdb.protocols.line_batches import Refusals
from dataplane.tsdb.protocols.line_columns import Group
from dataplane.tsdb.schema.tables import ColumnType
from providers.base.errors import Invalid

VALUE = "greptime_value"
_SECONDS_BELOW = 10**12
_MS_MAX = 2**63 // 1_000_000 - 1
Tags = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a body: points stored, and the refused ones, of which the first are told: where, and why."""

    success: int
    failed: int
    errors: tuple[tuple[Any, str], ...]


class OpenTsdbWriter:
    """See the module."""

    def __init__(self, database: Database) -> None:
        self._tables = TableWriter(database, ColumnType.TIMESTAMP_MS)

    async def put(self, body: bytes) -> Put:
        """One data point, or a list of them.

        Raises:
            Invalid: it is no JSON of that form. Full, Unavailable, Fenced: as the database's `write`.
        """
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Invalid(f"the body is no JSON: {error}") from error
        if not isinstance(found, list | dict):
            raise Invalid("the body is neither a data point nor a list of them")
        points = found if isinstance(found, list) else [found]
        refusals = Refusals()
        groups = _groups(points, refusals)
        refused = Refused(refusals, lambda at, _: at)
        stored = await self._tables.store(groups, refused)
        errors = tuple((points[at], reason) for at, _, reason in sorted(refused.refusals.kept))
        return Put(stored, refused.count, errors)


def _groups(points: list[Any], refusals: Refusals) -> list[Group]:
    by: dict[tuple[str, tuple[str, ...]], list[tuple[int, int, float, Tags]]] = {}
    for at, point in enumerate(points):
        try:
            metric, time_ms, value, tags = _point(point)
        except Invalid as error:
            refusals.add(at, at, error.message)
            continue
        by.setdefault((metric, tuple(name for name, _ in tags)), []).append((at, time_ms, value, tags))
    groups = []
    for (metric, names), rows in by.items():
        columns = {name: pa.array([row[3][n][1] for row in rows], pa.string()) for n, name in enumerate(names)}
        times = pa.array(np.array([row[1] for row in rows], dtype=np.int64) * 1_000_000)
        values = pa.array([row[2] for row in rows], pa.float64())
        groups.append(
            Group(metric, columns, {VALUE: values}, times, np.array([row[0] for row in rows], dtype=np.int64))
        )
    return groups


def _point(point: Any) -> tuple[str, int, float, Tags]:
    """Metric, milliseconds, value, tags by name. Raises Invalid."""
    if not isinstance(point, Mapping):
        raise Invalid("a data point is an object of metric, timestamp, value and tags")
    metric, time, tags = point.get("metric"), point.get("timestamp"), point.get("tags", {})
    if not isinstance(metric, str) or not metric:
        raise Invalid("metric is missing, or no text")
    if isinstance(time, bool) or not isinstance(time, int):
        raise Invalid("timestamp is missing, or no whole number of seconds or milliseconds")
    time_ms = time * 1_000 if abs(time) < _SECONDS_BELOW else time
    if abs(time_ms) > _MS_MAX:
        raise Invalid("timestamp is out of range")
    if not isinstance(tags, Mapping) or not all(isinstance(v, str) and k and v for k, v in tags.items()):
        raise Invalid("tags are an object of texts that are not empty")
    return metric, time_ms, _number(point.get("value")), tuple(sorted(tags.items()))


def _number(value: Any) -> float:
    """OpenTSDB takes numbers as texts too. Raises Invalid."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Invalid("value is missing, or no number")
    return number
