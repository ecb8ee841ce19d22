"""Promises of the agent: of its loop and, where a crash matters, of its real process. The brokers are stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane.agent.journal import Journal, JournalFile
from dataplane.agent.loop import AgentLoop, Superseded
from dataplane.agent.supervisor import Supervisor, start_time
from dataplane.contract.assignment import (
    AgentReport,
    Assignment,
    BrokerReport,
    BrokerSettings,
    BrokerSpec,
    Generation,
    ProcessState,
    WalMode,
    WalSpec,
)
from dataplane.contract.codec import from_json, to_json, to_plain
from dataplane.ledger.entry import Writer
from dataplane.ledger.mailbox import open_mailbox, open_reports, publish
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Conflict, Corrupt
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store
from providers.lab.launcher import Lab, LabCloud
from providers.lab.processes import ProcessTable
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_broker.py")))
STAND_IN_DATABASE = (sys.executable, str(Path(__file__).with_name("stand_in_database.py")))
BUCKET = StoreAddress("private", "cell", "site")


def assignment(revision: int, *names: str, incarnation: int = 1, bucket: StoreAddress = BUCKET) -> Assignment:
    brokers = tuple(BrokerSpec(i, name, "z1", WalSpec(WalMode.OBJECT)) for i, name in enumerate(names, 1))
    return Assignment("cell", "c", "a1", "z1", Generation(incarnation, revision), bucket, brokers)


class Site:
    """A bucket in memory, a control plane that publishes, and agents over one folder. Ends every process it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.world = World(self.clock, SeededRng(1))
        self.bucket = MemoryBucket(self.world, "bucket")
        self.agents = 0
        self.store = self.host().store

    def host(self) -> Host:
        self.agents += 1
        return Host(self, f"host{self.agents}")

    async def publish(self, what: Assignment) -> None:
        mailbox = open_mailbox(self.store, "a1", Writer("cp", "cp"), clock=self.clock, rng=SeededRng("cp"))
        await mailbox.open()
        await publish(mailbox, what)

    async def reported(self) -> AgentReport:
        reports = open_reports(self.store, "a1", Writer("cp", "cp2"), clock=self.clock, rng=SeededRng("cp"))
        await reports.open()
        return reports.state[-1]

    def agent(self, host: Host | None = None) -> AgentLoop:
        host = host or self.host()
        writer = Writer("agent-a1", host.name)
        return AgentLoop(
            agent="a1",
            zone="z1",
            incarnation=host.name,
            folder=self.folder,
            mailbox=open_mailbox(host.store, "a1", writer, clock=self.clock, rng=SeededRng(host.name)),
            reports=open_reports(host.store, "a1", writer, clock=self.clock, rng=SeededRng(host.name)),
            supervisor=Supervisor(STAND_IN, self.clock),
            databases=Supervisor(STAND_IN_DATABASE, self.clock),
            clock=self.clock,
            rng=SeededRng(host.name),
        )


class Host:
    """One machine's way to the bucket."""

    def __init__(self, site: Site, name: str) -> None:
        self.name = name
        self.process = Process(site.world, name)
        self.store: ObjectStore = MemoryObjectStore(self.process, site.bucket)


@contextlib.asynccontextmanager
async def site_in(folder: Path) -> AsyncIterator[Site]:
    site = Site(folder)
    try:
        yield site
    finally:
        kill_brokers(folder)


def kill_brokers(folder: Path) -> None:
    journal = JournalFile(folder / "journal.json").load()
    for record in (*journal.processes.values(), *journal.databases.values()):
        if record.pid is not None and start_time(record.pid) == record.start_time:
            os.kill(record.pid, signal.SIGKILL)


async def turns(agent: AgentLoop, done: Callable[[], bool]) -> list[str]:
    """Let the agent turn until `done`; its sentences."""
    said = []
    async with asyncio.timeout(15):
        while True:
            said.append(await agent.turn())
            if done():
                return said
            await asyncio.sleep(0.01)


def states(agent: AgentLoop) -> list[ProcessState]:
    return [b.state for b in agent.current().brokers]


def pids(agent: AgentLoop) -> list[int | None]:
    return [b.pid for b in agent.current().brokers]


def running(agent: AgentLoop, count: int) -> Callable[[], bool]:
    return lambda: states(agent) == [ProcessState.RUNNING] * count


def test_an_agent_runs_what_it_is_assigned_and_reports_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            assert [await agent.turn(), await agent.turn()] == ["reported", "nothing to do"]
            await site.publish(assignment(1, "b-1", "b-2"))
            await turns(agent, running(agent, 2))
            await agent.turn()
            seen = await site.reported()
            assert seen.generation == Generation(1, 1)
            assert [b.pid for b in seen.brokers] == pids(agent)
            assert len({b.kafka_port for b in seen.brokers}) == 2
            entries = len(site.bucket.objects)
            for _ in range(5):
                assert await agent.turn() == "nothing to do"
            assert len(site.bucket.objects) == entries, "an idle agent appends nothing"
            await site.publish(assignment(2, "b-1"))
            said = await turns(agent, running(agent, 1))
            assert any("stopped b-2" in s for s in said)

    asyncio.run(main())


def test_a_stale_assignment_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(5, "b-1"))
            await turns(agent, running(agent, 1))
            with pytest.raises(Conflict, match="refuses"):
                await site.publish(assignment(4))
            with pytest.raises(Conflict, match="refuses"):
                await site.publish(assignment(5))
            assert states(agent) == [ProcessState.RUNNING]
            # A mailbox restored from an old backup: the journal knows better.
            restored = Site(tmp_path)
            await restored.publish(assignment(3))
            reborn = restored.agent()
            assert "refused" in await reborn.turn()
            assert states(reborn) == [ProcessState.RUNNING]
            await reborn.turn()
            assert "is not above" in str((await restored.reported()).refused)
            # A control plane begun anew counts from a new incarnation, and is heard.
            await restored.publish(assignment(1, incarnation=2))
            await reborn.turn()
            assert states(reborn) == []

    asyncio.run(main())


def test_an_agent_carries_on_from_its_journal_when_the_bucket_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(agent, running(agent, 1))
            host = site.host()
            host.process.cut_from.add("bucket")
            alone = site.agent(host)
            [before] = pids(agent)
            assert "autonomous" in await alone.turn() and alone.autonomous
            assert pids(alone) == [before], "a restarted agent needs no bucket to adopt"
            assert before is not None
            os.kill(before, signal.SIGKILL)
            await turns(alone, lambda: running(alone, 1)() and pids(alone) != [before])
            host.process.cut_from.clear()
            await turns(alone, lambda: not alone.autonomous)

    asyncio.run(main())


def test_a_crashed_broker_comes_back_on_its_port_with_back_off(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(agent, running(agent, 1))
            port = agent.current().brokers[0].kafka_port
            gaps = []
            for _ in range(2):
                [pid] = pids(agent)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                await turns(agent, lambda pid=pid: running(agent, 1)() and pids(agent) != [pid])  # type: ignore[misc]
                gaps.append(time.monotonic() - began)
            assert agent.current().brokers[0].kafka_port == port
            assert gaps[0] > 0.45 and gaps[1] > 0.95, "each crash doubles the pause"

    asyncio.run(main())


def with_wal(of: Assignment, name: str, wal: WalSpec) -> Assignment:
    return replace(of, brokers=tuple(replace(b, wal=wal) if b.name == name else b for b in of.brokers))


def test_a_broker_whose_wal_changes_ends_by_itself_and_starts_on_the_new_one_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1", "b-2"))
            await turns(agent, running(agent, 2))
            first, second = pids(agent)
            port = agent.current().brokers[0].kafka_port
            changed = with_wal(assignment(2, "b-1", "b-2"), "b-1", WalSpec(WalMode.REGIONAL_BLOCK, volume="v"))
            await site.publish(changed)
            began = time.monotonic()
            said = [await agent.turn()]
            assert any("stops b-1, to change its WAL: object to regional-block" in s for s in said)
            assert not agent.settled, "somebody waits for it"
            await turns(agent, lambda: running(agent, 2)() and pids(agent)[0] != first)
            assert time.monotonic() - began < 0.45, "it ended as it was asked to, and waits for no back-off"
            assert pids(agent)[1] == second, "the other broker was not touched"
            assert agent.current().brokers[0].kafka_port == port
            config = json.loads((tmp_path / "run" / "b-1" / "config.json").read_text())
            assert config["broker"]["wal"]["mode"] == "regional-block"
            await turns(agent, lambda: agent.settled)
            assert await agent.turn() == "nothing to do"

    asyncio.run(main())


def test_new_settings_restart_an_agents_brokers_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1", "b-2"))
            await turns(agent, running(agent, 2))
            before = pids(agent)
            changed = replace(assignment(2, "b-1", "b-2"), settings=BrokerSettings(500))
            await site.publish(changed)
            seen = []

            def restarted() -> bool:
                seen.append(agent.current().brokers)
                return running(agent, 2)() and not set(pids(agent)) & set(before)

            assert "stops b-1, to take its new settings" in await agent.turn()
            assert agent.current().brokers[1].outdated and not agent.settled, "it waits for its turn"
            await turns(agent, restarted)
            assert all(any(b.state is ProcessState.RUNNING for b in both) for both in seen), "one always serves"
            assert not any(b.outdated for b in agent.current().brokers)
            for name in ("b-1", "b-2"):
                config = json.loads((tmp_path / "run" / name / "config.json").read_text())
                assert config["settings"]["heartbeat_interval_ms"] == 500
            wider = tuple(replace(b, wal=replace(b.wal, bytes_max=1 << 30)) for b in changed.brokers)
            await site.publish(replace(changed, generation=Generation(1, 3), brokers=wider))
            after = pids(agent)
            await turns(agent, lambda: agent.current().generation == Generation(1, 3) and agent.settled)
            assert pids(agent) == after, "a WAL's size is read at the next start, and is no reason for one"

    asyncio.run(main())


def test_what_a_broker_says_of_its_slowness_is_reported_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1", "b-2"))
            await turns(agent, running(agent, 2))
            await turns(agent, lambda: agent.settled)
            ready = tmp_path / "run" / "b-1" / "ready.json"
            before = json.loads(ready.read_text())
            for slow in ("its WAL acks in 600 ms, those of its peers in 5 ms", None):
                ready.write_text(json.dumps({**before, "slow": slow}))
                assert await agent.turn() == "reported" and await agent.turn() == "nothing to do"
                assert [b.slow for b in agent.current().brokers] == [slow, None]
                assert agent.settled, "it serves"
            # What a process of another life left there says nothing of this one.
            ready.write_text(json.dumps({**before, "pid": before["pid"] + 1, "slow": "of a former life"}))
            assert agent.current().brokers[0].slow is None

    asyncio.run(main())


def test_a_report_of_an_agent_before_slow_brokers_is_read() -> None:
    report = BrokerReport(1, "b-1", 7, ProcessState.RUNNING, "h", 9, "", slow="it is")
    plain = json.loads(to_json(report))
    assert from_json(BrokerReport, json.dumps(plain).encode()) == report
    del plain["slow"]
    assert from_json(BrokerReport, json.dumps(plain).encode()) == replace(report, slow=None)


def test_an_agents_successor_knows_what_a_broker_was_started_with(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(agent, running(agent, 1))
            [before] = pids(agent)
            successor = site.agent(Host(site, "later"))
            await turns(successor, lambda: successor.settled)
            assert pids(successor) == [before], "as it was started, so it stays"
            await site.publish(replace(assignment(2, "b-1"), settings=BrokerSettings(500)))
            await turns(successor, lambda: running(successor, 1)() and pids(successor) != [before])

    asyncio.run(main())


def test_a_broker_that_does_not_hand_over_for_its_new_wal_is_killed_in_the_end(tmp_path: Path) -> None:
    class Hours:
        """Virtual for the wait alone."""

        def __init__(self) -> None:
            self.added_ms = 0.0
            self.real = SystemClock()

        def monotonic_ms(self) -> float:
            return self.real.monotonic_ms() + self.added_ms

        def wall_ms(self) -> int:
            return self.real.wall_ms()

        async def sleep_ms(self, duration_ms: float) -> None:
            await self.real.sleep_ms(duration_ms)

    async def main() -> None:
        async with site_in(tmp_path) as site:
            site.clock = clock = Hours()  # type: ignore[assignment]
            agent = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(agent, running(agent, 1))
            [pid] = pids(agent)
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)  # it hears SIGTERM only once it goes on
            await site.publish(with_wal(assignment(2, "b-1"), "b-1", WalSpec(WalMode.REGIONAL_BLOCK, volume="v")))
            await turns(agent, lambda: agent.current().generation == Generation(1, 2))
            for _ in range(5):
                await agent.turn()
            assert pids(agent) == [pid], "it has its time"
            clock.added_ms += 15_001
            said = await turns(agent, lambda: running(agent, 1)() and pids(agent) != [pid])
            assert any("killed b-1" in s for s in said)

    asyncio.run(main())


def test_a_held_broker_is_not_restarted_before_the_hold_is_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(agent, running(agent, 1))
            (tmp_path / "holds").mkdir()
            hold = tmp_path / "holds" / "b-1"
            hold.write_text(json.dumps({"until_wall_ms": site.clock.wall_ms() + 3_600_000}))
            [pid] = pids(agent)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            said = await turns(agent, lambda: "held" in agent.current().brokers[0].sentence)
            assert states(agent) == [ProcessState.HELD] and any("is held" in s for s in said)
            hold.write_text(json.dumps({"until_wall_ms": site.clock.wall_ms() - 1}))
            await turns(agent, running(agent, 1))

    asyncio.run(main())


def test_a_superseded_agent_stops_its_brokers(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path / "old") as site:
            (tmp_path / "old").mkdir()
            old = site.agent()
            await site.publish(assignment(1, "b-1"))
            await turns(old, running(old, 1))
            [pid] = pids(old)
            site.folder = tmp_path / "new"
            site.folder.mkdir()
            new = site.agent()
            await turns(new, running(new, 1))
            with pytest.raises(Superseded):
                await turns(old, lambda: False)
            assert pid is not None and start_time(pid) is None
            kill_brokers(tmp_path / "new")

    asyncio.run(main())


def test_a_damaged_journal_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal.json")
    assert file.load() == Journal()
    (tmp_path / "journal.json").write_text('{"assignment": nul')
    with pytest.raises(Corrupt, match="not an agent's journal"):
        file.load()


# ── the real process ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[StoreAddress]:
    """A bucket that processes share: the lab's server of a private cloud."""
    clock = SystemClock()
    lab = Lab(tmp_path / "lab", clock=clock, rng=SeededRng("lab"))
    cloud = LabCloud("site", "private", "on-prem", ("z1",))
    try:
        lab.spawn(cloud)
        yield lab.wait(cloud, deadline_ms=clock.monotonic_ms() + 20_000).bucket
    finally:
        for record in ProcessTable(tmp_path / "lab").records():
            os.kill(record.id.pid, signal.SIGTERM)


def test_agent_readopts_running_broker_after_crash(tmp_path: Path, bucket: StoreAddress) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    config = {"cell": "cell", "agent": "a1", "zone": "z1", "bucket": to_plain(bucket), "broker_command": list(STAND_IN)}
    (folder / "config.json").write_text(json.dumps(config))
    argv = [
        sys.executable,
        "-m",
        "dataplane.agent",
        "--state-dir",
        str(folder),
        "--config",
        str(folder / "config.json"),
    ]

    async def publish_one() -> None:
        clock, rng = SystemClock(), SeededRng("cp")
        store = open_store(bucket, clock=clock, rng=rng)
        mailbox = open_mailbox(store, "a1", Writer("cp", "cp"), clock=clock, rng=rng)
        await mailbox.open()
        await publish(mailbox, assignment(1, "b-1", bucket=bucket))
        await store.close()

    def ready() -> int | None:
        try:
            return int(json.loads((folder / "run" / "b-1" / "ready.json").read_text())["pid"])
        except (OSError, ValueError):
            return None

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (folder / "err").read_text()
            time.sleep(0.02)

    with (folder / "err").open("w") as errors:
        first = subprocess.Popen(argv, stderr=errors)
        try:
            asyncio.run(publish_one())
            until(lambda: ready() is not None)
            before = ready()
            first.kill()
            first.wait()
            second = subprocess.Popen(argv, stderr=errors)
            until(lambda: "adopted b-1" in (folder / "err").read_text())
            assert ready() == before and before is not None and start_time(before) is not None
            third = subprocess.run(argv, capture_output=True, text=True, timeout=20)
            assert third.returncode == 1 and "another agent uses" in third.stderr
            second.terminate()
            assert second.wait(timeout=20) == 0
            assert start_time(before) is not None, "brokers go on without their agent"
        finally:
            first.kill()
            kill_brokers(folder)
