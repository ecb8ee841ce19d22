"""Promises of the agent about databases. The processes are stand-ins; what they run is not its affair."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataplane.agent.journal import JournalFile
from dataplane.agent.loop import AgentLoop, Superseded
from dataplane.contract.assignment import Assignment, DatabaseReport, ProcessState
from dataplane.contract.codec import from_plain, to_plain
from dataplane.contract.database import DatabaseRole, DatabaseSpec
from providers.base.clock import SystemClock
from tests.dataplane.agent.test_agent import Site, assignment, site_in, turns

EDGE = DatabaseSpec("cars", "cars-1", DatabaseRole.EDGE, "z1")
CLOUD = DatabaseSpec("fleet", "fleet-1", DatabaseRole.CLOUD, "z1")


def told(revision: int, *databases: DatabaseSpec, peers: dict[str, str] | None = None) -> Assignment:
    return replace(assignment(revision), databases=databases, database_peers={"fleet": peers or {}})


def reports(agent: AgentLoop) -> list[DatabaseReport]:
    return list(agent.current().databases)


def serving(agent: AgentLoop) -> bool:
    found = reports(agent)
    return bool(found) and all(report.state is ProcessState.RUNNING for report in found)


async def until_told(folder: Path, node: str, what: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            seen = folder / "data" / node / "told.json"
            if seen.exists() and what(json.loads(seen.read_text())):
                return
            await asyncio.sleep(0.02)


async def started(site: Site, *databases: DatabaseSpec) -> AgentLoop:
    await site.publish(told(1, *databases))
    agent = site.agent()
    await turns(agent, lambda: serving(agent))
    return agent


def test_databases_run_beside_brokers_and_are_reported_with_ports_and_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            await site.publish(replace(assignment(1, "b-1"), databases=(EDGE, CLOUD)))
            agent = site.agent()
            await turns(agent, lambda: serving(agent) and agent.settled)
            await turns(agent, lambda: True)
            edge, cloud = (await site.reported()).databases
            assert edge.public_key is not None and len(edge.public_key) == 64
            assert (edge.mysql_port, edge.postgres_port) == (0, 0)
            ports = {edge.http_port, cloud.http_port, cloud.mysql_port, cloud.postgres_port}
            assert len(ports) == 4 and all(ports)
            assert (cloud.public_key, cloud.owner, edge.owner) == (None, True, None)
            assert [b.name for b in (await site.reported()).brokers] == ["b-1"]

    asyncio.run(main())


def test_a_restarted_agent_adopts_running_databases(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            before = reports(await started(site, EDGE))
            again = site.agent()
            said = await turns(again, lambda: serving(again))
            assert f"adopted cars-1, running as pid {before[0].pid}" in said[0]
            assert (reports(again)[0].pid, reports(again)[0].http_port) == (before[0].pid, before[0].http_port)

    asyncio.run(main())


def test_a_killed_database_comes_back_on_its_ports_with_its_key(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, EDGE)
            [before] = reports(agent)
            assert before.pid is not None
            os.kill(before.pid, signal.SIGKILL)
            await turns(agent, lambda: serving(agent) and reports(agent)[0].pid != before.pid)
            [after] = reports(agent)
            assert (after.http_port, after.public_key) == (before.http_port, before.public_key)

    asyncio.run(main())


def test_trust_is_told_to_a_running_database_without_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, CLOUD)
            [before] = reports(agent)
            newest = told(2, replace(CLOUD, trust={"cars-1": "ab"}))
            await site.publish(newest)
            said = await turns(agent, lambda: agent.journal.assignment == newest)
            assert "told fleet-1 what has changed" in said[-1]
            await until_told(tmp_path, "fleet-1", lambda c: c["spec"]["trust"] == {"cars-1": "ab"})
            assert reports(agent)[0].pid == before.pid and serving(agent)

    asyncio.run(main())


def test_a_node_that_gets_a_peer_starts_anew_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, CLOUD)
            [before] = reports(agent)
            await site.publish(told(2, CLOUD, peers={"fleet-1": "here:1", "fleet-2": "there:2"}))
            await turns(agent, lambda: serving(agent) and reports(agent)[0].pid != before.pid)
            await until_told(tmp_path, "fleet-1", lambda c: c["peers"] == {"fleet-2": "there:2"})

    asyncio.run(main())


def test_a_spec_that_is_read_at_the_start_restarts_the_process_and_only_that_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, EDGE, CLOUD)
            edge, cloud = reports(agent)
            await site.publish(told(2, replace(EDGE, memory_bytes_max=1 << 20), CLOUD))
            await turns(agent, lambda: serving(agent) and reports(agent)[0].pid != edge.pid)
            assert reports(agent)[1].pid == cloud.pid
            assert reports(agent)[0].http_port == edge.http_port
            await until_told(tmp_path, "cars-1", lambda c: c["spec"]["memory_bytes_max"] == 1 << 20)

    asyncio.run(main())


def test_a_node_starts_once_it_knows_the_ports_of_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            await site.publish(told(1, CLOUD, peers={"fleet-1": "", "fleet-2": ""}))
            agent = site.agent()
            said = await turns(agent, lambda: bool(reports(agent)) and reports(agent)[0].http_port > 0)
            said += [await agent.turn() for _ in range(3)]
            assert reports(agent)[0].state is ProcessState.STARTING and reports(agent)[0].pid is None
            assert any("fleet-1 waits for the port of fleet-2" in s for s in said) and not serving(agent)
            here = f"127.0.0.1:{reports(agent)[0].http_port}"
            await site.publish(told(2, CLOUD, peers={"fleet-1": here, "fleet-2": "127.0.0.1:9"}))
            await turns(agent, lambda: serving(agent))
            await until_told(tmp_path, "fleet-1", lambda c: c["peers"] == {"fleet-2": "127.0.0.1:9"})

    asyncio.run(main())


def test_a_node_does_not_wait_for_ever_for_an_agent_that_is_away(tmp_path: Path) -> None:
    class Ahead(SystemClock):
        ahead_ms = 0.0

        def monotonic_ms(self) -> float:
            return super().monotonic_ms() + self.ahead_ms

    async def main() -> None:
        async with site_in(tmp_path) as site:
            site.clock = clock = Ahead()
            await site.publish(told(1, CLOUD, peers={"fleet-2": ""}))
            agent = site.agent()
            for _ in range(5):
                await agent.turn()
            assert not serving(agent)
            clock.ahead_ms = 16_000.0
            await turns(agent, lambda: serving(agent))

    asyncio.run(main())


def test_a_database_that_is_not_assigned_any_more_is_stopped_and_its_flash_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, EDGE)
            await site.publish(told(2))
            await turns(agent, lambda: not agent.journal.databases)
            assert not reports(agent) and (tmp_path / "data" / "cars-1" / "key").exists()

    asyncio.run(main())


def test_a_superseded_agent_stops_its_databases(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = await started(site, EDGE)
            later = site.agent()
            await later.turn()
            with pytest.raises(Superseded):
                await agent.turn()
            assert not serving(agent)

    asyncio.run(main())


def test_an_assignment_and_a_journal_of_before_databases_load(tmp_path: Path) -> None:
    plain = to_plain(assignment(1, "b-1"))
    del plain["databases"], plain["database_peers"]
    assert from_plain(Assignment, plain) == assignment(1, "b-1")
    file = tmp_path / "journal.json"
    file.write_text(json.dumps({"assignment": plain, "processes": {"b-1": {"port": 9, "pid": 1, "start_time": 2}}}))
    assert JournalFile(file).load().processes["b-1"].mysql_port == 0


def test_a_node_of_before_the_postgres_wire_keeps_running_and_has_a_port_for_it_when_it_starts_anew(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            before = reports(await started(site, CLOUD))[0]
            journal = site.folder / "journal.json"
            old = json.loads(journal.read_text())
            del old["databases"][CLOUD.node]["postgres_port"]
            journal.write_text(json.dumps(old))
            config = site.folder / "run" / CLOUD.node / "config.json"
            started_with = json.loads(config.read_text())
            del started_with["spec"]["postgres_port"]
            config.write_text(json.dumps(started_with))
            again = site.agent()
            await turns(again, lambda: serving(again))
            assert (reports(again)[0].pid, reports(again)[0].postgres_port) == (before.pid, 0)
            assert before.pid is not None
            os.kill(before.pid, signal.SIGKILL)
            await turns(again, lambda: serving(again) and reports(again)[0].pid != before.pid)
            assert reports(again)[0].postgres_port and reports(again)[0].mysql_port == before.mysql_port

    asyncio.run(main())
