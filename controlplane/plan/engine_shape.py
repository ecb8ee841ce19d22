"""How often an engine asks the object store, by what it writes: the constants of the cost formulas.

Two shapes: our embedded engine, from its own settings; and AutoMQ's, as its published 1 GiB/s run was billed.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.contract.assignment import BrokerSettings


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Symbols in brackets are the formulas'. A standing request is one that an idle cell makes too."""

    name: str
    upload_mib: float
    """[U] MiB of a typical uploaded object."""
    puts_an_upload: float
    """[a] Requests billed as puts for each upload: the object, and what records or rewrites it."""
    upload_interval_s: float | None
    """[i] A broker that writes at all uploads at least this often; None: size alone decides."""
    gets_a_mib: float
    """[g] Gets for each MiB written: reads of what has left the cache, and of compaction where `merge_mib` is None."""
    merge_mib: float | None
    """[m] MiB of a typical object that compaction makes, each byte going into one once; None: not counted apart."""
    merge_puts: float
    """Requests billed as puts for each merge: the parts, what begins and ends them, the ledger entry."""
    merge_gets: float
    """Gets for each merge: the pieces that it reads, and the producers' state."""
    zone_local_gets_a_mib: float
    """Added to g with zone-local clients, where the engine reads another zone's writes through the object store."""
    entry_gets: float
    """[e] Gets that one ledger entry causes at each reader (every broker, and the control plane): the entry, its
    segment's marker, and the names after it."""
    standing_gets_a_broker_s: float
    """[q] Gets a second for an idle broker and its agent: the next names of the ledger, the mailbox and the reports."""
    standing_gets_a_cell_s: float
    """[c] Gets a second of a control plane that looks at an idle cell's ledger."""
    append_mib: float
    """[k] MiB that one produce request brings to a broker: how soon another block has something to carry."""
    express_batch_s: float
    """[b_x] Seconds between two appends of a busy broker to its S3 Express lanes."""
    object_batch_s: float
    """[b] Seconds that an object of a broker's object WAL waits for more, from its first record on."""
    wal_object_mib: float
    """[w] A WAL object or lane append is sent when it is this large, however soon."""
    source: str


AUTOMQ = EngineShape(
    name="automq",
    upload_mib=16,
    puts_an_upload=2,
    upload_interval_s=None,
    gets_a_mib=0.1,
    merge_mib=None,
    merge_puts=0,
    merge_gets=0,
    zone_local_gets_a_mib=1.25,
    entry_gets=0,
    standing_gets_a_broker_s=0,
    standing_gets_a_cell_s=0,
    append_mib=0,
    express_batch_s=0.05,
    object_batch_s=0.25,
    wal_object_mib=8,
    source="calibrated on AutoMQ's published 1 GiB/s run: 202.7 puts and 1,278 gets a second; 250 ms of its object WAL",
)

_SETTINGS = BrokerSettings()
_MERGE_MIB = 96.0
"""Between `stream.compaction.FINAL_BYTES` and its `OBJECT_BYTES_MAX`."""
_PART_MIB, _PIECE_MIB = 8.0, 4.0
"""What one part of an upload carries (`providers.base.streams.PART_BYTES`), and what one read of compaction asks for
(`stream.reader.SCAN_BYTES`) where a stream has that much in an object; of smaller shares each is a read."""
_AGENT_POLLS_A_S = 1.0
"""An agent's, of its mailbox (`poll_interval_ms` of its process)."""
_CONTROL_POLLS_A_S = 0.5
"""The control plane's, of each log of a cell that is as it should be (`reconcile.kinds.READY_AGAIN_MS`)."""

EMBEDDED = EngineShape(
    name="embedded",
    upload_mib=_SETTINGS.upload_bytes / (1 << 20),
    puts_an_upload=2,  # the object and its ledger entry
    upload_interval_s=_SETTINGS.upload_interval_ms / 1000,
    gets_a_mib=0,  # consumers that keep up read from the log cache
    merge_mib=_MERGE_MIB,
    merge_puts=_MERGE_MIB / _PART_MIB + 3,
    merge_gets=_MERGE_MIB / _PIECE_MIB + 1,
    zone_local_gets_a_mib=0,
    entry_gets=4,  # the entry, the marker, and two names that are not there yet (`Log.poll`)
    standing_gets_a_broker_s=1000 / _SETTINGS.ledger_poll_interval_ms + _AGENT_POLLS_A_S + 2 * _CONTROL_POLLS_A_S,
    standing_gets_a_cell_s=_CONTROL_POLLS_A_S,
    append_mib=16 / 1024,  # Kafka producers' default batch.size
    express_batch_s=0.0025,  # no linger: two appends under way, at 5 ms each (the low end of the design band)
    object_batch_s=0.020,  # `WalSettings.object_linger_ms`
    wal_object_mib=8,  # `WalSettings.object_block_bytes`
    source="the engine's own settings; held against the lab's meter by `yunhe bench bill`",
)

ENGINES = {shape.name: shape for shape in (EMBEDDED, AUTOMQ)}
