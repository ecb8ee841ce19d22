"""What the folds of a cell's commands share: how a command is refused, and the rules that most of them check."""

from __future__ import annotations

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.state import Broker, BrokerStatus, CellState, Span, Stream

SPANS_KEPT_MAX = 64
"""Finished spans kept a stream, for OffsetForLeaderEpoch; older ones are merged into the oldest kept."""


class Rejected(Exception):
    """Why a command is not accepted, in one sentence. Never leaves the fold."""


def require(condition: bool, reason: str) -> None:
    """Refuse the command for `reason` unless `condition` holds."""
    if not condition:
        raise Rejected(reason)


def broker_of(state: CellState, node: NodeEpoch, status: BrokerStatus) -> Broker:
    """The broker at this very epoch and status."""
    broker = state.brokers.get(node.node)
    if broker is None:
        raise Rejected(f"broker {node.node} is unknown")
    require(broker.epoch == node.epoch, f"broker {node.node} is at epoch {broker.epoch}, not {node.epoch}")
    require(broker.status is status, f"broker {node.node} epoch {node.epoch} is {broker.status}, not {status}")
    return broker


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
