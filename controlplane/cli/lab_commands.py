"""`yunhe lab …`: commands and their options. What they do is in `lab_tool.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import lab_tool
from controlplane.cli.lab_tool import FaultOptions
from controlplane.cli.main import DEFAULT_STATE_DIR, FormatOption, StateDirOption
from controlplane.cli.output import Format
from controlplane.server.files import StateDir
from providers.lab.fault import Kind
from providers.lab.outages import OUTAGES, Outage

app = typer.Typer(
    help="Emulated clouds on this machine, for any SDK: no brokers, no agents, no account.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fault_app = typer.Typer(
    help="Make emulated clouds fail, for a time. An outage that happened is set by its name, anything else by add.",
    rich_markup_mode=None,
)
app.add_typer(fault_app, name="fault")

CloudOption = Annotated[str | None, typer.Option("--cloud", help="Which cloud; needed where more than one is up.")]
ForOption = Annotated[str, typer.Option("--for", help="How long, at most a day: 101s, 10m. It ends by itself.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed and requests give the same faults.")]


def _state_dir(path: Path) -> StateDir:
    return StateDir(path.expanduser().absolute())


@app.command()
def up(
    spec: Annotated[list[Path] | None, typer.Argument(metavar="SPEC", help="YAML files: their Clouds.")] = None,
    cloud: Annotated[
        list[str] | None, typer.Option("--cloud", help="NAME=provider:region:zone,zone; as often as wanted.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", help="real: wait as the real services do; off. As it was, if not given.")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also the control APIs: compute, disks, DNS.")
    ] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait until all answer.")] = 60.0,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Start emulated clouds, and say how to reach them. Without SPEC or --cloud: those started here before, or else one
    of each provider."""
    lab_tool.up(
        _state_dir(state_dir), spec or [], cloud or [], latency=latency, control=control, timeout_s=timeout, form=form
    )


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove their data as well.")] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
) -> None:
    """Stop the emulated clouds. Data stay, unless --purge."""
    lab_tool.down(_state_dir(state_dir), purge=purge)


@app.command()
def status(state_dir: StateDirOption = DEFAULT_STATE_DIR, form: FormatOption = Format.TEXT) -> None:
    """Processes, memory, addresses; faults with the time they have left; what was used."""
    lab_tool.status(_state_dir(state_dir), form=form)


@app.command()
def env(
    cloud: Annotated[str | None, typer.Argument(help="Which cloud; needed where more than one is up.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Environment variables for the cloud's own SDK: eval "$(yunhe lab env CLOUD)"."""
    lab_tool.env(_state_dir(state_dir), cloud, form=form)


@app.command()
def meter(
    cloud: Annotated[str | None, typer.Argument(help="Only this cloud.")] = None,
    since_reset: Annotated[bool, typer.Option("--since-reset", help="Only what came after the last reset.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Begin a new run; shows what the last one used.")] = False,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Requests, bytes and space used, priced by the catalogue: the bill of a run."""
    lab_tool.meter(_state_dir(state_dir), cloud, since_reset=since_reset, reset=reset, form=form)


# ---- faults


@fault_app.command("add")
def fault_add(
    kind: Annotated[Kind, typer.Argument(help="What happens to the requests.")],
    for_: ForOption,
    cloud: CloudOption = None,
    service: Annotated[
        str,
        typer.Option("--service", help="objects, express, sessions, volumes, compute, dns, identity; control, data."),
    ] = "",
    verb: Annotated[str, typer.Option("--verb", help="put, get, list, append, attach …; reads, writes.")] = "",
    zone: Annotated[str, typer.Option("--zone", help="Only what this zone holds.")] = "",
    rate: Annotated[float, typer.Option("--rate", help="Share of the requests, 0 to 1.")] = 1.0,
    seed: SeedOption = 0,
    latency: Annotated[
        str, typer.Option("--latency", help="50ms, 20ms..80ms or p50=20ms,p99=150ms; then ,ramp=50x/10m.")
    ] = "",
    error_status: Annotated[int, typer.Option("--status", help="HTTP status of an error: 403, 429, 500, 503.")] = 0,
    code: Annotated[str, typer.Option("--code", help="Its code, where the cloud's usual one is not meant.")] = "",
    requests: Annotated[float, typer.Option("--requests-per-s", help="Where a throttle sets in.")] = 0.0,
    volume: Annotated[
        str, typer.Option("--bytes-per-s", help="The same in bytes, or a slow disk's speed: 10MiB.")
    ] = "",
    skew: Annotated[str, typer.Option("--skew", help="How far the cloud's clock is ahead: 20m, or -20m.")] = "",
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Set one fault. Examples:

    yunhe lab fault add error --status 503 --rate 0.2 --service objects --verb put --for 60s

    yunhe lab fault add latency --latency p50=20ms,p99=150ms --zone use1-az4 --for 10m

    yunhe lab fault add zone-loss --zone use1-az4 --for 2m
    """
    options = FaultOptions(
        service=service,
        verb=verb,
        zone=zone,
        rate=rate,
        seed=seed,
        latency=latency,
        status=error_status,
        code=code,
        requests_s=requests,
        bytes_s=volume,
        skew=skew,
    )
    lab_tool.fault_add(_state_dir(state_dir), kind, cloud, for_, options, form=form)


@fault_app.command("list")
def fault_list(
    cloud: Annotated[str | None, typer.Option("--cloud", help="Only this cloud.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """Faults in force and to come, with the time they have left."""
    lab_tool.fault_list(_state_dir(state_dir), cloud, form=form)


@fault_app.command("clear")
def fault_clear(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of `fault list`; all when left out.")] = None,
    cloud: Annotated[str | None, typer.Option("--cloud", help="Only this cloud.")] = None,
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    form: FormatOption = Format.TEXT,
) -> None:
    """End faults now."""
    lab_tool.fault_clear(_state_dir(state_dir), cloud, ids, form=form)


def _outage_command(outage: Outage) -> Callable[..., None]:
    def run(
        for_: ForOption = "101s",
        cloud: CloudOption = None,
        zone: Annotated[
            list[str] | None, typer.Option("--zone", help="Which zone is hit, where not the first.")
        ] = None,
        seed: SeedOption = 0,
        state_dir: StateDirOption = DEFAULT_STATE_DIR,
        form: FormatOption = Format.TEXT,
    ) -> None:
        lab_tool.fault_outage(_state_dir(state_dir), outage, cloud, for_, zone or [], seed, form=form)

    lacks = f"\n\nNot emulated: {outage.lacks}." if outage.lacks else ""
    run.__doc__ = f"{outage.what[0].upper()}{outage.what[1:]}.\n\n{outage.event}.\n\nSource: {outage.source}.{lacks}"
    return run


for _outage in OUTAGES.values():
    fault_app.command(_outage.name, short_help=_outage.what)(_outage_command(_outage))
