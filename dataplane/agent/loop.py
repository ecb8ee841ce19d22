"""One turn of an agent: read the mailbox, make the processes what the assignment says, report what changed.

    Claimed ──(bucket answers)──► Following ◄──► Autonomous (bucket or control plane silent: the journal goes on)
                                     └──(a later claim of this name)──► Superseded: stop all and end

Every turn ends in one sentence that says what was done, and why.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataplane.agent.databases import DatabaseKeeper
from dataplane.agent.journal import Journal, JournalFile, ProcessRecord
from dataplane.agent.restarts import STOP_MS, Restarts, hold_left_ms
from dataplane.agent.supervisor import Folder, Supervisor
from dataplane.contract.assignment import AgentReport, Assignment, BrokerReport, BrokerSpec, ProcessState, SparesWanted
from dataplane.contract.broker_config import BrokerConfig
from dataplane.contract.codec import from_json, to_json
from dataplane.ledger.log import Ledger
from dataplane.ledger.mailbox import MailboxState, claim, report
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid, Unavailable
from providers.base.ports import free_port

log = logging.getLogger(__name__)

SNAPSHOT_ENTRIES = 200
_SPARE = "is spare, and not needed now"


class Superseded(Exception):
    """Another process has claimed this agent's mailbox."""


class AgentLoop:
    """See the module. `folder` holds the journal, `run/<process>/`, `holds/<process>` and
    `data/<database node>/`."""

    def __init__(
        self,
        *,
        agent: str,
        zone: str,
        incarnation: str,
        folder: Path,
        mailbox: Ledger[MailboxState],
        reports: Ledger[list[AgentReport]],
        supervisor: Supervisor,
        databases: Supervisor,
        clock: Clock,
        rng: Rng,
    ) -> None:
        """`supervisor` is the brokers', `databases` the databases'."""
        self._agent = agent
        self._zone = zone
        self._incarnation = incarnation
        self._folder = folder
        self._mailbox = mailbox
        self._reports = reports
        self._supervisor = supervisor
        self._clock = clock
        self._rng = rng
        self._file = JournalFile(folder / "journal.json")
        self.journal = self._file.load()
        self._databases = DatabaseKeeper(
            folder, databases, clock, rng, lambda: self.journal.databases, self._record_database
        )
        self._claimed = False
        self._opened = False
        self._refused: str | None = None
        self._reported: AgentReport | None = None
        self._restarts: dict[str, Restarts] = {}
        self._sentences: dict[str, str] = {}
        self._configs: dict[str, BrokerConfig] = {}
        """What each broker was started with."""
        self.autonomous = False
        """The bucket does not answer: the journal alone decides."""
        self.metrics: str | None = None
        """Where this agent serves `/metrics`."""

    async def turn(self) -> str:
        """Do what is to be done now; returns what that was.

        Raises:
            Superseded: a later incarnation has claimed the mailbox; every broker has been stopped.
        """
        said = [await self._read_mailbox(), *await self._keep_processes()]
        said.append(await self._report())
        return "; ".join(s for s in said if s) or "nothing to do"

    @property
    def settled(self) -> bool:
        """Every assigned broker and database serves: there is nothing to look after more often than the mailbox."""
        if any(restarts.kill_at_ms is not None for restarts in self._restarts.values()):
            return False
        if not self._databases.settled(self.journal.assignment):
            return False
        return all(b.settled for b in self.current().brokers)

    @property
    def starts(self) -> Mapping[str, int]:
        """Starts of processes, by name, since this agent began."""
        return self._supervisor.starts + self._databases.starts

    @property
    def mailbox_age_ms(self) -> float:
        """Since the mailbox's end was last read."""
        return self._clock.monotonic_ms() - self._mailbox.last_read_ms

    # ── mailbox ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_mailbox(self) -> str:
        try:
            if not self._opened:
                await self._mailbox.open()
                await self._reports.open()
                self._opened = True
            if not self._claimed:
                await claim(self._mailbox, self._incarnation)
                self._claimed = True
            await self._mailbox.poll()
        except Unavailable as error:
            self.autonomous = True
            return f"autonomous: the bucket does not answer ({error})"
        self.autonomous = False
        if self._mailbox.state.claimed_by != self._incarnation:
            await self._stop_all()
            raise Superseded(f"agent {self._agent} was claimed by another process; this one has stopped its brokers")
        return self._take(self._mailbox.state.newest)

    def _take(self, newest: Assignment | None) -> str:
        held = self.journal.assignment
        if newest is None or newest == held:
            self._refused = None
            return ""
        if held is not None and newest.generation <= held.generation:
            # The mailbox is older than the journal: it was restored from a backup, or belongs to another store.
            self._refused = f"generation {newest.generation} is not above {held.generation}, which is carried out"
            return f"refused an assignment: {self._refused}"
        if newest.agent != self._agent or newest.zone != self._zone:
            self._refused = f"it is for agent {newest.agent} in zone {newest.zone}"
            return f"refused an assignment: {self._refused}"
        self._refused = None
        # What another cluster's controller wanted says nothing of this one, whose terms may begin anew.
        same = held is not None and held.cluster == newest.cluster and newest.brokers
        spares = self.journal.spares if same else SparesWanted()
        self._save(dataclasses.replace(self.journal, assignment=newest, spares=spares))
        return f"took assignment {newest.generation.incarnation}.{newest.generation.revision}"

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_processes(self) -> list[str]:
        assignment = self.journal.assignment
        wanted = {b.name: b for b in assignment.brokers} if assignment is not None else {}
        said: list[str] = []
        for name in [n for n in self.journal.processes if n not in wanted]:
            await self._supervisor.stop(self.journal.processes[name])
            self._forget(name)
            said.append(f"stopped {name}: it is not assigned any more")
        if assignment is not None:
            self._hear_of_spares(assignment)
            for broker in wanted.values():
                sentence = self._keep(assignment, broker)
                if sentence:
                    self._sentences[broker.name] = sentence
                    said.append(sentence)
        return said + await self._databases.keep(assignment)

    def _keep(self, assignment: Assignment, broker: BrokerSpec) -> str:
        """Make one broker run; returns what was done, "" when nothing."""
        now = self._clock.monotonic_ms()
        name, folder = broker.name, self._folder_of(broker.name)
        restarts = self._restarts.setdefault(name, Restarts())
        record = self.journal.processes.get(name)
        needed = broker.spare <= self.journal.spares.count
        if record is not None and self._supervisor.alive(record):
            adopted = restarts.seen_alive(now)
            if changing := self._end(assignment, broker, record, restarts, needed=needed):
                return changing
            return f"adopted {name}, running as pid {record.pid}" if adopted else ""
        if restarts.seen_gone(now, held=self._hold_left_ms(name) > 0):
            return f"{name} exited: {self._supervisor.last_words(folder)}"
        if not needed:
            return "" if self._sentences.get(name) == _SPARE else _SPARE
        if now < restarts.not_before_ms:
            return ""
        if (left_ms := self._hold_left_ms(name)) > 0:
            return "" if "held" in self._sentences.get(name, "") else f"{name} is held for {left_ms / 1000:.0f} s more"
        port = broker.kafka_port or free_port(
            broker.host, self._rng, preferred=record.port if record is not None else None
        )
        folder.path.mkdir(parents=True, exist_ok=True)
        config = self._configs[name] = BrokerConfig(
            cell=assignment.cell,
            cluster=assignment.cluster,
            bucket=assignment.bucket,
            broker=dataclasses.replace(broker, kafka_port=port),
            settings=assignment.settings,
            ready_file=str(folder.ready),
            volumes=assignment.volumes,
            express=assignment.express,
            security=assignment.security,
            spares=self.journal.spares,
        )
        folder.config.write_bytes(to_json(config))
        # The port is journaled before the start; a crash between start and the second save leaves a process that its
        # successor fences.
        self._record(name, ProcessRecord(port))
        started = self._supervisor.start(port, folder)
        self._record(name, started)
        restarts.started(now)
        return f"started {name} as pid {started.pid} on port {port}"

    def _hear_of_spares(self, assignment: Assignment) -> None:
        """Keep the newest word that the brokers pass on."""
        newest = self.journal.spares
        for broker in assignment.brokers:
            record = self.journal.processes.get(broker.name)
            if record is not None and (said := self._said(broker.name, record).get("spares")):
                newest = max(newest, SparesWanted(*map(int, said)))
        if newest != self.journal.spares:
            self._save(dataclasses.replace(self.journal, spares=newest))

    def _end(
        self, assignment: Assignment, broker: BrokerSpec, record: ProcessRecord, restarts: Restarts, *, needed: bool
    ) -> str:
        """Ask a broker to hand over and end which is spare and not needed any more, or which runs with something else
        than is assigned; the next turn that finds the latter gone starts it anew. Returns what was done, "" when
        nothing. One agent at a time is the control plane's care; one broker of this agent at a time is this one's."""
        now = self._clock.monotonic_ms()
        if restarts.kill_at_ms is not None:
            if now < restarts.kill_at_ms:
                return ""
            restarts.kill_at_ms = now + STOP_MS
            self._supervisor.send(record, signal.SIGKILL)
            return f"killed {broker.name}: it did not hand over within {STOP_MS / 1000:.0f} s"
        why = self._outdated(assignment, broker) if needed else "which is spare: the others are enough"
        others = [b for b in assignment.brokers if b.name != broker.name]
        if not why or (needed and not all(self._serves_on(assignment, other) for other in others)):
            return ""
        restarts.kill_at_ms = now + STOP_MS
        self._supervisor.send(record, signal.SIGTERM)
        return f"stops {broker.name}, {why}"

    def _serves_on(self, assignment: Assignment, broker: BrokerSpec) -> bool:
        """Whether a broker serves, and was not asked to end."""
        restarts = self._restarts.get(broker.name)
        asked = restarts is not None and restarts.kill_at_ms is not None
        return not asked and self._state_of(assignment, broker).state in (ProcessState.RUNNING, ProcessState.SPARE)

    def _outdated(self, assignment: Assignment, broker: BrokerSpec) -> str:
        """What for the running broker has to start anew; "" when it need not, or when what it was started with cannot
        be read."""
        if broker.name not in self._configs:  # it was started by an agent before this one
            try:
                config = self._folder_of(broker.name).config.read_bytes()
                self._configs[broker.name] = from_json(BrokerConfig, config)
            except (OSError, Invalid):
                return ""
        runs = self._configs[broker.name]
        if runs.broker.spare != broker.spare:
            return "to take its new rank"
        old, new = runs.broker.wal, broker.wal
        if dataclasses.replace(old, bytes_max=new.bytes_max) != new:  # its size is read at the next start
            changed = f"{old.mode.value} to {new.mode.value}" if old.mode is not new.mode else "its place"
            return f"to change its WAL: {changed}"
        if runs.security != assignment.security or runs.broker.host != broker.host:
            return "to take its new listeners and rights"
        return "to take its new settings" if runs.settings != assignment.settings else ""

    def _hold_left_ms(self, name: str) -> float:
        return hold_left_ms(self._folder, name, self._clock)

    async def _stop_all(self) -> None:
        for record in self.journal.processes.values():
            await self._supervisor.stop(record)
        await self._databases.stop_all()

    async def stop_processes(self) -> None:
        """Ask all of them to hand over and end, at once, and wait for STOP_MS at most: the agent's machine goes."""
        stops = (self._supervisor.stop(record, STOP_MS) for record in self.journal.processes.values())
        await asyncio.gather(*stops, self._databases.stop_all())

    # ── report ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _state_of(self, assignment: Assignment, broker: BrokerSpec) -> BrokerReport:
        record = self.journal.processes.get(broker.name)
        sentence, outdated, slow, metrics = self._sentences.get(broker.name, ""), False, None, None
        if record is not None and self._supervisor.alive(record):
            said = self._said(broker.name, record)
            state = ProcessState.RUNNING if said else ProcessState.STARTING
            pid, outdated, slow = record.pid, self._outdated(assignment, broker) != "", said.get("slow")
            metrics = said.get("metrics")
        else:
            spare = broker.spare > self.journal.spares.count
            held = ProcessState.HELD if self._hold_left_ms(broker.name) else ProcessState.EXITED
            state, pid = ProcessState.SPARE if spare else held, None
        port = record.port if record is not None else broker.kafka_port
        told = (broker.node_id, broker.name, pid, state, broker.host, port, sentence, outdated, slow, metrics)
        return BrokerReport(*told)

    def current(self) -> AgentReport:
        """The report as of now."""
        assignment = self.journal.assignment
        return AgentReport(
            agent=self._agent,
            zone=self._zone,
            pid=os.getpid(),
            incarnation=self._incarnation,
            generation=assignment.generation if assignment is not None else None,
            brokers=tuple(self._state_of(assignment, b) for b in assignment.brokers) if assignment is not None else (),
            refused=self._refused,
            metrics=self.metrics,
            databases=self._databases.reports(assignment),
        )

    async def _report(self) -> str:
        now = self.current()
        if now == self._reported or not self._opened:
            return ""
        try:
            await report(self._reports, now)
            self._reported = now
            await self._shorten()
        except Unavailable as error:
            return f"report put off: {error}"
        return "reported"

    async def _shorten(self) -> None:
        """Snapshots of both ledgers, so that the next start reads little. Only the agent collects its mailbox, and only
        what it has carried out and reported."""
        for ledger in (self._mailbox, self._reports):
            if ledger.seq - ledger.snapshot_seq >= SNAPSHOT_ENTRIES:
                await ledger.snapshot()
                await ledger.collect()

    # ── journal ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _folder_of(self, name: str) -> Folder:
        return Folder(self._folder / "run" / name)

    def _said(self, name: str, record: ProcessRecord) -> Mapping[str, Any]:
        return self._supervisor.said(record, self._folder_of(name))

    def _record(self, name: str, record: ProcessRecord) -> None:
        self._save(dataclasses.replace(self.journal, processes={**self.journal.processes, name: record}))

    def _forget(self, name: str) -> None:
        left = {n: r for n, r in self.journal.processes.items() if n != name}
        self._configs.pop(name, None)
        self._save(dataclasses.replace(self.journal, processes=left))

    def _record_database(self, name: str, record: ProcessRecord | None) -> None:
        others = {n: r for n, r in self.journal.databases.items() if n != name}
        self._save(dataclasses.replace(self.journal, databases=others if record is None else {**others, name: record}))

    def _save(self, journal: Journal) -> None:
        self._file.save(journal)
        self.journal = journal
