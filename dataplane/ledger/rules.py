"""What the folds of a cell's ledger share: how a command is refused, and how it names who acts on what.

Every rule of a command is checked before its first change, so that a refused command changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.entry import Command
from dataplane.ledger.state import Broker, BrokerStatus, CellState, Extent, Span, Stream

SPANS_KEPT_MAX = 64
"""Finished spans kept a stream, for OffsetForLeaderEpoch; older ones are merged into the oldest kept."""


class Rejected(Exception):
    """Why a command is not accepted, in one sentence. Never leaves the fold."""


def require(condition: bool, reason: str) -> None:
    """
    Raises:
        Rejected: `condition` does not hold.
    """
    if not condition:
        raise Rejected(reason)


def node_of(plain: Mapping[str, Any]) -> NodeEpoch:
    """Who acts, as a command says it."""
    return NodeEpoch(plain["node"], plain["epoch"])


def broker_of(state: CellState, node: NodeEpoch, status: BrokerStatus) -> Broker:
    """The broker, if this epoch of it is in this status.

    Raises:
        Rejected: it is not.
    """
    broker = state.brokers.get(node.node)
    if broker is None:
        raise Rejected(f"broker {node.node} is unknown")
    require(broker.epoch == node.epoch, f"broker {node.node} is at epoch {broker.epoch}, not {node.epoch}")
    require(broker.status is status, f"broker {node.node} epoch {node.epoch} is {broker.status}, not {status}")
    return broker


def owned_stream(state: CellState, command: Command, owner: NodeEpoch) -> Stream:
    """The command's stream, if `owner` has it under the epoch that the command says.

    Raises:
        Rejected: it has not.
    """
    stream = state.streams.get(command["stream"])
    if stream is None:
        raise Rejected(f"stream {command['stream']} does not exist")
    require(
        stream.epoch == command["stream_epoch"] and stream.open.owner == owner,
        f"stream {stream.id} is at epoch {stream.epoch}, owned by broker {stream.open.node}",
    )
    return stream


def drop_extents(state: CellState, extents: Iterable[Extent]) -> None:
    """These extents refer to their objects no more; an object that nothing refers to becomes garbage."""
    for extent in extents:
        left = state.objects[extent.object] - 1
        if left:
            state.objects[extent.object] = left
        else:
            del state.objects[extent.object]
            state.garbage.append(extent.object)


def live(state: CellState, node: int) -> Broker:
    """The broker of a node, which must be live."""
    broker = state.brokers.get(node)
    if broker is None or broker.status is not BrokerStatus.LIVE:
        raise Rejected(f"broker {node} is not live")
    return broker


def open_span(stream: Stream, owner: NodeEpoch, start: int) -> None:
    """Begin the stream's next epoch at `start`."""
    epoch = stream.spans[-1].epoch + 1 if stream.spans else 1
    stream.spans.append(Span(epoch, owner.node, owner.epoch, start, start))
    # Empty finished spans say nothing to a reader; of the others the oldest are merged when there are too many.
    stream.spans = [s for s in stream.spans[:-1] if s.start != s.end] + stream.spans[-1:]
    if len(stream.spans) > SPANS_KEPT_MAX and not stream.spans[0].owed and not stream.spans[1].owed:
        first = stream.spans.pop(0)
        stream.spans[0].start = first.start
