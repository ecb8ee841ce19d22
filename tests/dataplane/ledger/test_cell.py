"""What a cell's ledger accepts and what it refuses: one test a rule of design §4 and §5."""

from __future__ import annotations

import json

import pytest

from dataplane.ledger import commands as c
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.commands import CommittedObject, NodeEpoch, Range
from dataplane.ledger.entry import Command, Entry, Writer
from dataplane.ledger.state import BrokerStatus, CellState
from providers.base.errors import Internal


class Cell:
    """A state and its fold, entry by entry."""

    def __init__(self) -> None:
        self.machine = CellMachine()
        self.state = self.machine.initial()
        self.seq = 0

    def entry(self, *commands: Command, term: int | None = None) -> list[str | None]:
        self.seq += 1
        term = self.state.term if term is None else term
        # Through the wire form, so that what is tested is what a reader of the log would see.
        entry = Entry.decode(Entry(self.seq, f"id{self.seq}", Writer("w", "i"), term, commands).encode())
        return list(self.machine.apply(self.state, entry))

    def ok(self, *commands: Command, term: int | None = None) -> None:
        assert self.entry(*commands, term=term) == [None] * len(commands)

    def refused(self, command: Command, why: str, term: int | None = None) -> None:
        before = json.dumps(self.machine.dump(self.state), sort_keys=True)
        [outcome] = self.entry(command, term=term)
        assert outcome is not None and why in outcome, outcome
        assert json.dumps(self.machine.dump(self.state), sort_keys=True) == before, "a rejected command changes nothing"


A, B, A2 = NodeEpoch(1, 1), NodeEpoch(2, 1), NodeEpoch(1, 2)
WAL = {"mode": "block+express", "sides": ["volume", "express"], "volume": "v", "volume_zones": ["z"], "express": "x"}


def joined(node: NodeEpoch) -> Command:
    return c.broker_joined(node, name=f"b-{node.node}", zone="z", host="127.0.0.1", kafka_port=1, peer_port=2, wal=WAL)


def obj(name: str, *ranges: Range) -> CommittedObject:
    return CommittedObject(name, 100, ranges)


@pytest.fixture
def cell() -> Cell:
    cell = Cell()
    cell.ok(joined(A), joined(B), c.controller_elected(1, B))
    cell.ok(c.topic_created("t", "id", [1, 2], {}))
    return cell


def recover_a(cell: Cell, *objects: CommittedObject, owners: dict[int, int] | None = None) -> Command:
    return c.broker_recovered(A, by=B, objects=objects, owners={1: 2} if owners is None else owners)


def test_a_deposed_controller_fences_nobody(cell: Cell) -> None:
    cell.ok(c.controller_elected(2, A))
    cell.refused(c.broker_fenced(A, by=B, reason="silent"), "not the controller")
    cell.refused(c.broker_fenced(B, by=A, reason="silent"), "term 1 is over", term=1)
    assert cell.state.is_live(A) and cell.state.is_live(B)


def test_a_term_is_won_once(cell: Cell) -> None:
    cell.refused(c.controller_elected(1, A), "next term is 2")
    cell.refused(c.controller_elected(3, A), "next term is 2")


def test_a_fence_names_an_epoch_and_hits_no_later_one(cell: Cell) -> None:
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.ok(recover_a(cell))
    cell.ok(joined(A2))
    cell.refused(c.broker_fenced(A, by=B, reason="late"), "epoch 2, not 1")


def test_a_join_implies_that_the_epoch_before_is_recovered(cell: Cell) -> None:
    cell.refused(joined(A2), "is live")
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(joined(A2), "is fenced")
    cell.ok(recover_a(cell))
    cell.refused(joined(NodeEpoch(1, 3)), "epoch 2 next")
    cell.ok(joined(A2))


def test_a_fenced_broker_commits_nothing_any_more(cell: Cell) -> None:
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(c.objects_committed(A, [obj("o", Range(1, 1, 0, 5))], 2), "is fenced")
    cell.refused(c.membership_changed(A, ["volume"], 9), "is fenced")
    cell.refused(c.partition_moved(1, 1, source=A, target=2, end=0, producers=[]), "is fenced")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Range(1, 1, 1, 5), "continues at 0"),
        (Range(1, 1, 0, 0), "continues at 0"),
        (Range(1, 2, 0, 5), "is not of broker 1"),
        (Range(2, 1, 0, 5), "is not of broker 1"),
    ],
)
def test_a_commit_outside_its_own_next_range_is_refused(cell: Cell, bad: Range, why: str) -> None:
    cell.refused(c.objects_committed(A, [obj("o", bad)], 2), why)


def test_the_wal_floor_never_goes_back(cell: Cell) -> None:
    cell.ok(c.objects_committed(A, [obj("o1", Range(1, 1, 0, 5))], 7))
    cell.refused(c.objects_committed(A, [obj("o2", Range(1, 1, 5, 6))], 6), "7 already")


def test_an_object_is_committed_once(cell: Cell) -> None:
    cell.ok(c.objects_committed(A, [obj("o1", Range(1, 1, 0, 5))], 2))
    cell.refused(c.objects_committed(A, [obj("o1", Range(1, 1, 5, 6))], 3), "committed already")


def test_recovery_commits_and_hands_out_in_one_entry(cell: Cell) -> None:
    cell.ok(c.objects_committed(A, [obj("o1", Range(1, 1, 0, 5))], 2))
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(recover_a(cell, owners={}), "exactly the streams")
    cell.refused(recover_a(cell, owners={1: 1}), "not live")
    cell.refused(recover_a(cell, obj("o2", Range(1, 1, 4, 9))), "continues at 5")
    cell.ok(recover_a(cell, obj("o2", Range(1, 1, 5, 9))))
    stream = cell.state.streams[1]
    assert (stream.open.owner, stream.open.epoch, stream.open.start) == (B, 2, 9)
    assert [(e.start, e.end) for e in stream.extents] == [(0, 5), (5, 9)]
    assert cell.state.brokers[1].status is BrokerStatus.GONE
    cell.refused(recover_a(cell), "is gone")


def test_a_node_recovers_its_own_former_life_with_nobody_else_alive() -> None:
    cell = Cell()
    cell.ok(joined(A))
    cell.ok(c.topic_created("t", "id", [1], {}))
    cell.ok(c.broker_fenced(A, by=A2, reason="its next life begins"))
    own = c.broker_recovered(A, by=A2, objects=[obj("o", Range(1, 1, 0, 3))], owners={1: 1}, rejoin=joined(A2))
    cell.refused({**own, "by": {"node": 1, "epoch": 3}}, "rejoins only its own recoverer")
    cell.ok(own)
    assert cell.state.is_live(A2)
    assert cell.state.streams[1].open.owner == A2
    cell.refused(own, "at epoch 2, not 1")  # a twin of the same node comes second


def test_a_move_leaves_the_tail_owed_by_the_old_owner(cell: Cell) -> None:
    cell.ok(c.objects_committed(A, [obj("o1", Range(1, 1, 0, 5))], 2))
    cell.refused(c.partition_moved(1, 1, source=A, target=2, end=4, producers=[]), "below what is in object storage")
    cell.refused(c.partition_moved(1, 1, source=A, target=3, end=9, producers=[]), "not live")
    cell.ok(c.partition_moved(1, 1, source=A, target=2, end=9, producers=[]))
    assert cell.state.streams[1].open.owner == B
    cell.refused(c.partition_moved(1, 1, source=A, target=2, end=9, producers=[]), "epoch 2")
    # The new owner's commits do not wait for what is owed, and neither may cross the close.
    cell.ok(c.objects_committed(B, [obj("o2", Range(1, 2, 9, 12))], 2))
    cell.refused(c.objects_committed(A, [obj("o3", Range(1, 1, 5, 10))], 3), "closed at 9")
    cell.refused(c.broker_left(A), "still owes")
    cell.ok(c.objects_committed(A, [obj("o3", Range(1, 1, 5, 9))], 3))
    assert [(e.start, e.end) for e in cell.state.streams[1].extents] == [(0, 5), (5, 9), (9, 12)]
    cell.ok(c.broker_left(A))


def test_recovery_includes_what_is_owed_of_closed_epochs(cell: Cell) -> None:
    """A → B → A: what A owes of its first epoch is replayed though the stream is A's again under a later one."""
    cell.ok(c.partition_moved(1, 1, source=A, target=2, end=4, producers=[]))
    cell.ok(c.partition_moved(1, 2, source=B, target=1, end=6, producers=[]))
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(recover_a(cell, obj("o", Range(1, 3, 6, 8))), "still owes [0, 4)")
    cell.ok(recover_a(cell, obj("o", Range(1, 1, 0, 4), Range(1, 3, 6, 8))))
    assert cell.state.streams[1].open.start == 8
    assert [s.owed for s in cell.state.streams[1].spans] == [False, True, False, False]


def test_membership_only_shrinks_within_an_epoch(cell: Cell) -> None:
    cell.refused(c.membership_changed(A, [], 3), "no smaller part")
    cell.refused(c.membership_changed(A, ["volume", "express"], 3), "no smaller part")
    cell.ok(c.membership_changed(A, ["express"], 3))
    cell.refused(c.membership_changed(A, ["volume"], 4), "no smaller part")


def test_a_lost_side_returns_as_another_instance_once_all_below_its_beginning_is_in_object_storage(cell: Cell) -> None:
    cell.refused(c.side_returned(A, "volume", 1, 1), "in the membership already")
    cell.ok(c.membership_changed(A, ["express"], 3))
    cell.refused(c.side_returned(A, "object", 1, 1), "no side object")
    cell.refused(c.side_returned(A, "volume", 0, 1), "not new")
    cell.refused(c.side_returned(A, "volume", 1, 9), "begins at block 9, and the WAL is needed from block 1 on")
    cell.ok(c.objects_committed(A, [obj("o", Range(1, 1, 0, 5))], 9))
    cell.ok(c.side_returned(A, "volume", 1, 9))
    wal = cell.state.brokers[1].wal
    assert (wal.sides, wal.instances) == (["volume", "express"], {"volume": 1})
    assert CellMachine().load(json.loads(json.dumps(CellMachine().dump(cell.state)))) == cell.state
    cell.ok(c.membership_changed(A, ["express"], 12))
    cell.refused(c.side_returned(A, "volume", 1, 9), "not new")
    cell.ok(c.side_returned(A, "volume", 5, 9))
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    cell.refused(c.side_returned(A, "volume", 6, 1), "is fenced")
    assert cell.state.brokers[1].wal.instances == {"volume": 5}, "recovery reads the instance that is named"


def test_a_snapshot_from_before_sides_could_return_is_read(cell: Cell) -> None:
    plain = json.loads(json.dumps(CellMachine().dump(cell.state)))
    for broker in plain["brokers"].values():
        del broker["wal"]["instances"]
    assert CellMachine().load(plain) == cell.state


def test_producer_ids_are_given_out_once(cell: Cell) -> None:
    cell.ok(c.producer_ids_allocated(A, 1000), c.producer_ids_allocated(B, 1000))
    assert cell.state.producer_blocks == {1: [1, 1000], 2: [1001, 1000]}


def test_what_is_trimmed_or_deleted_becomes_garbage_when_nothing_refers_to_it(cell: Cell) -> None:
    cell.ok(c.objects_committed(B, [obj("o1", Range(2, 1, 0, 5))], 2))
    cell.ok(c.objects_committed(A, [obj("shared", Range(1, 1, 0, 5))], 2))
    cell.ok(c.stream_trimmed(2, 1, B, 5))
    assert cell.state.garbage == ["o1"]
    cell.refused(c.stream_trimmed(2, 1, B, 5), "starts at 5 already")
    cell.ok(c.topic_deleted("t", "id"))
    assert cell.state.garbage == ["o1", "shared"]
    assert cell.state.streams == {}
    # The owner's late commit for the deleted topic is taken, and its object is garbage at once.
    cell.ok(c.objects_committed(A, [obj("late", Range(1, 1, 5, 6))], 3))
    cell.ok(c.objects_removed(["o1", "shared", "late"], 1))
    assert cell.state.garbage == [] and cell.state.objects == {}
    cell.refused(c.objects_removed([], 0), "term 0 is over")


def test_a_command_that_this_version_does_not_know_stops_the_reader(cell: Cell) -> None:
    with pytest.raises(Internal, match="does not know"):
        cell.entry({"kind": "from-the-future"})


def test_a_snapshot_holds_the_whole_state(cell: Cell) -> None:
    cell.ok(c.objects_committed(A, [obj("o1", Range(1, 1, 0, 5))], 2))
    cell.ok(c.partition_moved(1, 1, source=A, target=2, end=9, producers=[[7, 0, [[0, 4, 0, 4]]]]))
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    loaded: CellState = cell.machine.load(json.loads(json.dumps(cell.machine.dump(cell.state))))
    assert loaded == cell.state


def test_a_topic_is_known_by_its_id_as_long_as_it_is_there(cell: Cell) -> None:
    cell.ok(c.topic_created("u", "id-u", [1], {}))
    cell.refused(c.topic_created("u", "another", [1], {}), "exists")
    assert cell.state.topic_names == {"id": "t", "id-u": "u"}
    loaded: CellState = cell.machine.load(json.loads(json.dumps(cell.machine.dump(cell.state))))
    assert loaded.topic_names == cell.state.topic_names
    cell.ok(c.topic_deleted("t", "id"), c.topic_created("t", "anew", [2], {}))
    assert cell.state.topic_names == {"anew": "t", "id-u": "u"}
