"""The agent process: `python -m dataplane.agent --state-dir DIR --config FILE`.

Exit codes: 0 after SIGTERM or SIGINT (its processes go on: they need no agent to serve), 1 when it could not start, 3
when another process has claimed this agent's mailbox (its processes are stopped).
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.agent.loop import AgentLoop, Superseded
from dataplane.agent.metrics import AgentMetrics
from dataplane.agent.supervisor import Supervisor
from dataplane.contract.assignment import MetricsSpec
from dataplane.contract.codec import from_json
from dataplane.ledger.entry import Writer
from dataplane.ledger.mailbox import open_mailbox, open_reports
from dataplane.metrics.endpoint import MetricsEndpoint, serve_metrics
from providers.base.blocking import health_of_open_stores
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, YunheError
from providers.base.logs import configure, say_error
from providers.base.registry import StoreAddress, open_store

log = logging.getLogger("dataplane.agent")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is told once, by whoever sets its machine up."""

    cell: str
    agent: str
    zone: str
    bucket: StoreAddress
    poll_interval_ms: int = 1_000
    """Between turns while nothing changes: how late an assignment may be noticed; each costs one GET."""
    busy_interval_ms: int = 100
    """Between turns while a process starts or has exited: a restart should not wait for the next poll."""
    broker_command: tuple[str, ...] = ()
    """What a broker is started with, before `--config FILE`; empty: this Python and `dataplane.broker`."""
    stop_with_agent: bool = False
    """Whether the end of the agent is that of its processes: in a container, where nothing outlives the first process.
    They hand over what they have before they end."""
    ready_file: str | None = None
    """Kept in being while all that is assigned serves, and no longer: what a readiness probe asks for."""
    database_command: tuple[str, ...] = ()
    """The same for a database; empty: this Python and `dataplane.tsdb.process`."""
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    """Where the agent tells Prometheus what it has counted; it listens on the port itself."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dataplane.agent", description="The Yunhe agent of one zone.")
    parser.add_argument("--state-dir", required=True, type=Path, help="journal, broker folders and logs")
    parser.add_argument("--config", required=True, type=Path, help="who this agent is, JSON")
    args = parser.parse_args()
    configure()
    try:
        config = from_json(AgentConfig, args.config.read_bytes())
        args.state_dir.mkdir(parents=True, exist_ok=True)
        with _locked(args.state_dir):
            return asyncio.run(run(config, args.state_dir))
    except Superseded as error:
        say_error(error)
        return 3
    except (OSError, YunheError) as error:
        say_error(error)
        return 1


class _locked:
    """Holds the state directory for one agent process."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("w")

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Invalid(
                f"another agent uses {Path(self._file.name).parent}", hint="give each agent its own --state-dir"
            ) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def run(config: AgentConfig, folder: Path) -> int:
    """Turn until told to stop."""
    clock, rng = SystemClock(), SystemRng()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    incarnation = rng.token()
    store = await asyncio.to_thread(open_store, config.bucket, clock=clock, rng=rng)
    writer = Writer(f"agent-{config.agent}", incarnation)
    command = config.broker_command or (sys.executable, "-P", "-m", "dataplane.broker")
    database_command = config.database_command or (sys.executable, "-P", "-m", "dataplane.tsdb.process")
    loop = AgentLoop(
        agent=config.agent,
        zone=config.zone,
        incarnation=incarnation,
        folder=folder,
        mailbox=open_mailbox(store, config.agent, writer, clock=clock, rng=rng),
        reports=open_reports(store, config.agent, writer, clock=clock, rng=rng),
        supervisor=Supervisor(command, clock),
        databases=Supervisor(database_command, clock, environment={}),
        clock=clock,
        rng=rng,
    )
    told = AgentMetrics(config.cell, loop, health_of_open_stores, clock)
    metrics = MetricsEndpoint(told.page, clock)
    loop.metrics = await serve_metrics(metrics, config.metrics)
    log.info("agent", extra={"agent": config.agent, "zone": config.zone, "pid": os.getpid()})
    said = ""
    ready = ReadyFile(config.ready_file)
    ready.show(False)  # of an earlier life
    while not stop.is_set():
        sentence = await loop.turn()
        ready.show(loop.settled)
        if sentence != said:
            log.info("turn", extra={"sentence": sentence})
            said = sentence
        steady = sentence == "nothing to do" and loop.settled
        pause_ms = config.poll_interval_ms if steady else config.busy_interval_ms
        try:
            async with asyncio.timeout(rng.uniform(0.9, 1.1) * pause_ms / 1000):
                await stop.wait()
        except TimeoutError:
            pass
    if config.stop_with_agent:
        ready.show(False)
        log.info("stops", extra={"sentence": "its processes end with it, and hand over what they have"})
        await loop.stop_processes()
    await metrics.close()
    await store.close()
    return 0


class ReadyFile:
    """A file that is there while its agent is ready. `path` None: nobody asks."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path is not None else None
        self._shown: bool | None = None

    def show(self, ready: bool) -> None:
        """Make the file be there, or not."""
        if self._path is None or ready == self._shown:
            return
        if ready:
            self._path.touch()
        else:
            self._path.unlink(missing_ok=True)
        self._shown = ready


if __name__ == "__main__":
    sys.exit(main())
