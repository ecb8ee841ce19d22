"""The agent's database processes: started, adopted, told what changed, started anew where they have to be.

    waits for its peers' ports ──(known, or too long)──► Starting ──(ready file)──► Running ──► Exited ──(back-off)──┐
                                                            └────────────────────────────────────────────────────────┘

The ports are picked and reported before the first start, so that the nodes of a cloud database can be told of each
other: what one hears of the others decides who owns it.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataplane.agent.journal import ProcessRecord
from dataplane.agent.restarts import STOP_MS, Restarts, hold_left_ms
from dataplane.agent.supervisor import Folder, Supervisor
from dataplane.contract.assignment import Assignment, DatabaseReport, ProcessState
from dataplane.contract.codec import from_json, to_json
from dataplane.contract.database import DatabaseConfig, DatabaseRole, DatabaseSpec, needs_restart
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.files import replace_file
from providers.base.ports import free_ports

PEERS_WAIT_MS = 15_000
"""How long a node's first start waits for the ports of the others: an agent that is away must not hold it for ever."""


class DatabaseKeeper:
    """Keeps the databases of one agent. `records`: the journal's, by node; `record` journals one, None: forgotten."""

    def __init__(
        self,
        folder: Path,
        supervisor: Supervisor,
        clock: Clock,
        rng: Rng,
        records: Callable[[], Mapping[str, ProcessRecord]],
        record: Callable[[str, ProcessRecord | None], None],
    ) -> None:
        self._folder = folder
        self._supervisor = supervisor
        self._clock = clock
        self._rng = rng
        self._records = records
        self._record = record
        self._restarts: dict[str, Restarts] = {}
        self._sentences: dict[str, str] = {}
        self._waits_since: dict[str, float] = {}

    @property
    def starts(self) -> Counter[str]:
        """Of each process by name, since the agent began."""
        return self._supervisor.starts

    async def keep(self, assignment: Assignment | None) -> list[str]:
        """Make the processes what the assignment says; what was done, a sentence each."""
        wanted = {d.node: d for d in assignment.databases} if assignment is not None else {}
        said = await self._stop({n: r for n, r in self._records().items() if n not in wanted})
        for spec in wanted.values():
            assert assignment is not None
            if sentence := self._keep(assignment, spec):
                self._sentences[spec.node] = sentence
                said.append(sentence)
        return said

    async def stop_all(self) -> None:
        """End every process; the journal keeps them."""
        await asyncio.gather(*(self._supervisor.stop(record) for record in self._records().values()))

    async def _stop(self, records: Mapping[str, ProcessRecord]) -> list[str]:
        # At once: a vehicle's worth of edges would take a while one after the other.
        await asyncio.gather(*(self._supervisor.stop(record) for record in records.values()))
        for name in records:
            self._record(name, None)
            for known in (self._restarts, self._sentences, self._waits_since):
                known.pop(name, None)
        return [f"stopped {name}: it is not assigned any more" for name in records]

    def _keep(self, assignment: Assignment, spec: DatabaseSpec) -> str:
        now, name = self._clock.monotonic_ms(), spec.node
        folder, restarts = self._folder_of(name), self._restarts.setdefault(name, Restarts())
        record = self._records().get(name)
        if record is None:
            http, mysql, postgres = free_ports(spec.host, 3, self._rng)
            record = ProcessRecord(spec.http_port or http)
            if spec.role is DatabaseRole.CLOUD:
                record = replace(record, mysql_port=mysql, postgres_port=postgres)
            # Journaled before the start: the port is its address from now on.
            self._record(name, record)
        record = replace(
            record,
            port=spec.http_port or record.port,
            mysql_port=spec.mysql_port or record.mysql_port,
            postgres_port=spec.postgres_port or record.postgres_port,
        )
        config = self._config(assignment, spec, record, folder)
        if self._supervisor.alive(record):
            adopted = restarts.seen_alive(now)
            if changed := self._changed(config, record, folder, restarts):
                return changed
            return f"adopted {name}, running as pid {record.pid}" if adopted else ""
        held_ms = hold_left_ms(self._folder, name, self._clock)
        if restarts.seen_gone(now, held=held_ms > 0):
            return f"{name} exited: {self._supervisor.last_words(folder)}"
        if now < restarts.not_before_ms:
            return ""
        if held_ms > 0:
            return "" if "held" in self._sentences.get(name, "") else f"{name} is held for {held_ms / 1000:.0f} s more"
        if unknown := self._unknown_peers(assignment, spec):
            since = self._waits_since.setdefault(name, now)
            if now - since < PEERS_WAIT_MS:
                waits = f"{name} waits for the port of {', '.join(unknown)}"
                return "" if self._sentences.get(name) == waits else waits
        self._waits_since.pop(name, None)
        if spec.role is DatabaseRole.CLOUD and not record.postgres_port:  # journaled before there was such a port
            record = replace(record, postgres_port=free_ports(spec.host, 1, self._rng)[0])
            config = self._config(assignment, spec, record, folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        Path(config.folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(folder.config, to_json(config))
        started = self._supervisor.start(record.port, folder)
        self._record(name, replace(started, mysql_port=record.mysql_port, postgres_port=record.postgres_port))
        restarts.started(now)
        return f"started {name} as pid {started.pid} on port {record.port}"

    def _config(
        self, assignment: Assignment, spec: DatabaseSpec, record: ProcessRecord, folder: Folder
    ) -> DatabaseConfig:
        peers = assignment.database_peers.get(spec.database, {})
        return DatabaseConfig(
            cell=assignment.cell,
            bucket=assignment.bucket,
            spec=replace(spec, http_port=record.port, mysql_port=record.mysql_port, postgres_port=record.postgres_port),
            folder=str(self._folder / "data" / spec.node),
            ready_file=str(folder.ready),
            peers={node: address for node, address in peers.items() if node != spec.node and address},
        )

    @staticmethod
    def _unknown_peers(assignment: Assignment, spec: DatabaseSpec) -> list[str]:
        peers = assignment.database_peers.get(spec.database, {})
        return sorted(node for node, address in peers.items() if node != spec.node and not address)

    def _changed(self, config: DatabaseConfig, record: ProcessRecord, folder: Folder, restarts: Restarts) -> str:
        """Tell a running process what has changed, or ask it to end where it must start anew; "" when nothing has."""
        now, name = self._clock.monotonic_ms(), config.spec.node
        if restarts.kill_at_ms is not None:
            if now < restarts.kill_at_ms:
                return ""
            restarts.kill_at_ms = now + STOP_MS
            self._supervisor.send(record, signal.SIGKILL)
            return f"killed {name}: it did not end within {STOP_MS / 1000:.0f} s"
        old = _config_of(folder)
        if old is None or old == config:
            return ""  # one that cannot be read says nothing about the process, which is left alone
        if replace(old, spec=config.spec) == config and not needs_restart(old.spec, config.spec):
            if not _ready_of(folder, record.pid):
                return ""  # it may not listen to the signal yet, and would end
            replace_file(folder.config, to_json(config))
            self._supervisor.send(record, signal.SIGHUP)
            return f"told {name} what has changed"
        restarts.kill_at_ms = now + STOP_MS
        self._supervisor.send(record, signal.SIGTERM)
        return f"stops {name}, to start it as it is assigned now"

    # ── report ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def reports(self, assignment: Assignment | None) -> tuple[DatabaseReport, ...]:
        """All assigned databases as of now."""
        return tuple(map(self._report, assignment.databases)) if assignment is not None else ()

    def settled(self, assignment: Assignment | None) -> bool:
        """Whether all serve as assigned, so that there is nothing to look after more often than the mailbox."""
        changing = any(restarts.kill_at_ms is not None for restarts in self._restarts.values())
        return not changing and all(r.state is ProcessState.RUNNING for r in self.reports(assignment))

    def _report(self, spec: DatabaseSpec) -> DatabaseReport:
        record = self._records().get(spec.node)
        ready: Mapping[str, Any] = {}
        pid = None
        if record is not None and self._supervisor.alive(record):
            pid = record.pid
            ready = _ready_of(self._folder_of(spec.node), pid)
            state = ProcessState.RUNNING if ready else ProcessState.STARTING
        elif hold_left_ms(self._folder, spec.node, self._clock):
            state = ProcessState.HELD
        else:
            # Before its first start it is no process that ended.
            state = ProcessState.STARTING if record is not None and record.pid is None else ProcessState.EXITED
        key, owner = ready.get("public_key"), ready.get("owner")
        return DatabaseReport(
            database=spec.database,
            node=spec.node,
            pid=pid,
            state=state,
            host=spec.host,
            http_port=record.port if record is not None else spec.http_port,
            mysql_port=record.mysql_port if record is not None else spec.mysql_port,
            sentence=self._sentences.get(spec.node, ""),
            public_key=key if isinstance(key, str) and spec.role is DatabaseRole.EDGE else None,
            owner=owner if isinstance(owner, bool) and spec.role is DatabaseRole.CLOUD else None,
            postgres_port=record.postgres_port if record is not None else spec.postgres_port,
        )

    def _folder_of(self, name: str) -> Folder:
        return Folder(self._folder / "run" / name)


def _ready_of(folder: Folder, pid: int | None) -> Mapping[str, Any]:
    """What the process of that pid has said when it served; empty: it has not."""
    try:
        ready = json.loads(folder.ready.read_text())
        return ready if ready["pid"] == pid else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _config_of(folder: Folder) -> DatabaseConfig | None:
    """What a running process was started with, or told since; None when that cannot be read."""
    try:
        return from_json(DatabaseConfig, folder.config.read_bytes())
    except (OSError, Invalid):
        return None
