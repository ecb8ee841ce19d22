"""An agent's page of metrics: what it runs, and how well it hears of what it shall run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataplane.agent.loop import AgentLoop
from dataplane.contract.assignment import ProcessState
from dataplane.metrics.page import Page
from dataplane.metrics.process import ProcessFamilies, write_stores
from providers.base.blocking import StoreHealth
from providers.base.clock import Clock

PROCESSES_MAX = 200
"""Told by name, the first by name; an agent has a few brokers, and a vehicle's worth of edges."""


class AgentMetrics:
    """Over its loop."""

    def __init__(self, cell: str, loop: AgentLoop, stores: Callable[[], Sequence[StoreHealth]], clock: Clock) -> None:
        self._cell = cell
        self._loop = loop
        self._stores = stores
        self._process = ProcessFamilies(clock.wall_ms())

    def page(self) -> bytes:
        """As of now."""
        page, report = Page(), self._loop.current()
        generation = report.generation
        who = {"cell": self._cell, "agent": report.agent, "zone": report.zone}
        page.gauge("yunhe_agent_info", "Who the agent is; the value is 1.", [(who, 1)])
        page.gauge(
            "yunhe_agent_autonomous",
            "1 while the bucket does not answer, and it goes on by its journal alone.",
            self._loop.autonomous,
        )
        page.gauge(
            "yunhe_agent_mailbox_age_seconds",
            "Time since it last read the end of its mailbox, where assignments are.",
            self._loop.mailbox_age_ms / 1000,
        )
        page.gauge(
            "yunhe_agent_assignment_revision",
            "Revision of the assignment that it carries out; 0: none yet.",
            generation.revision if generation is not None else 0,
        )
        page.gauge(
            "yunhe_agent_assignment_refused", "1 while it refuses the newest assignment.", report.refused is not None
        )
        brokers = [({"process": b.name, "kind": "broker"}, b.state) for b in report.brokers]
        databases = [({"process": d.node, "kind": "database"}, d.state) for d in report.databases]
        processes = sorted([*brokers, *databases], key=lambda one: one[0]["process"])[:PROCESSES_MAX]
        page.gauge(
            "yunhe_agent_process_serves",
            "1 while the process serves; spare brokers that are not needed are left out.",
            [(who, state is ProcessState.RUNNING) for who, state in processes if state is not ProcessState.SPARE],
        )
        started = self._loop.starts
        page.counter(
            "yunhe_agent_process_starts_total",
            "Starts of the process by this agent.",
            [(who, started.get(who["process"], 0)) for who, _ in processes],
        )
        write_stores(page, self._stores())
        self._process.write(page)
        return page.text()
