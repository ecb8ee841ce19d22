"""`broker-closed`: a fenced broker's streams go on elsewhere before what only its WAL holds is in object storage."""

from __future__ import annotations

import json

import pytest

from dataplane.ledger import commands as c
from dataplane.ledger.commands import Range
from dataplane.ledger.state import BrokerStatus
from tests.dataplane.ledger.test_cell import A2, A, B, Cell, joined, obj

TAIL = "objects/r/tail"


@pytest.fixture
def cell() -> Cell:
    """Broker 1 is fenced; stream 1 was its own, five of its offsets are in object storage."""
    cell = Cell()
    cell.ok(joined(A), joined(B), c.controller_elected(1, B))
    cell.ok(c.topic_created("t", "id", [1, 2], {}))
    cell.ok(c.objects_committed(A, [obj("o", Range(1, 1, 0, 5))], 2))
    cell.ok(c.broker_fenced(A, by=B, reason="silent"))
    return cell


def close(end: int = 9, owner: int = 2, producers: list[object] | None = None) -> c.Command:
    return c.broker_closed(A, by=B, streams=[(1, end, owner, producers)], tail=TAIL)


def test_a_closed_broker_owes_what_is_not_uploaded_and_its_streams_go_on(cell: Cell) -> None:
    cell.ok(close(producers=[[7, 0, [[0, 3, 5, 8]]]]))
    stream = cell.state.streams[1]
    assert (stream.epoch, stream.open.owner, stream.open.start) == (2, B, 9)
    assert [(s.id, p.uploaded, p.end) for s, p in cell.state.owes(A)] == [(1, 5, 9)]
    assert stream.handover == {"offset": 9, "producers": [[7, 0, [[0, 3, 5, 8]]]]}
    assert cell.state.brokers[1].status is BrokerStatus.FENCED
    cell.ok(c.objects_committed(B, [obj("o2", Range(1, 2, 9, 12))], 2))


def test_its_recovery_has_to_bring_exactly_what_was_stated(cell: Cell) -> None:
    cell.ok(close(producers=[]))
    cell.refused(c.broker_recovered(A, by=B, objects=[], owners={}), "still owes [5, 9)")
    cell.refused(c.broker_recovered(A, by=B, objects=[obj("r", Range(1, 1, 5, 8))], owners={}), "still owes [8, 9)")
    cell.refused(c.broker_recovered(A, by=B, objects=[obj("r", Range(1, 1, 5, 10))], owners={}), "was closed at 9")
    cell.refused(joined(A2), "must be recovered first")
    cell.ok(c.broker_recovered(A, by=B, objects=[obj("r", Range(1, 1, 5, 9))], owners={}))
    assert [(e.start, e.end) for e in cell.state.streams[1].extents] == [(0, 5), (5, 9)]
    cell.ok(joined(A2))


def test_the_tail_is_kept_until_the_recovery_is_over(cell: Cell) -> None:
    cell.ok(close(producers=[]))
    assert cell.state.brokers[1].wal.tail == TAIL and TAIL in cell.state.objects
    cell.ok(c.broker_recovered(A, by=B, objects=[obj("r", Range(1, 1, 5, 9))], owners={}))
    assert TAIL not in cell.state.objects and TAIL in cell.state.garbage


def test_a_close_that_cannot_be_right_is_refused(cell: Cell) -> None:
    cell.refused(close(end=4, producers=[]), "below what is in object storage")
    cell.refused(close(end=9), "lacks its producers")
    cell.refused(close(owner=1, producers=[]), "broker 1 is not live")
    cell.refused(c.broker_closed(A, by=B, streams=[], tail=None), "exactly the streams")
    cell.refused(c.broker_closed(A, by=A2, streams=[(1, 9, 2, [])], tail=None), "recoverer 1 epoch 2 is not live")
    cell.refused(c.broker_closed(B, by=B, streams=[(2, 0, 2, None)], tail=None), "is live, not fenced")
    cell.ok(close(producers=[]))
    cell.refused(close(producers=[]), "has no open streams")


def test_a_state_with_a_closed_broker_survives_a_snapshot_and_one_without_is_still_read(cell: Cell) -> None:
    cell.ok(close(producers=[]))
    plain = json.loads(json.dumps(cell.machine.dump(cell.state)))
    assert cell.machine.load(plain) == cell.state
    for broker in plain["brokers"].values():
        del broker["wal"]["tail"]
    assert cell.machine.load(plain).brokers[1].wal.tail is None
