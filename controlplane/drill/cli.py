"""`yunhe drill run NAME` and `yunhe drill list`."""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.main import DEFAULT_STATE_DIR, FormatOption, StateDirOption
from controlplane.cli.output import Format
from controlplane.drill.runner import DRILLS, Report, Runner
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, SystemRng

RUNS_MAX = 1_000

app = typer.Typer(help="Break something, on purpose, and see what holds.", rich_markup_mode=None)


@app.command("list")
def list_drills(form: FormatOption = Format.TEXT) -> None:
    """Which drills there are."""
    plain = [{"name": d.name, "what": d.what, "rto_ms_max": d.rto_ms_max} for d in DRILLS.values()]
    output.data(plain, form, output.table(("DRILL", "WHAT"), [(d.name, d.what) for d in DRILLS.values()]))


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="One of `yunhe drill list`.")],
    cloud: Annotated[str | None, typer.Option("--cloud", help="Where; the first cloud if not given.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=RUNS_MAX, help="How many in a row.")] = 1,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run a drill; exit code 0 only when the verdict is PASS."""
    runner = Runner(
        StateDir(state_dir.expanduser().absolute()), clock=SystemClock(), rng=SystemRng(), say=output.progress
    )
    reports: list[Report] = []
    for i in range(runs):
        if runs > 1:
            output.progress(f"run {i + 1} of {runs}")
        reports.append(runner.run(name, cloud))
    plain: Any = reports[0].to_plain() if runs == 1 else _summary(reports)
    output.data(plain, form, "\n".join(line(r) for r in reports))
    if not all(r.passed for r in reports):
        raise typer.Exit(1)


def line(report: Report) -> str:
    """The verdict in one line, and what is wrong, if anything."""
    plain = report.to_plain()
    rto = "-" if plain["rto_ms"] is None else f"{plain['rto_ms'] / 1000:.1f} s"
    shown = (
        f"drill {report.drill}  {plain['verdict']}  {report.cloud}  {report.wal_mode}  rto {rto}  "
        f"acked {plain['acked']}  lost {plain['acked_lost']}  duplicated {plain['duplicated']}  "
        f"reordered {plain['reordered']}"
    )
    return "\n".join([shown, *(f"  {failure}" for failure in plain["failures"])])


def _summary(reports: list[Report]) -> dict[str, Any]:
    plain = [r.to_plain() for r in reports]
    rtos = [p["rto_ms"] for p in plain if p["rto_ms"] is not None]
    return {
        "drill": reports[0].drill,
        "cloud": reports[0].cloud,
        "walMode": reports[0].wal_mode,
        "verdict": "PASS" if all(r.passed for r in reports) else "FAIL",
        "runs": len(reports),
        "rto_ms": statistics.median(rtos) if rtos else None,
        "rto_ms_max": max(rtos, default=None),
        **{key: sum(p[key] for p in plain) for key in ("acked", "acked_lost", "duplicated", "reordered")},
        "reports": plain,
    }
