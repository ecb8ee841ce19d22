"""WALs change one broker at a time, whatever was interrupted where."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controlplane.apply.staging import staged, waits_for_its_turn
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
from dataplane.ledger.state import Broker, BrokerStatus, CellState, WalState
from providers.base.registry import StoreAddress

BUCKET = StoreAddress("gcp", "cell", "region")
NODES = (1, 2, 3, 4)


def wal(mode: WalMode, node: int) -> WalSpec:
    return WalSpec(mode, volume=None if mode is WalMode.OBJECT else f"c-b-{node}-wal")


def told(modes: dict[int, WalMode]) -> dict[str, Assignment]:
    """Two agents with two brokers each."""
    brokers = {n: BrokerSpec(n, f"b-{n}", f"z{n % 2}", wal(mode, n)) for n, mode in modes.items()}
    return {
        f"c-z{zone}": Assignment(
            "c",
            "c",
            f"c-z{zone}",
            f"z{zone}",
            Generation(1, 1),
            BUCKET,
            tuple(b for n, b in brokers.items() if n % 2 == zone),
        )
        for zone in (0, 1)
    }


def cell(modes: dict[int, WalMode], **status: BrokerStatus) -> CellState:
    brokers = {
        n: Broker(n, 1, f"b-{n}", f"z{n % 2}", "h", 1, 2, WalState(mode.value, ["x"], volume=wal(mode, n).volume))
        for n, mode in modes.items()
    }
    for name, value in status.items():
        brokers[int(name[1:])].status = value
    return CellState(brokers=brokers)


def modes_of(assignments: dict[str, Assignment]) -> dict[int, WalMode]:
    return {b.node_id: b.wal.mode for one in assignments.values() for b in one.brokers}


BEFORE = dict.fromkeys(NODES, WalMode.REGIONAL_BLOCK)
AFTER = dict.fromkeys(NODES, WalMode.OBJECT)


def test_the_first_broker_changes_while_all_others_keep_what_they_have() -> None:
    now = modes_of(staged(told(AFTER), told(BEFORE), cell(BEFORE), {}))
    assert now == {**BEFORE, 1: WalMode.OBJECT}


def test_the_next_waits_until_the_one_before_serves_on_its_new_wal() -> None:
    begun = {**BEFORE, 1: WalMode.OBJECT}
    for state in (cell(BEFORE), cell(begun, b1=BrokerStatus.FENCED), cell(begun, b1=BrokerStatus.GONE)):
        assert modes_of(staged(told(AFTER), told(begun), state, {})) == begun
    assert modes_of(staged(told(AFTER), told(begun), cell(begun), {})) == {**begun, 2: WalMode.OBJECT}


@pytest.mark.parametrize("status", [BrokerStatus.FENCED, BrokerStatus.GONE])
def test_nobody_else_changes_while_a_broker_is_down_but_its_own_change_is_not_held_up(status: BrokerStatus) -> None:
    now = modes_of(staged(told(AFTER), told(BEFORE), cell(BEFORE, b3=status), {}))
    assert now == {**BEFORE, 3: WalMode.OBJECT}
    two_down = cell(BEFORE, b3=status, b4=status)
    assert modes_of(staged(told(AFTER), told(BEFORE), two_down, {})) == BEFORE


def test_a_new_broker_begins_with_what_is_wanted_and_nothing_else_of_an_assignment_is_held_back() -> None:
    wanted = {agent: replace(one, express={"z": BUCKET}) for agent, one in told(AFTER).items()}
    without_4 = {n: mode for n, mode in BEFORE.items() if n != 4}
    now = staged(wanted, {**told(without_4), "c-z9": None}, cell(without_4), {})
    assert modes_of(now) == {**BEFORE, 1: WalMode.OBJECT, 4: WalMode.OBJECT}
    assert all(one.express == {"z": BUCKET} for one in now.values())


@pytest.mark.parametrize("seed", range(40))
def test_from_any_interruption_all_change_and_never_two_at_once(seed: int) -> None:
    """The control plane may vanish, brokers may crash and the wish may be turned round at any turn: of the brokers that
    were up, at most one is ever away for its WAL's sake, and in the end all have what is wanted."""
    rng = random.Random(seed)
    published, state, wanted = told(BEFORE), cell(BEFORE), AFTER
    for turn in range(200):
        if turn < 100 and rng.random() < 0.05:
            wanted = rng.choice((BEFORE, AFTER))
        now = staged(told(wanted), published, state, {})
        away = [n for n, mode in modes_of(now).items() if state.brokers[n].wal.mode != mode.value]
        assert len(away) <= 1, "each of these restarts"
        published = now
        for one in published.values():
            for broker in one.brokers:
                seen = state.brokers[broker.node_id]
                if turn < 100 and rng.random() < 0.03:
                    seen.status = BrokerStatus.FENCED
                elif rng.random() < 0.3:  # it comes back with what it was told
                    seen.status = BrokerStatus.LIVE
                    seen.wal = WalState(broker.wal.mode.value, ["x"], volume=broker.wal.volume)
    assert modes_of(published) == wanted


def reports_of(
    published: Mapping[str, Assignment], *, outdated: frozenset[int] = frozenset(), behind: frozenset[str] = frozenset()
) -> dict[str, AgentReport | None]:
    """What agents say that carried out what was published, but for those `behind`; brokers that are `outdated` run
    with the settings they had."""
    found: dict[str, AgentReport | None] = {}
    for agent, one in published.items():
        brokers = tuple(
            BrokerReport(b.node_id, b.name, 100, ProcessState.RUNNING, "h", 1, "", b.node_id in outdated)
            for b in one.brokers
        )
        generation = Generation(1, 0) if agent in behind else one.generation
        found[agent] = AgentReport(agent, one.zone, 1, "i", generation, brokers)
    return found


def quicker(assignments: Mapping[str, Assignment]) -> dict[str, Assignment]:
    return {agent: replace(one, settings=BrokerSettings(100)) for agent, one in assignments.items()}


def test_settings_go_from_agent_to_agent_and_the_next_waits_until_the_one_before_serves_with_them() -> None:
    before, state = told(BEFORE), cell(BEFORE)
    wanted = quicker(before)
    first = staged(wanted, before, state, reports_of(before))
    assert first == {"c-z0": wanted["c-z0"], "c-z1": before["c-z1"]}
    newer = {**first, "c-z0": replace(first["c-z0"], generation=Generation(1, 2))}
    for waits in (
        reports_of(newer, outdated=frozenset({2})),
        reports_of(newer, behind=frozenset({"c-z0"})),
        {**reports_of(newer), "c-z0": None},
    ):
        assert staged(wanted, newer, state, waits)["c-z1"] == before["c-z1"]
    assert staged(wanted, newer, cell(BEFORE, b4=BrokerStatus.GONE), reports_of(newer))["c-z1"] == before["c-z1"]
    assert staged(wanted, newer, state, reports_of(newer)) == wanted
    assert waits_for_its_turn(wanted["c-z1"], newer["c-z1"]) and not waits_for_its_turn(wanted["c-z0"], newer["c-z0"])


def test_an_agent_that_is_down_holds_up_the_others_settings_and_not_its_own() -> None:
    before = told(BEFORE)
    silent: dict[str, AgentReport | None] = {**reports_of(before), "c-z1": None}
    assert staged(quicker(before), before, cell(BEFORE), silent) == {**before, "c-z1": quicker(before)["c-z1"]}


def test_wals_change_first_and_then_settings() -> None:
    now = staged(quicker(told(AFTER)), told(BEFORE), cell(BEFORE), reports_of(told(BEFORE)))
    assert modes_of(now) == {**BEFORE, 1: WalMode.OBJECT}
    assert {one.settings for one in now.values()} == {BrokerSettings()}


def test_an_agent_that_ran_nothing_begins_with_the_new_settings() -> None:
    before = {**told(BEFORE), "c-z1": replace(told(BEFORE)["c-z1"], brokers=())}
    now = staged(quicker(told(BEFORE)), before, cell({2: BEFORE[2], 4: BEFORE[4]}), reports_of(before))
    assert now == quicker(told(BEFORE))
