"""A database as it is, in one sentence: its processes, its owner, and which edges' keys are pinned. Pure.

An edge's key is pinned when it is first seen. Whoever can write an agent's reports (they come over the cell's bucket)
can say which it is; a different one later is shown, and taken over only when somebody says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.apply.observe import DEGRADED, PROGRESSING, READY, ClusterView, Observed, agent_view
from controlplane.plan.databases import ResolvedDatabase, shown_via
from dataplane.contract.assignment import DatabaseReport, ProcessState
from dataplane.contract.database import DatabaseRole, DatabaseSpec

SAID_MAX = 4


def view_database(
    resolved: ResolvedDatabase, observed: Observed, before: Mapping[str, Any], *, waits_for: str | None = None
) -> ClusterView:
    """Compare what shall run with what does. `before`: the status of the last look, of which the pins stay.
    `waits_for`: why edges that were never told anything are not told to run yet."""
    pins, strangers = pinned(resolved, observed, before.get("pins", {}))
    agents = [agent_view(zone, observed) for zone in sorted(observed.published)]
    nodes, lacking = [], []
    for spec in resolved.nodes:
        report = _report_of(observed, spec)
        state, why = _state(spec, report, observed, waits_for)
        if state == READY and spec.node in strangers:
            why = f"its key is another one than before, and is not trusted: `yunhe database trust {spec.node}`"
        if state != READY or spec.node in strangers:
            lacking.append(why if why.startswith(spec.node) else f"{spec.node}: {why}")
        nodes.append(_node(spec, report, state, why, trusted=spec.node in pins and spec.node not in strangers))
    owners = [node["name"] for node in nodes if node["owner"] and node["state"] == READY]
    said = any(node["owner"] is not None for node in nodes)
    mine = [agent for agent in agents if agent["zone"] in resolved.zones]
    lacking += [f"agent {a['zone']}: {a['sentence']}" for a in mine if not a["current"]]
    if not lacking:
        lacking += [f"agent {a['zone']} is down" for a in mine if a["state"] == "Down"]
    if not lacking and said and len(owners) != 1:
        lacking.append(f"{' and '.join(owners)} say that they own it" if owners else "no node owns it yet")
    if lacking:
        more = f"; and {len(lacking) - SAID_MAX} more" if len(lacking) > SAID_MAX else ""
        state = DEGRADED if before.get("wasReady") else PROGRESSING
        sentence = "; ".join(lacking[:SAID_MAX]) + more
    else:
        state, sentence = READY, _ready_sentence(resolved, owners)
    plain = {
        "cloud": resolved.cloud,
        "role": resolved.role.value,
        "state": state,
        "sentence": sentence,
        "owner": owners[0] if len(owners) == 1 else None,
        "uploadTo": resolved.upload.to if resolved.upload is not None else None,
        "uploadVia": shown_via(resolved.upload),
        "nodes": nodes,
        "pins": pins,
        "strangers": strangers,
        "agents": [{k: v for k, v in agent.items() if k != "current"} for agent in agents],
    }
    return ClusterView(state, sentence, plain)


def pinned(
    resolved: ResolvedDatabase, observed: Observed, pins: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Each edge's key: those pinned, and of edges that have shown another one since, that one."""
    if resolved.role is not DatabaseRole.EDGE:
        return {}, {}
    kept, strangers = {}, {}
    for spec in resolved.nodes:
        report = _report_of(observed, spec)
        shown = report.public_key if report is not None else None
        pin = pins.get(spec.node, shown)
        if pin is not None:
            kept[spec.node] = pin
        if shown is not None and shown != pin:
            strangers[spec.node] = shown
    return kept, strangers


def _report_of(observed: Observed, spec: DatabaseSpec) -> DatabaseReport | None:
    report = observed.reports.get(spec.zone)
    return next((d for d in report.databases if d.node == spec.node), None) if report is not None else None


def _state(
    spec: DatabaseSpec, report: DatabaseReport | None, observed: Observed, waits_for: str | None
) -> tuple[str, str]:
    if report is None:
        return "Pending", waits_for or "its agent has not reported it yet"
    if report.state in (ProcessState.EXITED, ProcessState.HELD, ProcessState.STOPPED):
        return report.state.value, report.sentence or "its process does not run"
    if report.pid is not None and not observed.broker_alive(spec.zone, report.pid):
        return "Exited", f"process {report.pid} is gone, and its agent has not said so yet"
    if report.state is not ProcessState.RUNNING:
        return "Starting", report.sentence or "its process starts"
    return READY, "serves"


def _node(spec: DatabaseSpec, report: DatabaseReport | None, state: str, why: str, *, trusted: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": spec.node,
        "zone": spec.zone,
        "pid": report.pid if report is not None else None,
        "state": state,
        "host": report.host if report is not None else None,
        "httpPort": report.http_port or None if report is not None else None,
        "mysqlPort": report.mysql_port or None if report is not None else None,
        "postgresPort": report.postgres_port or None if report is not None else None,
        "owner": report.owner if report is not None else None,
        "sentence": why,
    }
    if spec.role is DatabaseRole.EDGE:
        shown["publicKey"] = report.public_key if report is not None else None
        shown["trusted"] = trusted
    return shown


def _ready_sentence(resolved: ResolvedDatabase, owners: list[str]) -> str:
    count = len(resolved.nodes)
    if resolved.role is DatabaseRole.EDGE:
        return f"{count} edges serve" if count > 1 else "1 edge serves"
    served = f"{count} nodes serve" if count > 1 else "1 node serves"
    return f"{served}, {owners[0]} owns it" if owners else served
