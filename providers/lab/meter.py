"""What is used of an emulated cloud, counted as the clouds bill it: requests and bytes by service, verb and zone, and
what stands around (GiB-hours). Counting costs a dictionary look-up and a few additions.

Totals only grow; "since the reset" is a difference. Prices are `bill.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.base.errors import Invalid
from providers.lab.calls import Call

ROWS_MAX = 4_096
"""Distinct combinations that are counted apart; what comes after is counted under no zone."""
GIB = 1 << 30
HOUR_MS = 3_600_000.0

Key = tuple[str, str, str, str]
"""service, zone, verb, zone of the caller."""


class Meter:
    """The counters of one process. `now_ms`: of the wall clock, since the counters outlive a restart."""

    def __init__(self, now_ms: float) -> None:
        self.began_ms = now_ms
        self._rows: dict[Key, list[int]] = {}
        self._byte_ms: dict[str, float] = {}
        self._standing: dict[str, int] = {}
        self._observed_ms = now_ms
        self._reset: dict[str, Any] = {}

    def count(self, call: Call, *, bytes_in: int = 0, bytes_out: int = 0, failed: bool = False) -> None:
        """One request. `failed`: the cloud answered that it could not (5xx, throttled), and so does not bill it."""
        key = (call.service, call.zone, call.verb if call.billed else "free", call.caller_zone)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_MAX:
                key = (call.service, "", call.verb, "")
            row = self._rows.setdefault(key, [0, 0, 0, 0])
        if failed:
            row[1] += 1
        else:
            row[0] += 1
        row[2] += bytes_in
        row[3] += bytes_out

    def observe(self, standing: Mapping[str, int], now_ms: float) -> None:
        """What stands from now on: bytes by what they are (`objects`, `express`, `volume:zonal`, `volume:regional`).
        The time since the last look counts for what stood then."""
        passed_ms = max(0.0, now_ms - self._observed_ms)
        for what, size in self._standing.items():
            self._byte_ms[what] = self._byte_ms.get(what, 0.0) + size * passed_ms
        self._standing = dict(standing)
        self._observed_ms = now_ms

    def reset(self, now_ms: float) -> None:
        """Begin a new run."""
        self._reset = {
            "at_ms": now_ms,
            "rows": {key: tuple(row) for key, row in self._rows.items()},
            "byte_ms": dict(self._byte_ms),
        }

    def snapshot(self, now_ms: float, *, since_reset: bool = False) -> dict[str, Any]:
        """The counters as data, of all time or since the last reset."""
        base = self._reset if since_reset else {}
        began_ms = float(base.get("at_ms", self.began_ms))
        rows = []
        for key, row in sorted(self._rows.items()):
            before = base.get("rows", {}).get(key, (0, 0, 0, 0))
            requests, failed, bytes_in, bytes_out = (now - then for now, then in zip(row, before, strict=True))
            if requests or failed:
                service, zone, verb, caller_zone = key
                rows.append(
                    {
                        "service": service,
                        "zone": zone,
                        "verb": verb,
                        "caller_zone": caller_zone,
                        "requests": requests,
                        "failed": failed,
                        "bytes_in": bytes_in,
                        "bytes_out": bytes_out,
                    }
                )
        standing = [
            {
                "what": what,
                "bytes": self._standing.get(what, 0),
                "gib_hours": (self._byte_ms.get(what, 0.0) - base.get("byte_ms", {}).get(what, 0.0)) / GIB / HOUR_MS,
            }
            for what in sorted({*self._byte_ms, *self._standing})
        ]
        return {
            "since_ms": began_ms,
            "elapsed_s": max(0.0, now_ms - began_ms) / 1000,
            "rows": rows,
            "standing": standing,
        }

    # ---- over a restart

    def plain(self) -> dict[str, Any]:
        """All of it."""
        return {
            "began_ms": self.began_ms,
            "rows": [[*key, *row] for key, row in self._rows.items()],
            "byte_ms": self._byte_ms,
            "reset": {
                **self._reset,
                "rows": [[*key, *row] for key, row in self._reset.get("rows", {}).items()],
            },
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Take up what `plain` gave.

        Raises:
            Invalid: it cannot be read; nothing was changed.
        """
        try:
            rows = {_key(row): [int(n) for n in row[4:8]] for row in plain["rows"]}
            byte_ms = {str(what): float(amount) for what, amount in plain["byte_ms"].items()}
            reset = dict(plain["reset"])
            reset["rows"] = {_key(row): tuple(int(n) for n in row[4:8]) for row in reset.get("rows", [])}
            began_ms = float(plain["began_ms"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Invalid(f"the meter's file cannot be read: {error!r}") from error
        self._rows, self._byte_ms, self._reset, self.began_ms = rows, byte_ms, reset, began_ms


def _key(row: list[Any]) -> Key:
    return str(row[0]), str(row[1]), str(row[2]), str(row[3])


def merged(snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """One cloud's snapshots, of several processes, as one: services are apart, so rows are joined."""
    return {
        "since_ms": min((s["since_ms"] for s in snapshots), default=0.0),
        "elapsed_s": max((s["elapsed_s"] for s in snapshots), default=0.0),
        "rows": [row for s in snapshots for row in s["rows"]],
        "standing": [row for s in snapshots for row in s["standing"]],
    }
