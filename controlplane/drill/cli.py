"""`yunhe drill run NAME`, `yunhe drill all`, `yunhe drill report` and `yunhe drill list`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.kafka_login import LoginOption, read_login
from controlplane.cli.main import DEFAULT_STATE_DIR, FormatOption, StateDirOption
from controlplane.cli.output import Format
from controlplane.cli.status import read_status
from controlplane.drill.campaign import (
    CAMPAIGN,
    TOTALS_HEADINGS,
    Campaign,
    Journal,
    key_of,
    planned,
    totals,
    totals_rows,
)
from controlplane.drill.database_runner import DatabaseRunner
from controlplane.drill.report import Report, summary, summary_text
from controlplane.drill.runner import Runner
from controlplane.drill.seeds import SEED_MAX
from controlplane.drill.verdict import DATABASE_DRILLS, DRILLS
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import NotFound, Unavailable, YunheError

RUNS_MAX = 1_000
SEED_HELP = "Repeats a run's choices; of several runs, the first one's, and each next one has the next."
EXIT_INTERRUPTED = 130

app = typer.Typer(help="Break something, on purpose, and see what holds.", rich_markup_mode=None)


@app.command("list")
def list_drills(form: FormatOption = Format.TEXT) -> None:
    """Which drills there are."""
    plain = [
        {
            "name": d.name,
            "what": d.what,
            "rto_ms_max": d.rto_ms_max,
            "pause_ms_max": d.pause_ms_max,
            "sides": {mode: list(sides) for mode, sides in d.sides.items()},
        }
        for d in (*DRILLS.values(), *DATABASE_DRILLS.values())
    ]
    rows = [(d.name, d.what) for d in (*DRILLS.values(), *DATABASE_DRILLS.values())]
    output.data(plain, form, output.table(("DRILL", "WHAT"), rows))


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="One of `yunhe drill list`.")],
    cloud: Annotated[str | None, typer.Option("--cloud", help="Where; the first cloud if not given.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=RUNS_MAX, help="How many in a row.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=SEED_MAX, help=SEED_HELP)] = None,
    side: Annotated[
        str | None, typer.Option("--side", help="Of wal-loss: volume, express or object; the WAL's first if not given.")
    ] = None,
    command_config: LoginOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run a drill; exit code 0 only when the verdict is PASS. Interrupted, it undoes what it broke.

    A seed chooses the victim, the moment, the rate of records and what of the fault is left open; it is in the report.
    """
    kind = DatabaseRunner if name in DATABASE_DRILLS else Runner
    runner = kind(
        StateDir(state_dir.expanduser().absolute()),
        clock=SystemClock(),
        rng=SystemRng(),
        say=output.progress,
        login=read_login(command_config),
    )
    reports: list[Report] = []
    try:
        with interrupted_by_sigterm():
            for i in range(runs):
                if runs > 1:
                    output.progress(f"run {i + 1} of {runs}")
                reports.append(_one(runner, name, cloud, None if seed is None else seed + i, side, reports))
    except KeyboardInterrupt:
        output.error("interrupted", "what the drill had broken was undone; see yunhe status")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if runs == 1:
        output.data(reports[0].to_plain(), form, reports[0].text())
    else:
        output.data(summary(reports), form, summary_text(reports))
    if not all(r.passed for r in reports):
        raise typer.Exit(1)


@app.command("all")
def run_all(
    journal: Annotated[Path, typer.Option("--log", help="Where each run's report goes, one JSON line a run.")],
    drills: Annotated[
        list[str] | None, typer.Option("--drill", help="Only this one; may be given again. All but control-plane-loss.")
    ] = None,
    clouds: Annotated[
        list[str] | None, typer.Option("--cloud", help="Only here; may be given again. One cloud of each WAL mode.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=RUNS_MAX, help="Seeds.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, max=SEED_MAX, help="The first one.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Run only what the log lacks.")] = False,
    command_config: LoginOption = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run every drill in every WAL mode of the lab, and those of its databases, with many seeds; exit code 0 only when
    all passed."""
    where = StateDir(state_dir.expanduser().absolute())
    clock = SystemClock()
    status = read_status(where)
    known, databases = status["clouds"], status.get("databases", [])
    for name in set(clouds or ()) - {c["name"] for c in known}:
        raise NotFound(f"no Cloud is named {name}", hint=f"known: {', '.join(c['name'] for c in known) or 'none'}")
    plan = planned(
        [c for c in known if not clouds or c["name"] in clouds],
        drills or (*CAMPAIGN, *DATABASE_DRILLS),
        runs,
        seed,
        [d for d in databases if not clouds or d["cloud"] in clouds],
    )
    if not plan:
        raise Unavailable("no lab runs here", hint="start one with `yunhe up examples/wal-modes.yaml`")
    file = Journal(journal)
    lines = file.begin(resume=resume)
    login = read_login(command_config)
    runner, of_databases = (
        kind(where, clock=clock, rng=SystemRng(), say=lambda line: None, login=login)
        for kind in (Runner, DatabaseRunner)
    )
    campaign = Campaign(
        runner, file, status=lambda: read_status(where), clock=clock, say=output.progress, databases=of_databases
    )
    interrupted = False
    try:
        with interrupted_by_sigterm():
            lines = campaign.run(plan, lines)
    except KeyboardInterrupt:
        interrupted, lines = True, file.read()
        output.error("interrupted", "what the drill had broken was undone; --resume goes on")
    wanted = {one.key for one in plan}
    mine = [line for line in lines if key_of(line) in wanted]
    found = totals(mine)
    passed = len(mine) == len(plan) and all(line["verdict"] == "PASS" for line in mine)
    plain = {"verdict": "PASS" if passed else "FAIL", "planned": len(plan), "runs": len(mine), "totals": found}
    last = f"{plain['verdict']}  {len(mine)} of {len(plan)} runs"
    output.data(plain, form, f"{output.table(TOTALS_HEADINGS, totals_rows(found))}\n\n{last}")
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not passed:
        raise typer.Exit(1)


@app.command("report")
def report(
    journals: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Files of `yunhe drill all --log`.")],
    form: FormatOption = Format.TEXT,
) -> None:
    """What the runs of one or several logs showed, by WAL mode and drill; exit code 0 only when all passed."""
    for path in journals:
        if not path.exists():
            raise NotFound(f"{path} is not there", hint="`yunhe drill all --log` writes one")
    lines = [line for path in journals for line in Journal(path).read()]
    found = totals(lines)
    passed = bool(lines) and all(line["verdict"] == "PASS" for line in lines)
    plain = {"verdict": "PASS" if passed else "FAIL", "runs": len(lines), "totals": found}
    last = f"{plain['verdict']}  {sum(one['passed'] for one in found)} of {len(lines)} runs passed"
    output.data(plain, form, f"{output.table(TOTALS_HEADINGS, totals_rows(found))}\n\n{last}")
    if not passed:
        raise typer.Exit(1)


def _one(
    runner: Runner | DatabaseRunner,
    name: str,
    cloud: str | None,
    seed: int | None,
    side: str | None,
    before: list[Report],
) -> Report:
    """One run. A lab that is no longer fit for the next run is a finding about the runs before it."""
    try:
        return runner.run(name, before[0].cloud if before else cloud, seed=seed, side=side)
    except YunheError as error:
        if not before:
            raise
        first = before[0]
        return Report(name, first.cloud, first.wal_mode, seed=seed, side=first.side, trouble=[str(error)])


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is as Ctrl-C meanwhile: what was broken or started is put right on the way out."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
