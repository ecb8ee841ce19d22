"""`yunhe bench NAME`: what the issue's table asks for, measured on a lab of its own, beside a peer or the machine's
limit where there is one.

Each starts the lab from a spec under a state directory of its own and removes it again. Figures are medians; the load
of the machine is said.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.bench.balance import balance
from controlplane.bench.bill import bill
from controlplane.bench.edge import edge
from controlplane.bench.figures import Figure, at_most
from controlplane.bench.fill import fill
from controlplane.bench.idle import idle, resident_bytes
from controlplane.bench.imports import imports
from controlplane.bench.lab import Bench
from controlplane.bench.losing import backlog_lost, zone_lost
from controlplane.bench.moving import gaps, shutdown
from controlplane.bench.objects import objects
from controlplane.bench.query import query
from controlplane.bench.stacks import find_pulumi, stacks
from controlplane.bench.tail import catch_up, steady
from controlplane.bench.throughput import fetch, produce
from controlplane.cli import output
from controlplane.cli.kafka_admin import describe, reassign
from controlplane.cli.main import FormatOption
from controlplane.cli.output import Format
from controlplane.drill.cli import EXIT_INTERRUPTED, interrupted_by_sigterm
from controlplane.drill.probe import Probe, create_topic
from controlplane.drill.report import summary
from controlplane.drill.run import STEADY_ACKS
from controlplane.drill.runner import Runner
from controlplane.drill.verdict import each_acked, longest_pause_ms
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable
from providers.lab.processes import ProcessTable

STATE_DIR = Path(".yunhe-bench")
MOVE_SMALL_BYTES = 1 << 20
MOVES = 5
FAILOVER_RUNS = 5
SETTLE_MS = 60_000

app = typer.Typer(help="Measure, beside a peer or a limit.", rich_markup_mode=None)


def up(bench: Bench) -> list[Figure]:
    """From nothing to all Ready, and the memory of every process then."""
    with bench.lab() as (_, took_s):
        processes = ProcessTable(bench.state_dir.root).everything()
        resident = sum(resident_bytes(p.pid) for p in processes)
    return [
        at_most("up_to_all_ready", took_s, "s", 15.0),
        at_most("resident_memory_of_the_lab", resident / (1 << 30), "GiB", 2.5),
        Figure("processes", len(processes), "processes"),
    ]


def failover(bench: Bench) -> list[Figure]:
    """A broker's SIGKILL to the first ack, for each WAL mode of the spec; with much that only its WAL holds; a zone's
    loss.
    """
    figures = []
    with bench.lab() as (clouds, _):
        runner = Runner(bench.state_dir, clock=bench.clock, rng=SystemRng(), say=output.progress)
        for mode, name in {c["wal"]["mode"]: c["name"] for c in clouds}.items():
            found = summary([runner.run("broker-loss", name) for _ in range(FAILOVER_RUNS)])
            figures.append(at_most(f"drills_failed {mode}", found["runs"] - found["passed"], "drills", 0))
            if found["rto_ms"] is not None:
                figures.append(at_most(f"kill_to_first_ack {mode}", found["rto_ms"] / 1000, "s", 5.0))
                figures.append(at_most(f"kill_to_first_ack_worst {mode}", found["rto_ms_max"] / 1000, "s", 5.0))
            if found["acked_lost"] is not None:
                figures.append(at_most(f"acked_lost {mode}", found["acked_lost"], "records", 0))
    return [*figures, *backlog_lost(bench), *zone_lost(bench)]


def move(bench: Bench) -> list[Figure]:
    """A partition moved to and fro under traffic, holding little and holding much: how long the move took, and the
    longest pause between acks; and the pauses of a hundred moves.
    """
    figures: list[Figure] = []
    with bench.lab() as (clouds, _):
        for label, size in (("1_MiB", MOVE_SMALL_BYTES), (f"{bench.large_bytes >> 20}_MiB", bench.large_bytes)):
            took_ms, gap_ms = _moves(bench, clouds[0], f"bench-{label.lower().replace('_', '-')}", size)
            figures.append(at_most(f"move {label}", statistics.median(took_ms), "ms", 1_000))
            figures.append(Figure(f"longest_ack_gap {label}", round(gap_ms, 1), "ms"))
    return [*figures, *gaps(bench)]


def _moves(bench: Bench, cloud: dict[str, Any], topic: str, size: int) -> tuple[list[float], float]:
    bootstrap = cloud["bootstrapServers"]
    create_topic(bootstrap, topic, 1)
    fill(bootstrap, topic, size)
    host, _, port = bootstrap.split(",")[0].partition(":")
    took: list[float] = []
    probe = Probe(bootstrap, topic, 1, clock=bench.clock)
    probe.start()
    try:
        _await_acks(probe, 0)
        began_ms = bench.clock.monotonic_ms()
        for _ in range(MOVES):
            now = describe((host, int(port)), topic, timeout_s=10)
            target = next(node for node in sorted(now.brokers) if node != now.partitions[0].leader)
            at_ms = bench.clock.monotonic_ms()
            reassign(now.brokers[now.controller], topic, 0, target, timeout_s=30)
            took.append(bench.clock.monotonic_ms() - at_ms)
            _await_acks(probe, bench.clock.monotonic_ms())
    finally:
        acks = probe.stop()
    if probe.failed:
        raise Unavailable(f"{probe.failed} produces failed while {topic} was moved: {probe.errors[0]}")
    return took, longest_pause_ms(acks, 0, began_ms, acks[-1].at_ms)


def _await_acks(probe: Probe, since_ms: float) -> None:
    if not probe.wait_for(lambda acks: each_acked(acks, (0,), STEADY_ACKS, since_ms), SETTLE_MS):
        raise Unavailable("no steady traffic on the partition to be moved")


BENCHES: dict[str, Callable[[Bench], list[Figure]]] = {
    "up": up,
    "failover": failover,
    "move": move,
    "shutdown": shutdown,
    "idle": idle,
    "produce": produce,
    "fetch": fetch,
    "catch-up": catch_up,
    "steady": steady,
    "balance": balance,
    "bill": bill,
    "lab": objects,
    "import": imports,
    "edge": edge,
    "query": query,
    "stacks": stacks,
}


@app.command()
def main(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHES)}, or all.")],
    spec: Annotated[Path, typer.Option(help="What the lab runs.")] = Path("examples/four-clouds.yaml"),
    state_dir: Annotated[Path, typer.Option("--state-dir", help="The benchmark's own.")] = STATE_DIR,
    large_mib: Annotated[int, typer.Option(min=1, max=65_536, help="The large partition of `move`.")] = 1024,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run benchmarks; what they promise and do not hold is shown, and is no failure of the command."""
    if name != "all" and name not in BENCHES:
        raise Invalid(f"no benchmark is named {name}", hint=f"one of: {', '.join(BENCHES)}, all")
    if not spec.exists():
        raise Invalid(f"{spec} does not exist", hint="give the spec with --spec")
    bench = Bench(spec, StateDir(state_dir.absolute()), SystemClock(), large_mib << 20)
    documents = []
    try:
        with interrupted_by_sigterm():
            for one in _every() if name == "all" else (name,):
                output.progress(f"bench {one}")
                machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
                figures = BENCHES[one](bench)
                documents.append({"bench": one, "machine": machine, "figures": [asdict(f) for f in figures]})
    except KeyboardInterrupt:
        output.error("interrupted", "the benchmark's lab was stopped and removed")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    rows = [_row(d["bench"], f) for d in documents for f in d["figures"]]  # type: ignore[arg-type]
    text = output.table(("BENCH", "FIGURE", "VALUE", "PEER", "RATIO", "TARGET", "HOLDS"), rows)
    output.data(documents if name == "all" else documents[0], form, text)


def _every() -> Sequence[str]:
    """All benchmarks that can run here: one needs a program that few have."""
    try:
        find_pulumi(os.environ)
    except Unavailable as error:
        output.progress(f"bench stacks is left out: {error.message} ({error.hint})")
        return [name for name in BENCHES if name != "stacks"]
    return list(BENCHES)


def _row(bench: str, figure: dict[str, Any]) -> Sequence[str]:
    peer = f"{figure['peer']} {figure['peer_value']:g}" if figure["peer"] else "-"
    holds = {True: "yes", False: "NO", None: "-"}[figure["holds"]]
    shown = {key: "-" if figure[key] is None else f"{figure[key]:g}" for key in ("ratio", "target")}
    value = f"{figure['value']:g} {figure['unit']}"
    return (bench, figure["name"], value, peer, shown["ratio"], shown["target"], holds)
