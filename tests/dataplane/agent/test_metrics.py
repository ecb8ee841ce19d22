"""An agent's page: what it runs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from dataplane.agent.metrics import AgentMetrics
from tests.dataplane.agent.test_agent import assignment, running, site_in, turns
from tests.prometheus_text import Pages, read


def test_an_agent_tells_of_each_process_whether_it_serves_and_how_often_it_was_started(tmp_path: Path) -> None:
    async def main() -> None:
        async with site_in(tmp_path) as site:
            agent = site.agent()
            metrics = AgentMetrics("cell", agent, lambda: (), site.clock)

            def page() -> Pages:
                return read(metrics.page().decode())

            def of(name: str, process: str) -> float:
                return page().value(f"yunhe_agent_process_{name}", process=process, kind="broker")

            await agent.turn()
            assert page().value("yunhe_agent_assignment_revision") == 0
            assert not page().families["yunhe_agent_process_serves"].samples
            await site.publish(assignment(3, "b-1", "b-2"))
            await turns(agent, running(agent, 2))
            assert page().value("yunhe_agent_info", cell="cell", agent="a1", zone="z1") == 1
            assert page().value("yunhe_agent_assignment_revision") == 3
            assert of("serves", "b-1") == of("serves", "b-2") == 1
            assert of("starts_total", "b-1") == of("starts_total", "b-2") == 1
            pid = agent.current().brokers[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            while of("serves", "b-1"):  # noqa: ASYNC110 -- the kernel tells nobody here
                await asyncio.sleep(0.005)
            assert of("serves", "b-2") == 1
            await turns(agent, running(agent, 2))
            assert (of("serves", "b-1"), of("starts_total", "b-1"), of("starts_total", "b-2")) == (1, 2, 1)
            # The bucket goes away: it says so, and how old its knowledge is.
            assert page().value("yunhe_agent_autonomous") == 0
            site.bucket.down = True
            await turns(agent, lambda: agent.autonomous)
            assert page().value("yunhe_agent_autonomous") == 1
            assert page().value("yunhe_agent_mailbox_age_seconds") > 0

    asyncio.run(main())
