"""One broker at a time changes its WAL: which of the changes that are wanted may be told to the agents now. Pure.

    told the old WAL ──(all others serve as they were told)──► told the new one ──► hands over, restarts ──► serves

A level, not a sequence: it is asked again with every turn, from what agents were told and what the cell's ledger
says, so that whoever comes after a crash goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dataplane.contract.assignment import Assignment, BrokerSpec
from dataplane.ledger.state import BrokerStatus, CellState


def staged(
    wanted: Mapping[str, Assignment], told: Mapping[str, Assignment | None], state: CellState
) -> dict[str, Assignment]:
    """`wanted`, with every broker's WAL left as it was `told` but for the one whose turn it is to change. Both by
    agent. Brokers that were told nothing yet are new, and begin with what is wanted."""
    before = {b.node_id: b for one in told.values() if one is not None for b in one.brokers}
    shall = {b.node_id: b for one in wanted.values() for b in one.brokers}
    changing = sorted(node for node in shall.keys() & before.keys() if shall[node].wal != before[node].wal)
    unsettled = {node for node in shall.keys() & before.keys() if not serves(before[node], state)}
    # A broker that does not serve is no hindrance to its own change: perhaps it is its WAL that it cannot open.
    turn = next((node for node in changing if unsettled <= {node}), None)

    def now(broker: BrokerSpec) -> BrokerSpec:
        if broker.node_id in changing and broker.node_id != turn:
            return replace(broker, wal=before[broker.node_id].wal)
        return broker

    return {agent: replace(one, brokers=tuple(map(now, one.brokers))) for agent, one in wanted.items()}


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
