"""What the fold takes and refuses of compaction, and what object names make impossible: one test a rule."""

from __future__ import annotations

import random

import pytest

from dataplane.ledger import commands as c
from dataplane.ledger.commands import NodeEpoch, Range
from dataplane.ledger.compacting import extents_compacted, lane_passed
from dataplane.ledger.entry import Command
from dataplane.ledger.object_names import committable, committed, lane_prefix, object_key, parse
from dataplane.ledger.state import Extent
from tests.dataplane.ledger.test_cell import A2, A, B, Cell, joined, obj


def key(by: NodeEpoch, number: int, lane: str = "inc", victim: NodeEpoch | None = None) -> str:
    return object_key(lane_prefix("c", by, lane, victim), number)


@pytest.fixture
def cell() -> Cell:
    """Stream 1 of broker 1 has three extents, the middle one in an object that stream 3 shares."""
    cell = Cell()
    cell.ok(joined(A), joined(B), c.controller_elected(1, B))
    cell.ok(c.topic_created("t", "id", [1, 2, 1], {}))
    cell.ok(c.objects_committed(A, [obj(key(A, 1), Range(1, 1, 0, 5))], 2))
    cell.ok(c.objects_committed(A, [obj(key(A, 2), Range(1, 1, 5, 9), Range(3, 1, 0, 4))], 3))
    cell.ok(c.objects_committed(A, [obj(key(A, 3), Range(1, 1, 9, 12))], 4))
    return cell


def compact(cell: Cell, first: int = 0, last: int = 3, *, name: str = "", node: NodeEpoch = A) -> Command:
    replaced = list(cell.state.streams[1].extents[first:last])
    return extents_compacted(1, 1, node, replaced, name or key(A, 1, "inc-compaction"), 77)


# ── compaction ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_object_takes_the_place_of_extents_and_what_nothing_needs_becomes_garbage(cell: Cell) -> None:
    made = key(A, 1, "inc-compaction")
    cell.ok(compact(cell))
    assert cell.state.streams[1].extents == [Extent(0, 12, made, 77)]
    assert cell.state.garbage == [key(A, 1), key(A, 3)]
    assert cell.state.objects == {key(A, 2): 1, made: 1}, "another stream's part of a shared object stays"
    cell.ok(c.objects_committed(A, [obj(key(A, 4), Range(1, 1, 12, 20))], 5))


def test_extents_around_those_that_are_compacted_stay(cell: Cell) -> None:
    cell.ok(compact(cell, 1, 3))
    assert [(e.start, e.end) for e in cell.state.streams[1].extents] == [(0, 5), (5, 12)]


def test_a_compaction_of_what_has_changed_meanwhile_is_refused(cell: Cell) -> None:
    stale = compact(cell)
    cell.ok(compact(cell, 0, 2, name=key(A, 1, "other")))
    cell.refused(stale, "does not hold [0, 12) in these objects")
    stale = compact(cell)
    cell.ok(c.stream_trimmed(1, 1, A, 9))
    cell.refused(stale, "in these objects")
    cell.refused(compact(cell) | {"end": 11}, "without a gap")


def test_only_the_present_owner_compacts(cell: Cell) -> None:
    cell.refused(compact(cell, name=key(B, 1), node=B), "owned by broker 1")
    stale = compact(cell)
    cell.ok(c.partition_moved(1, 1, source=A, target=2, end=12, producers=[]))
    cell.refused(stale, "at epoch 2")
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(stale, "is fenced")


def test_a_gap_that_a_former_owner_owes_is_not_compacted_over(cell: Cell) -> None:
    cell.ok(c.partition_moved(1, 1, source=A, target=2, end=15, producers=[]))
    cell.ok(c.objects_committed(B, [obj(key(B, 1), Range(1, 2, 15, 18))], 2))
    replaced = list(cell.state.streams[1].extents)
    cell.refused(extents_compacted(1, 2, B, replaced, key(B, 2), 9), "without a gap")
    cell.ok(c.objects_committed(A, [obj(key(A, 4), Range(1, 1, 12, 15))], 5))
    cell.ok(extents_compacted(1, 2, B, list(cell.state.streams[1].extents), key(B, 2), 9))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_says_who_may_commit_it() -> None:
    assert parse(key(A, 7, "ab12-compaction")) == parse("x/objects/1-1/ab12-compaction/0000000007")
    found = parse(key(A2, 3, "ab-own-0", victim=A))
    assert found is not None and (found.by, found.victim, found.lane, found.number) == (A2, A, "ab-own-0", 3)
    assert parse("c/objects/ab12/0000000007") is None, "names of before say nothing"


def test_nobody_commits_under_another_s_name(cell: Cell) -> None:
    for name in (key(B, 9), key(A2, 9), key(A, 9, victim=B)):
        cell.refused(c.objects_committed(A, [obj(name, Range(1, 1, 12, 15))], 5), "is not of")
        cell.refused(compact(cell, name=name), "is not of")


def test_a_lane_s_commits_come_in_the_order_of_their_numbers(cell: Cell) -> None:
    cell.refused(c.objects_committed(A, [obj(key(A, 2), Range(1, 1, 12, 15))], 5), "committed already")
    cell.ok(c.objects_committed(A, [obj(key(A, 7), Range(1, 1, 12, 15))], 5))
    cell.refused(c.objects_committed(A, [obj(key(A, 6), Range(1, 1, 15, 16))], 6), "comes after number 7")
    twice = [obj(key(A, 9), Range(1, 1, 15, 16)), obj(key(A, 8), Range(1, 1, 16, 17))]
    cell.refused(c.objects_committed(A, twice, 6), "comes after number 9")
    cell.ok(compact(cell))  # another lane has numbers of its own


@pytest.mark.parametrize("name", ["named as before", key(A, 8)])
def test_a_name_that_became_garbage_is_not_committed_again_nor_one_twice_in_an_entry(cell: Cell, name: str) -> None:
    twice = [obj(name, Range(1, 1, 12, 13)), obj(name, Range(1, 1, 13, 14))]
    cell.refused(c.objects_committed(A, twice, 9), "committed already")
    cell.ok(c.objects_committed(A, [obj(name, Range(1, 1, 12, 13))], 9))
    cell.ok(c.stream_trimmed(1, 1, A, 13))
    assert name in cell.state.garbage
    cell.refused(c.objects_committed(A, [obj(name, Range(1, 1, 13, 14))], 9), "committed already")


def test_a_commit_whose_answer_was_lost_is_recognised_though_its_object_is_garbage_by_now(cell: Cell) -> None:
    made = [obj(key(A, 4), Range(1, 1, 12, 13))]
    assert not committed(cell.state, A, made)
    cell.ok(c.objects_committed(A, made, 9))
    cell.ok(c.stream_trimmed(1, 1, A, 13))
    assert committed(cell.state, A, made) and not committed(cell.state, A2, made)


def test_a_recoverer_commits_only_under_names_of_that_recovery(cell: Cell) -> None:
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))

    def recovery(name: str) -> Command:
        return c.broker_recovered(A, by=B, objects=[obj(name, Range(1, 1, 12, 14))], owners={1: 2, 3: 2})

    for name in (key(B, 1), key(A, 9), key(A2, 1, victim=A), key(B, 1, victim=A2)):
        cell.refused(recovery(name), "is not of")
    name = key(B, 1, "inc-takeover-1", victim=A)
    assert committable(cell.state, name)
    cell.ok(recovery(name))
    assert not committable(cell.state, name)


# ── what will never be committed ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_committable_stays_so_and_the_fold_refuses_it(cell: Cell) -> None:
    """Over random histories: once `committable` denies a name, no later entry with it is accepted."""
    rng = random.Random(5)
    for _ in range(40):
        cell = Cell()
        cell.ok(joined(A), joined(B), c.controller_elected(1, B))
        cell.ok(c.topic_created("t", "id", [1, 2], {}))
        names = [
            key(NodeEpoch(n, e), number, "inc", victim)
            for n in (1, 2)
            for e in (1, 2, 3)
            for number in (1, 2, 3)
            for victim in (None, NodeEpoch(1, 1), NodeEpoch(1, 2))
        ]
        denied: set[str] = set()
        accepted = 0
        for _ in range(120):
            name = rng.choice(names)
            state = cell.state
            node = state.brokers[1]
            ranges = [Range(s.id, s.epoch, s.open.uploaded, s.open.uploaded + 1) for s in state.owned(node.id)]
            one = obj(name, *ranges)
            command = rng.choice(
                [
                    c.objects_committed(node.id, [one], node.wal.floor),
                    c.broker_fenced(node.id, by=B, reason="x"),
                    c.broker_recovered(node.id, by=B, objects=[one], owners={s.id: 2 for s in state.owned(node.id)}),
                    joined(NodeEpoch(1, node.epoch + 1)),
                    c.partition_moved(1, 1, source=B, target=1, end=0, producers=[]),
                ]
            )
            [refusal] = cell.entry(command)
            if refusal is None and command.get("objects"):
                assert name not in denied, (name, command)
                accepted += 1
            for name in names:
                if not committable(cell.state, name):
                    denied.add(name)
                else:
                    assert name not in denied, f"{name} came back"
        assert denied
    assert accepted


def test_what_a_lane_has_passed_is_not_committed_any_more(cell: Cell) -> None:
    name = key(A, 5, "inc-compaction")
    assert committable(cell.state, name)
    cell.ok(lane_passed(A, "inc-compaction", 5))
    assert not committable(cell.state, name) and committable(cell.state, key(A, 6, "inc-compaction"))
    cell.refused(compact(cell, name=name), "comes after number 5")
    cell.refused(lane_passed(A, "inc-compaction", 5), "at 5 already")
    cell.refused(lane_passed(A2, "inc-compaction", 6), "at epoch 1")


def test_names_of_before_and_of_epochs_to_come_are_never_concluded_upon(cell: Cell) -> None:
    assert committable(cell.state, "c/objects/ab12/0000000007")
    assert committable(cell.state, key(A2, 1)) and committable(cell.state, key(NodeEpoch(9, 1), 1))
    assert committable(cell.state, key(A, 4)) and not committable(cell.state, key(A, 2))
