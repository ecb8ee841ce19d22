"""Every drill in every WAL mode, and of databases, with many seeds: what is to run, the file that remembers what has
run, the totals.

A line of the file is one run's report. A campaign that is resumed runs what the file has no line of; so one may be
interrupted at any time, and may be spread over several machines by their seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.drill.database_runner import DATABASE_MODE, ready_database
from controlplane.drill.report import Report
from controlplane.drill.runner import Runner, ready_cloud
from controlplane.drill.verdict import DATABASE_DRILLS, DRILLS
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Invalid, Unavailable, YunheError

CAMPAIGN = tuple(name for name in DRILLS if name != "control-plane-loss")
"""Drills of a campaign unless others are named, of brokers: the control plane has no WAL mode."""
READY_TIMEOUT_MS = 120_000
"""How long a cloud may take to be Ready for its next run."""
UNFIT_MAX = 3
"""Runs in a row that could not begin, after which a cloud is left alone."""
POLL_MS = 500
COUNTS = ("acked", "acked_lost", "duplicated", "reordered", "corrupt", "failed_produces")

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a campaign."""

    drill: str
    cloud: str
    mode: str
    side: str | None
    seed: int

    @property
    def key(self) -> tuple[str, str, str | None, int]:
        """What it shows; the cloud that it was shown on is no part of it."""
        return self.drill, self.mode, self.side, self.seed

    @property
    def home(self) -> tuple[str, bool]:
        """What has to be Ready for it: the cloud's brokers, or its databases."""
        return self.cloud, self.drill in DATABASE_DRILLS


def planned(
    clouds: Sequence[Mapping[str, Any]],
    drills: Sequence[str],
    runs: int,
    seed: int,
    databases: Sequence[Mapping[str, Any]] = (),
) -> list[Planned]:
    """All runs, seed by seed, so that whatever part of them has run is spread over drills and modes. Of several clouds
    with one WAL mode, the first one; of several with a database, the first one. A drill of brokers is not planned where
    there are none, nor one of databases where there is none.

    Raises:
        Invalid: no such drill.
    """
    for name in drills:
        if name not in DRILLS and name not in DATABASE_DRILLS:
            raise Invalid(f"no drill is named {name}", hint=f"one of: {', '.join([*DRILLS, *DATABASE_DRILLS])}")
    by_mode: dict[str, str] = {}
    for cloud in clouds:
        if cloud["wal"] is not None:
            by_mode.setdefault(str(cloud["wal"]["mode"]), str(cloud["name"]))
    homes = [str(one["cloud"]) for one in databases if one["role"] == "cloud"]
    found = []
    for at in range(seed, seed + runs):
        found += [
            Planned(name, cloud, mode, side, at)
            for mode, cloud in by_mode.items()
            for name in drills
            if name in DRILLS
            for side in DRILLS[name].sides.get(mode, (None,))
        ]
        found += [
            Planned(name, home, DATABASE_MODE, None, at)
            for home in homes[:1]
            for name in drills
            if name in DATABASE_DRILLS
        ]
    return found


class Journal:
    """The file of lines. One that ends in the middle of a line was written by a process that was killed then."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Line]:
        """The lines that are whole.

        Raises:
            Invalid: it is no such file.
        """
        if not self._path.exists():
            return []
        *whole, _ = self._path.read_bytes().split(b"\n")
        try:
            lines = [json.loads(line) for line in whole]
            for line in lines:
                _ = line["drill"], line["walMode"], line["side"], line["seed"], line["verdict"]
        except (ValueError, KeyError, TypeError) as error:
            raise Invalid(f"{self._path} does not hold drills' reports", hint="name another file") from error
        return lines

    def begin(self, *, resume: bool) -> list[Line]:
        """What it holds already.

        Raises:
            Invalid: it is no such file, or it holds reports and is not to be gone on with.
        """
        lines = self.read()
        if lines and not resume:
            raise Invalid(f"{self._path} has {len(lines)} reports", hint="--resume goes on; or name another file")
        if self._path.exists():
            # Cut what is not whole: the next line begins after it.
            self._path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        return lines

    def add(self, line: Line) -> None:
        """Append one."""
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")


class Campaign:
    """See the module."""

    def __init__(
        self,
        runner: Runner,
        journal: Journal,
        *,
        status: Callable[[], dict[str, Any]],
        clock: Clock,
        say: Callable[[str], None],
        databases: Runner | None = None,
    ) -> None:
        """`databases` runs the drills of databases; left out, `runner` does."""
        self._runner = runner
        self._databases = databases or runner
        self._journal = journal
        self._status = status
        self._clock = clock
        self._say = say

    def run(self, plan: Sequence[Planned], lines: Sequence[Line]) -> list[Line]:
        """Run what `lines` lack; returns them with what has been added."""
        done = {key_of(line) for line in lines}
        found, unfit = list(lines), dict.fromkeys((one.home for one in plan), 0)
        left = [one for one in plan if one.key not in done]
        for number, one in enumerate(left, 1):
            if unfit[one.home] >= UNFIT_MAX:
                continue
            side = f" side {one.side}" if one.side else ""
            self._say(f"{number} of {len(left)}: {one.drill}{side} in {one.cloud}, {one.mode}, seed {one.seed}")
            try:
                self._await_ready(one)
                runner = self._databases if one.drill in DATABASE_DRILLS else self._runner
                report = runner.run(one.drill, one.cloud, seed=one.seed, side=one.side)
                unfit[one.home] = 0
            except YunheError as error:
                # A lab that is not fit for the next run is a finding about the runs before it.
                unfit[one.home] += 1
                report = Report(
                    one.drill, one.cloud, one.mode, seed=one.seed, side=one.side, trouble=[f"it did not begin: {error}"]
                )
            line = report.to_plain()
            if report.passed:
                del line["timeline"]
            self._journal.add(line)
            found.append(line)
            self._say(report.text())
        return found

    def _await_ready(self, one: Planned) -> None:
        ready = ready_database if one.drill in DATABASE_DRILLS else ready_cloud
        deadline = self._clock.monotonic_ms() + READY_TIMEOUT_MS
        while True:
            try:
                ready(self._status(), one.cloud)
                return
            except Unavailable:
                if self._clock.monotonic_ms() > deadline:
                    raise
            sleep_blocking_ms(POLL_MS)


def key_of(line: Line) -> tuple[str, str, str | None, int]:
    """As `Planned.key`."""
    return line["drill"], line["walMode"], line["side"], line["seed"]


def totals(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The lines by WAL mode, drill and side. A count is null where it is unknown of one run."""
    groups: dict[tuple[str, str, str | None], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["walMode"], line["drill"], line["side"]), []).append(line)
    return [_total(*key, group) for key, group in sorted(groups.items(), key=lambda item: str(item[0]))]


def _total(mode: str, drill: str, side: str | None, lines: Sequence[Line]) -> dict[str, Any]:
    rtos = [line["rto_ms"] for line in lines if line["rto_ms"] is not None]
    counts = {name: [line[name] for line in lines] for name in COUNTS}
    return {
        "walMode": mode,
        "drill": drill,
        "side": side,
        "runs": len(lines),
        "passed": sum(line["verdict"] == "PASS" for line in lines),
        "rto_ms": statistics.median(rtos) if rtos else None,
        "rto_ms_max": max(rtos, default=None),
        **{name: None if None in values else sum(values) for name, values in counts.items()},
        "failed_seeds": [line["seed"] for line in lines if line["verdict"] != "PASS"],
    }


def totals_rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows under TOTALS_HEADINGS."""
    return [
        (
            one["walMode"],
            one["drill"] + (f" ({one['side']})" if one["side"] else ""),
            f"{one['passed']}/{one['runs']}",
            *(_shown(one[name]) for name in ("acked", "acked_lost", "duplicated", "reordered", "corrupt")),
            _seconds(one["rto_ms"]),
            _seconds(one["rto_ms_max"]),
        )
        for one in found
    ]


TOTALS_HEADINGS = ("WAL", "DRILL", "PASS", "ACKED", "LOST", "TWICE", "REORDERED", "CORRUPT", "RTO", "WORST")


def _shown(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value / 1000:.1f} s"
