"""The pure decisions of failover: who is lost, who stands, who recovers, what is committed, who owns what."""

from __future__ import annotations

import dataclasses

import pytest

from dataplane.failover.detect import Heard, Sight, Verdict, judge
from dataplane.failover.takeover import able, least_loaded, select, spread, taker
from dataplane.ledger import commands as c
from dataplane.ledger.commands import CommittedObject, NodeEpoch, Range
from dataplane.ledger.state import BrokerStatus
from dataplane.wal.base import WalRecord
from providers.base.errors import Corrupt
from tests.dataplane.ledger.test_cell import Cell

TIMEOUT_MS = 1_500.0


def node(n: int) -> NodeEpoch:
    return NodeEpoch(n, 1)


def cell_of(brokers: int, controller: int | None = 1, wal: dict[str, object] | None = None) -> Cell:
    cell = Cell()
    shape = wal or {"mode": "object", "sides": ["object"], "volume": None, "volume_zones": [], "express": None}
    for n in range(1, brokers + 1):
        zone = f"z{(n - 1) % 2}"
        cell.ok(c.broker_joined(node(n), name=f"b{n}", zone=zone, host="h", kafka_port=n, peer_port=n, wal=shape))
    if controller is not None:
        cell.ok(c.controller_elected(1, node(controller)))
    return cell


def sight(me: int, heard: dict[int, bool], **changes: float) -> Sight:
    """At 100 s, everybody in `heard` just heard (value: they do not hear the controller either), the others never."""
    base = Sight(
        me=node(me),
        now_ms=100_000,
        serving_since_ms=0,
        ledger_read_ms=99_900,
        live_since_ms={},
        heard={n: Heard(node(n), 99_900, silent) for n, silent in heard.items()},
        session_timeout_ms=TIMEOUT_MS,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def verdict(cell: Cell, at: Sight) -> Verdict:
    return judge(cell.state, at)


def test_the_controller_fences_who_is_silent() -> None:
    assert verdict(cell_of(3), sight(1, {2: False})).fence == (node(3),)


@pytest.mark.parametrize(("silent_ms", "refused", "lost"), [(400, True, True), (400, False, False), (300, True, False)])
def test_a_quarter_of_a_session_is_enough_where_the_host_says_that_nobody_listens(
    silent_ms: float, refused: bool, lost: bool
) -> None:
    at = sight(1, {2: False, 3: False})
    heard = {**at.heard, 3: Heard(node(3), at.now_ms - silent_ms, False)}
    at = dataclasses.replace(at, heard=heard, refused=frozenset([node(3)] if refused else []))
    assert verdict(cell_of(3), at).fence == ((node(3),) if lost else ())


def test_nobody_is_declared_dead_while_the_bucket_does_not_answer() -> None:
    silent = sight(1, {2: False}, ledger_read_ms=90_000)
    assert verdict(cell_of(3), silent) == Verdict(
        False, (), False, "the bucket has not answered lately: nobody is declared dead meanwhile"
    )


def test_a_broker_that_was_itself_stopped_blames_nobody() -> None:
    assert not verdict(cell_of(3), sight(1, {}, serving_since_ms=99_000)).fence


def test_no_more_than_half_of_the_brokers_are_fenced_at_once() -> None:
    cell = cell_of(4)
    assert len(verdict(cell, sight(1, {})).fence) == 2
    cell.ok(
        c.broker_fenced(node(3), by=node(1), reason="silent"), c.broker_fenced(node(4), by=node(1), reason="silent")
    )
    assert verdict(cell, sight(1, {})).fence == ()


def fence_all_silent(cell: Cell) -> int:
    """As a controller does that hears nobody; how many that were."""
    victims = verdict(cell, sight(1, {})).fence
    for victim in victims:
        cell.ok(c.broker_fenced(victim, by=node(1), reason="silent"))
    return len(victims)


def hand_out(cell: Cell) -> None:
    """What the fenced led has other owners; none of its records is in object storage."""
    for broker in [b for b in cell.state.brokers.values() if b.status is BrokerStatus.FENCED]:
        rows = [(s, 10, owner, []) for s, owner in sorted(spread(cell.state, broker.id).items())]
        if rows:
            cell.ok(c.broker_closed(broker.id, by=node(1), streams=rows, tail=None))


def leading(brokers: int, partitions: int = 3) -> Cell:
    cell = cell_of(brokers)
    cell.ok(c.topic_created("t", "id", [n for n in range(1, brokers + 1) for _ in range(partitions)], {}))
    return cell


def test_a_fenced_broker_that_others_serve_for_makes_room_although_nothing_of_it_is_uploaded() -> None:
    cell = leading(3)
    assert verdict(cell, sight(1, {2: False})).fence == (node(3),)
    cell.ok(c.broker_fenced(node(3), by=node(1), reason="silent"))
    assert verdict(cell, sight(1, {})).fence == (), "its clients wait still"
    hand_out(cell)
    assert cell.state.owes(node(3)) and cell.state.brokers[3].status is BrokerStatus.FENCED
    assert verdict(cell, sight(1, {})).fence == (node(2),)


@pytest.mark.parametrize("brokers", range(2, 14))
def test_a_controller_that_is_cut_off_takes_half_until_others_serve_it_and_never_more_than_two_thirds(
    brokers: int,
) -> None:
    cell = leading(brokers)
    assert fence_all_silent(cell) == max(1, brokers // 2)
    assert fence_all_silent(cell) == 0
    for _ in range(brokers):
        hand_out(cell)
        fence_all_silent(cell)
    live = {b.id for b in cell.state.live()}
    assert len(live) == -(-brokers // 3)
    assert {s.open.owner for s in cell.state.streams.values()} == live


@pytest.mark.parametrize("brokers", range(2, 14))
def test_no_more_are_fenced_at_once_where_nobody_leads_anything(brokers: int) -> None:
    cell = cell_of(brokers)
    assert fence_all_silent(cell) == max(1, brokers // 2)
    for _ in range(brokers):
        fence_all_silent(cell)
    assert len(cell.state.live()) >= -(-brokers // 3)


def test_a_candidate_needs_most_of_those_it_hears_to_miss_the_controller_too() -> None:
    cell = cell_of(4, controller=4)
    assert not verdict(cell, sight(1, {2: False, 3: False})).stand
    assert not verdict(cell, sight(1, {2: True, 3: False}, now_ms=99_950)).fence
    assert verdict(cell, sight(1, {2: True, 3: True})).stand
    assert not verdict(cell, sight(2, {1: True, 3: True})).stand, "the lowest node stands first"


def test_a_broker_cut_off_from_all_others_does_not_depose_their_controller_at_once() -> None:
    cell = cell_of(4, controller=4)
    assert not verdict(cell, sight(1, {}, serving_since_ms=100_000 - 2 * TIMEOUT_MS)).stand
    assert verdict(cell, sight(1, {}, serving_since_ms=100_000 - 4 * TIMEOUT_MS)).stand


def test_the_last_survivor_of_two_leads() -> None:
    assert verdict(cell_of(2, controller=1), sight(2, {})).stand


def test_a_broker_that_has_just_joined_is_given_a_session_to_be_heard() -> None:
    fresh = dataclasses.replace(sight(1, {2: False}), live_since_ms={node(3): 99_000.0})
    assert verdict(cell_of(3), fresh).fence == ()
    assert verdict(cell_of(3), dataclasses.replace(fresh, live_since_ms={node(3): 98_000.0})).fence == (node(3),)


def test_a_heartbeat_of_an_earlier_epoch_does_not_count() -> None:
    old = sight(1, {2: False, 3: False})
    heard = {**old.heard, 3: Heard(NodeEpoch(3, 9), 99_900, False)}
    assert verdict(cell_of(3), dataclasses.replace(old, heard=heard)).fence == (node(3),)


def test_only_brokers_that_reach_a_side_without_the_clouds_api_take_over() -> None:
    block = {"mode": "regional-block", "sides": ["volume"], "volume": "v", "volume_zones": ["z0"], "express": None}
    cell = cell_of(4, wal=block)
    victim = cell.state.brokers[1]
    cell.ok(c.broker_fenced(node(1), by=node(1), reason="x"))
    assert [b.node for b in able(cell.state, victim)] == [3]
    assert [taker(cell.state, victim, turn) for turn in (0, 1)] == [node(3), node(3)]
    dual = {**block, "mode": "block+express", "sides": ["volume", "express"], "express": "x"}
    cell = cell_of(4, wal=dual)
    cell.ok(c.broker_fenced(node(1), by=node(1), reason="x"))
    victim = cell.state.brokers[1]
    assert {taker(cell.state, victim, turn) for turn in range(3)} == {node(2), node(3), node(4)}


def test_streams_are_spread_over_the_survivors() -> None:
    cell = cell_of(3)
    cell.ok(c.topic_created("t", "id", [1, 1, 1, 1, 2], {}))
    owners = spread(cell.state, node(1))
    assert sorted(owners.values()) == [2, 2, 3, 3] or sorted(owners.values()) == [2, 3, 3, 3]
    assert sum(1 for o in owners.values() if o == 3) >= 2
    assert set(spread(cell.state, node(1), keep_on=1).values()) == {1}
    assert sorted(least_loaded(cell.state, 4)) == [2, 2, 3, 3] or len(least_loaded(cell.state, 4)) == 4


def record(stream: int, epoch: int, base: int, count: int = 1) -> WalRecord:
    return WalRecord(stream, epoch, base, count, b"x")


def test_recovery_replays_what_is_missing_and_nothing_else() -> None:
    cell = cell_of(2)
    cell.ok(c.topic_created("t", "id", [1, 2], {}))
    cell.ok(c.objects_committed(node(1), [CommittedObject("o", 1, (Range(1, 1, 0, 2),))], 1))
    log = [record(1, 1, 0, 2), record(2, 1, 0), record(1, 1, 2), record(1, 1, 3, 4), record(9, 1, 0)]
    [replay] = select(cell.state, node(1), log)
    assert (replay.stream, replay.start, replay.end) == (1, 2, 7)


def test_recovery_cuts_a_closed_epoch_at_its_end() -> None:
    cell = cell_of(2)
    cell.ok(c.topic_created("t", "id", [1], {}))
    cell.ok(c.partition_moved(1, 1, source=node(1), target=2, end=2, producers=[]))
    [replay] = select(cell.state, node(1), [record(1, 1, 0), record(1, 1, 1), record(1, 1, 2)])
    assert (replay.epoch, replay.end) == (1, 2)


def test_a_hole_in_the_log_is_corrupt_and_not_skipped() -> None:
    cell = cell_of(2)
    cell.ok(c.topic_created("t", "id", [1], {}))
    with pytest.raises(Corrupt, match=r"\[1, 2\) are missing"):
        select(cell.state, node(1), [record(1, 1, 0), record(1, 1, 2)])
    cell.ok(c.partition_moved(1, 1, source=node(1), target=2, end=2, producers=[]))
    with pytest.raises(Corrupt, match=r"owed offsets \[1, 2\)"):
        select(cell.state, node(1), [record(1, 1, 0)])


def test_the_brokers_of_a_lost_zone_are_recovered_by_as_many_survivors() -> None:
    cell = cell_of(12)
    lost = [n for n in range(1, 13) if n % 2]  # zone z0
    cell.ok(c.topic_created("t", "id", [n for n in range(1, 13) for _ in range(n)], {}))
    for n in lost:
        cell.ok(c.broker_fenced(node(n), by=node(n), reason="x"))
    takers = {n: taker(cell.state, cell.state.brokers[n], 0) for n in lost}
    assert len(set(takers.values())) == len(lost)
    cell.ok(c.broker_recovered(node(1), by=node(2), objects=[], owners=spread(cell.state, node(1))))
    still = {n: taker(cell.state, cell.state.brokers[n], 0) for n in lost[1:]}
    assert still == {n: takers[n] for n in lost[1:]}, "the end of one recovery moves no other"
    cell.ok(c.broker_fenced(node(2), by=node(2), reason="x"))
    now = {n: taker(cell.state, cell.state.brokers[n], 0) for n in lost[1:]}
    assert None not in now.values() and all(now[n] == takers[n] for n in lost[1:] if takers[n] != node(2))
