"""Spare brokers of a zone: its agent starts and stops them by the newest word that any of its brokers passes on."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from dataplane.agent.loop import AgentLoop
from dataplane.contract.assignment import Assignment, BrokerSpec, ProcessState, SparesWanted, WalMode, WalSpec
from dataplane.contract.broker_config import BrokerConfig
from dataplane.contract.codec import from_json
from tests.dataplane.agent.test_agent import assignment, pids, site_in, states, turns


def spares_assignment(revision: int) -> Assignment:
    """One broker that lasts, and two spare ones."""
    brokers = tuple(
        BrokerSpec(i, f"b-{i}", "z1", WalSpec(WalMode.OBJECT), spare=rank) for i, rank in ((1, 0), (3, 1), (5, 2))
    )
    return replace(assignment(revision), brokers=brokers)


def say(agent: AgentLoop, name: str, *word: int) -> None:
    """As the broker of that name does."""
    ready = agent._folder_of(name).ready
    ready.write_text(json.dumps({**json.loads(ready.read_text()), "spares": list(word)}))


def test_spare_brokers_run_as_long_as_the_newest_word_of_any_broker_asks_for_them(tmp_path: Path) -> None:
    runs, spare = ProcessState.RUNNING, ProcessState.SPARE

    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(spares_assignment(1))
            said = await turns(agent, lambda: states(agent) == [runs, spare, spare] and agent.settled)
            assert not any("started b-3" in s for s in said)
            assert [b.sentence for b in agent.current().brokers[1:]] == ["is spare, and not needed now"] * 2
            say(agent, "b-1", 4, 0, 1)
            await turns(agent, lambda: states(agent) == [runs, runs, spare])
            config = from_json(BrokerConfig, agent._folder_of("b-3").config.read_bytes())
            assert config.spares == SparesWanted(4, 0, 1), "it knows what its peers may have forgotten"
            # What another broker says is newer by its term, and what comes late is older.
            say(agent, "b-3", 5, 0, 2)
            await turns(agent, lambda: states(agent) == [runs, runs, runs])
            say(agent, "b-1", 4, 9, 0)
            assert not any("stops" in s for s in await turns(agent, lambda: True))

            # An agent that starts anew remembers; so that a restart of a machine is no reason to stop anything.
            before = pids(agent)
            for name in ("b-1", "b-3", "b-5"):
                agent._folder_of(name).ready.unlink()
            reborn = site.agent()
            await reborn.turn()
            assert pids(reborn) == before
            record = reborn.journal.processes["b-1"]
            reborn._folder_of("b-1").ready.write_text(json.dumps({"pid": record.pid, "spares": [5, 1, 1]}))
            said = await turns(reborn, lambda: reborn.current().brokers[2].state is spare)
            assert any("stops b-5, which is spare" in s for s in said)
            assert states(reborn)[2] is spare and pids(reborn)[:2] == before[:2]

            # A cluster that comes later counts its controllers from one again.
            await site.publish(assignment(2))
            await turns(reborn, lambda: states(reborn) == [])
            await site.publish(spares_assignment(3))
            await turns(reborn, lambda: states(reborn) == [runs, spare, spare])
            assert reborn.journal.spares == SparesWanted()

    asyncio.run(main())


def test_a_spare_broker_that_becomes_a_lasting_one_starts_anew_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            await site.publish(spares_assignment(1))
            await turns(agent, lambda: agent.settled)
            say(agent, "b-1", 1, 0, 1)
            await turns(agent, lambda: agent.settled and states(agent)[1] is ProcessState.RUNNING)
            before = pids(agent)
            wanted = spares_assignment(2)
            ranks = (replace(wanted.brokers[1], spare=0), replace(wanted.brokers[2], spare=1))
            await site.publish(replace(wanted, brokers=(wanted.brokers[0], *ranks)))
            said = await turns(agent, lambda: agent.settled and states(agent)[:2] == [ProcessState.RUNNING] * 2)
            assert any("stops b-3, to take its new rank" in s for s in said)
            assert pids(agent)[0] == before[0] and pids(agent)[1] != before[1]

    asyncio.run(main())
