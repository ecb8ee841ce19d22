"""From what was read to what it means: a cluster's state, its brokers, its agents, in one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.apply.render import agent_name
from controlplane.plan.placement import PlacedBroker
from controlplane.plan.resolve import ResolvedCluster
from dataplane.contract.assignment import AgentReport, BrokerReport, Generation, ProcessState
from dataplane.ledger.state import BrokerStatus, CellState

READY = "Ready"
PROGRESSING = "Progressing"
DEGRADED = "Degraded"
SWITCHING = "Switching"
"""Of a broker: it serves, on another WAL or with other settings than it shall have."""
SPARE = "Spare"
"""Of a broker: it does not run, and will when the cell needs more of them."""
SLOW = "Slow"
"""Of a broker: it serves, and the cell's controller leads its partitions elsewhere meanwhile."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read of a cell. `reports` and `published` by zone; a zone whose agent never reported is absent."""

    cell: str
    state: CellState
    reports: Mapping[str, AgentReport]
    published: Mapping[str, Generation]
    broker_alive: Callable[[str, int], bool]
    """(zone, pid) → whether that process runs; always true where this host cannot know."""
    agent_pid: Callable[[str], int | None]
    """zone → pid of the agent that runs there, as far as this host can know."""
    waiting: frozenset[str] = frozenset()
    """Zones whose brokers have not been told their newest settings yet: their turn to start anew comes."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster, or a database, as it is. `plain` is its status document; `ready` what `up` and a step wait for."""

    state: str
    sentence: str
    plain: dict[str, Any]

    @property
    def ready(self) -> bool:
        return self.state == READY


def view(resolved: ResolvedCluster, observed: Observed, *, was_ready: bool) -> ClusterView:
    """Compare what shall run with what does. `was_ready`: it has been Ready before, so that a lack is a degradation and
    no start.
    """
    agents = [agent_view(zone, observed) for zone in sorted(observed.published)]
    brokers = []
    lacking, slow, spare = [], [], 0
    for placed in resolved.brokers:
        report = _report_of(observed, placed.zone, placed.node_id)
        state, why = _broker_state(placed, report, observed)
        in_ledger = observed.state.brokers.get(placed.node_id)
        brokers.append(
            {
                "id": placed.node_id,
                "name": placed.name,
                "zone": placed.zone,
                "spare": placed.spare > 0,
                "pid": report.pid if report is not None else None,
                "state": state,
                "host": report.host if report is not None else None,
                "kafkaPort": report.kafka_port if report is not None and report.kafka_port else None,
                "metrics": f"http://{report.metrics}/metrics" if report is not None and report.metrics else None,
                "epoch": in_ledger.epoch if in_ledger is not None else None,
                # The membership: what an ack of this broker means now.
                "walSides": list(in_ledger.wal.sides) if in_ledger is not None else None,
                "walMode": in_ledger.wal.mode if in_ledger is not None else None,
                "sentence": why,
            }
        )
        if state == SLOW:
            slow.append(f"{placed.name} {why}")
        elif placed.spare:
            spare += state == SPARE
            if state in (ProcessState.EXITED, ProcessState.HELD, "Fenced"):  # nobody waits for it, and it is shown
                slow.append(f"{placed.name}: {why}")
        elif state != READY:
            lacking.append(why if why.startswith(placed.name) else f"{placed.name}: {why}")
    behind = [a for a in agents if not a["current"]]
    controller = observed.state.controller
    if not lacking and not behind and (controller is None or not observed.state.is_live(controller)):
        lacking.append("no controller is elected yet")
    missing = [f"agent {a['zone']}: {a['sentence']}" for a in behind]
    if not lacking and not missing:
        # An agent that is down takes nothing away from the clients; it is shown, and the cluster is not Ready.
        missing = [f"agent {a['zone']} is down" for a in agents if a["state"] == "Down"]
    if lacking or missing:
        # A change of WALs or settings is meant, and takes nothing from the clients.
        degraded = was_ready and not any(b["state"] == SWITCHING for b in brokers)
        state, sentence = (DEGRADED if degraded else PROGRESSING), "; ".join((lacking + missing)[:4])
    else:
        # A slow broker takes nothing from the clients: others lead what it led. It is shown, and nothing waits for it.
        serve = f"{len(brokers) - spare} brokers serve" + (
            f", {spare} {'is' if spare == 1 else 'are'} spare" if spare else ""
        )
        state, sentence = READY, "; ".join([serve, *slow])
    addresses = [f"{b['host']}:{b['kafkaPort']}" for b in brokers if b["kafkaPort"]]
    serving = [
        f"{b['host']}:{b['kafkaPort']}" for b in brokers if b["kafkaPort"] and b["state"] in (READY, SLOW, SWITCHING)
    ]
    plain = {
        "cloud": resolved.cloud,
        "state": state,
        "sentence": sentence,
        "wal": {"mode": resolved.choice.mode.value, "reasons": list(resolved.choice.reasons)},
        "bootstrap": next(iter(serving or addresses), None),
        "bootstrapServers": ",".join(serving or addresses) or None,
        "controller": controller.node if controller is not None else None,
        "term": observed.state.term,
        "brokers": brokers,
        "agents": [{k: v for k, v in a.items() if k != "current"} for a in agents],
    }
    return ClusterView(state, sentence, plain)


def _report_of(observed: Observed, zone: str, node_id: int) -> BrokerReport | None:
    report = observed.reports.get(zone)
    return next((b for b in report.brokers if b.node_id == node_id), None) if report is not None else None


def _switches(placed: PlacedBroker, observed: Observed) -> bool:
    broker = observed.state.brokers.get(placed.node_id)
    return broker is not None and broker.wal.mode != placed.wal.mode.value


def _broker_state(placed: PlacedBroker, report: BrokerReport | None, observed: Observed) -> tuple[str, str]:
    node_id, zone, mode = placed.node_id, placed.zone, placed.wal.mode.value
    if report is None:
        return "Pending", "its agent has not reported it yet"
    if report.state is ProcessState.SPARE:
        return SPARE, "does not run, for the others are enough"
    if report.state in (ProcessState.EXITED, ProcessState.HELD, ProcessState.STOPPED):
        return report.state.value, report.sentence
    if report.pid is not None and not observed.broker_alive(zone, report.pid):
        return "Exited", f"process {report.pid} is gone, and its agent has not said so yet"
    broker = observed.state.brokers.get(node_id)
    if broker is None:
        return "Starting", "its process runs, and it has not joined yet"
    if broker.status is BrokerStatus.FENCED:
        return "Fenced", f"epoch {broker.epoch} is fenced: {broker.fenced_reason}"
    if broker.status is BrokerStatus.GONE:
        return "Starting", f"epoch {broker.epoch} is over, and it has not joined again yet"
    if report.state is not ProcessState.RUNNING:
        return report.state.value, report.sentence
    if _switches(placed, observed):
        return SWITCHING, f"serves on wal {broker.wal.mode}, and is to change to {mode}"
    if zone in observed.waiting or report.outdated:
        return SWITCHING, "serves with the settings it had, and is to start anew"
    if report.slow is not None:
        return SLOW, f"is slow, and its partitions are led elsewhere: {report.slow}"
    return READY, f"serves under epoch {broker.epoch}"


def agent_view(zone: str, observed: Observed) -> dict[str, Any]:
    """A zone's agent as status shows it; `current`: whether it has carried out its newest assignment."""
    report, wanted = observed.reports.get(zone), observed.published[zone]
    alive = observed.agent_pid(zone)
    pid = alive if alive is not None else (report.pid if report is not None else None)
    current = report is not None and report.generation is not None and report.generation >= wanted
    if report is None:
        sentence = "has not reported yet"
    elif report.refused is not None:
        sentence = f"refused its assignment: {report.refused}"
    elif not current:
        sentence = "has not carried out its newest assignment yet"
    else:
        sentence = "carries out its newest assignment"
    return {
        "name": agent_name(observed.cell, zone),
        "zone": zone,
        "pid": pid,
        "state": "Running" if alive is not None else "Down",
        "sentence": sentence,
        "autonomySecondsLeft": report.autonomy_seconds_left if report is not None else None,
        "metrics": f"http://{report.metrics}/metrics" if report is not None and report.metrics else None,
        "current": current,
    }
