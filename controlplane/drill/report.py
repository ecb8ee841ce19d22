"""What a drill found, as the contract of `-o json` and as lines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.drill.verdict import Measured, failures, objectives


@dataclass(slots=True)
class Report:
    """One run. `trouble`: what went wrong besides the objectives, in sentences."""

    drill: str
    cloud: str
    wal_mode: str
    measured: Measured = field(default_factory=Measured)
    acked: int = 0
    seed: int | None = None
    side: str | None = None
    """Of the WAL: the one that was away; None where the drill takes none."""
    trouble: list[str] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """(Milliseconds since the run began, what happened then)."""

    @property
    def failures(self) -> list[str]:
        return [*self.trouble, *failures(objectives(self.drill, self.wal_mode), self.measured)]

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_plain(self) -> dict[str, Any]:
        """The contract. Counts are null where nothing could be read back: unknown is not zero."""
        measured, judged = self.measured, self.measured.judgement
        return {
            "drill": self.drill,
            "cloud": self.cloud,
            "walMode": self.wal_mode,
            "side": self.side,
            "seed": self.seed,
            "verdict": "PASS" if self.passed else "FAIL",
            "rto_ms": _rounded(measured.rto_ms),
            "pause_ms": _rounded(measured.pause_ms),
            "acked": self.acked,
            "acked_lost": None if judged is None else judged.acked_lost,
            "duplicated": None if judged is None else judged.duplicated,
            "reordered": None if judged is None else judged.reordered,
            "corrupt": None if judged is None else judged.corrupt,
            "unacked_present": None if judged is None else judged.unacked_present,
            "failed_produces": measured.failed_produces,
            "failures": self.failures,
            "timeline": [{"t_ms": round(at, 1), "event": event} for at, event in sorted(self.timeline)],
        }

    def text(self) -> str:
        """What is wrong, if anything, and the verdict in one line."""
        plain = self.to_plain()
        rto = "-" if plain["rto_ms"] is None else f"{plain['rto_ms'] / 1000:.1f} s"
        verdict = [f"drill {self.drill}", plain["verdict"], self.cloud, self.wal_mode]
        verdict += [f"side {self.side}"] if self.side is not None else []
        verdict += [f"rto {rto}", _counts(plain)]
        verdict += [f"seed {self.seed}"] if self.seed is not None else []
        return "\n".join([*(f"  {failure}" for failure in self.failures), "  ".join(verdict)])


def summary(reports: Sequence[Report]) -> dict[str, Any]:
    """Several runs of one drill: the contract's fields over all of them, and each run's own report."""
    plain = [r.to_plain() for r in reports]
    rtos = [p["rto_ms"] for p in plain if p["rto_ms"] is not None]
    counts = ("acked", "acked_lost", "duplicated", "reordered", "corrupt", "failed_produces")
    return {
        "drill": reports[0].drill,
        "cloud": reports[0].cloud,
        "walMode": reports[0].wal_mode,
        "side": reports[0].side,
        "verdict": "PASS" if all(r.passed for r in reports) else "FAIL",
        "runs": len(reports),
        "passed": sum(r.passed for r in reports),
        "rto_ms": statistics.median(rtos) if rtos else None,
        "rto_ms_max": max(rtos, default=None),
        **{key: _sum([p[key] for p in plain]) for key in counts},
        "reports": plain,
    }


def summary_text(reports: Sequence[Report]) -> str:
    """Every run's lines, and one for all of them."""
    plain = summary(reports)
    worst = "-" if plain["rto_ms_max"] is None else f"{plain['rto_ms_max'] / 1000:.1f} s"
    median = "-" if plain["rto_ms"] is None else f"{plain['rto_ms'] / 1000:.1f} s"
    last = [f"{plain['runs']} runs", plain["verdict"], f"passed {plain['passed']}", f"rto {median}, worst {worst}"]
    return "\n".join([*(r.text() for r in reports), "  ".join([*last, _counts(plain)])])


def _counts(plain: dict[str, Any]) -> str:
    names = {"acked": "acked", "acked lost": "acked_lost", "duplicated": "duplicated", "reordered": "reordered"}
    return "  ".join(f"{name} {'unknown' if plain[key] is None else plain[key]}" for name, key in names.items())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _sum(values: Sequence[int | None]) -> int | None:
    """None as soon as one is unknown."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None
