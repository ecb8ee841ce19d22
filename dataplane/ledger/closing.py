"""The fold of `broker-closed`: a fenced broker's open streams get their ends and new owners before what only its WAL
holds is uploaded. What lies between is owed by the fenced epoch, as after a planned move."""

from __future__ import annotations

from dataplane.ledger.commands import CommittedObject, NodeEpoch
from dataplane.ledger.entry import Command, Entry
from dataplane.ledger.object_names import check_names
from dataplane.ledger.rules import broker_of, live, open_span, require
from dataplane.ledger.state import BrokerStatus, CellState


def broker_closed(state: CellState, command: Command, entry: Entry) -> None:
    broker = broker_of(state, NodeEpoch(command["node"], command["epoch"]), BrokerStatus.FENCED)
    by = NodeEpoch(command["by"]["node"], command["by"]["epoch"])
    require(state.is_live(by), f"recoverer {by.node} epoch {by.epoch} is not live")
    streams = {s.id: s for s in state.owned(broker.id)}
    require(bool(streams), f"broker {broker.node} epoch {broker.epoch} has no open streams")
    named = {stream: (end, owner, producers) for stream, end, owner, producers in command["streams"]}
    require(streams.keys() == named.keys(), "the ends must name exactly the streams of the fenced broker")
    for stream_id, (end, owner, producers) in named.items():
        span = streams[stream_id].open
        live(state, owner)
        require(end >= span.uploaded, f"end {end} is below what is in object storage, {span.uploaded}")
        require(end == span.uploaded or producers is not None, f"stream {stream_id} lacks its producers at {end}")
    tail = command["tail"]
    if tail is not None:
        check_names(state, by, [CommittedObject(tail, 0, ())], victim=broker.id)
    for stream_id, (end, owner, producers) in sorted(named.items()):
        stream = streams[stream_id]
        stream.open.end = end
        open_span(stream, state.brokers[owner].id, end)
        if producers is not None:
            stream.handover = {"offset": end, "producers": producers}
    if tail is not None:
        broker.wal.tail = tail
        state.objects[tail] = 1  # referred to, until the broker is recovered
