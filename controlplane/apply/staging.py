"""Brokers change one after the other: which of the changes that are wanted may be told to the agents now. Pure.

WALs change first, a broker at a time; then what all brokers read at their start (settings, listeners, rights), an
agent at a time, whose brokers start anew one by one.

    told the old WAL ──(all others serve as they were told)──► told the new one ──► hands over, restarts ──► serves

A level, not a sequence: it is asked again with every turn, from what agents were told and what the cell's ledger
says, so that whoever comes after a crash goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dataplane.contract.assignment import AgentReport, Assignment, BrokerSpec, ProcessState
from dataplane.ledger.state import BrokerStatus, CellState


def staged(
    wanted: Mapping[str, Assignment],
    told: Mapping[str, Assignment | None],
    state: CellState,
    reports: Mapping[str, AgentReport | None],
) -> dict[str, Assignment]:
    """`wanted`, with everything left as it was `told` but for the one whose turn it is to change. All by agent. Brokers
    that were told nothing yet are new, and begin with what is wanted, but for the settings of their agent's others."""
    wals = _wals(wanted, told, state)
    return _settings(wals, told, state, reports, turn_may_come=wals == wanted)


def waits_for_its_turn(wanted: Assignment, told: Assignment | None) -> bool:
    """Whether an agent has not been told yet what its brokers shall read at their next start."""
    if told is None or not told.brokers or not wanted.brokers:
        return False
    return _read_at_start(wanted) != _read_at_start(told)


def _read_at_start(assignment: Assignment) -> object:
    return assignment.settings, assignment.security, {b.host for b in assignment.brokers}


def _settings(
    wanted: dict[str, Assignment],
    told: Mapping[str, Assignment | None],
    state: CellState,
    reports: Mapping[str, AgentReport | None],
    *,
    turn_may_come: bool,
) -> dict[str, Assignment]:
    before = {agent: one for agent, one in told.items() if one is not None and one.brokers}
    changing = [
        agent for agent in sorted(wanted.keys() & before.keys()) if waits_for_its_turn(wanted[agent], told[agent])
    ]
    unsettled = {agent for agent, one in before.items() if not _settled(one, reports.get(agent), state)}
    # As with WALs: an agent whose brokers do not serve is no hindrance to its own change.
    turn = next((agent for agent in changing if unsettled <= {agent}), None) if turn_may_come else None

    def now(agent: str) -> Assignment:
        one = wanted[agent]
        if agent not in changing or agent == turn:
            return one
        hosts = {b.node_id: b.host for b in before[agent].brokers}
        brokers = tuple(replace(b, host=hosts.get(b.node_id, b.host)) for b in one.brokers)
        return replace(one, settings=before[agent].settings, security=before[agent].security, brokers=brokers)

    return {agent: now(agent) for agent in wanted}


def _settled(told: Assignment, report: AgentReport | None, state: CellState) -> bool:
    """Whether an agent's brokers all serve with what it was told."""
    if report is None or report.generation is None or report.generation < told.generation:
        return False
    spare = {b.node_id for b in report.brokers if b.state is ProcessState.SPARE}
    settled = all(b.settled for b in report.brokers)
    return settled and all(broker.node_id in spare or serves(broker, state) for broker in told.brokers)


def _wals(
    wanted: Mapping[str, Assignment], told: Mapping[str, Assignment | None], state: CellState
) -> dict[str, Assignment]:
    before = {b.node_id: b for one in told.values() if one is not None for b in one.brokers}
    shall = {b.node_id: b for one in wanted.values() for b in one.brokers}
    changing = sorted(node for node in shall.keys() & before.keys() if shall[node].wal != before[node].wal)
    unsettled = {
        node
        for node in shall.keys() & before.keys()
        if not (_is_idle(before[node], state) or serves(before[node], state))
    }
    # A broker that does not serve is no hindrance to its own change: perhaps it is its WAL that it cannot open.
    turn = next((node for node in changing if unsettled <= {node}), None)

    def now(broker: BrokerSpec) -> BrokerSpec:
        if broker.node_id in changing and broker.node_id != turn:
            return replace(broker, wal=before[broker.node_id].wal)
        return broker

    return {agent: replace(one, brokers=tuple(map(now, one.brokers))) for agent, one in wanted.items()}


def _is_idle(broker: BrokerSpec, state: CellState) -> bool:
    """Whether it is spare, and its last life, if it had one, is over."""
    found = state.brokers.get(broker.node_id)
    return broker.spare > 0 and (found is None or found.status is BrokerStatus.GONE)


def serves(broker: BrokerSpec, state: CellState) -> bool:
    """Whether the cell says that it is live on the WAL that it was told."""
    found = state.brokers.get(broker.node_id)
    return found is not None and found.status is BrokerStatus.LIVE and has_wal(broker, state)


def has_wal(broker: BrokerSpec, state: CellState) -> bool:
    """Whether its newest life has the WAL that it was told. Which sides count now is the cell's own affair."""
    found = state.brokers.get(broker.node_id)
    if found is None:
        return False
    wal, want = found.wal, broker.wal
    return (wal.mode, wal.volume, wal.express) == (want.mode.value, want.volume, want.express)
