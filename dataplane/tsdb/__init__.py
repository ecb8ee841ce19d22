"""The time-series database (design §9): two sides, and what they share.

    edge: rows ─► log ─► memtable ─► SST ─► signed batch in the bucket (or records of a topic)
    cloud: a batch, every file checked ─► one manifest entry ─► queries; its own writes by a WAL; the owner keeps house

`process/` puts either side together. Open `schema/tables.py` and `schema/files.py`, then `edge/store.py` and
`edge/ship.py`, or `cloud/manifest.py`, `cloud/ingest.py` and `cloud/database.py`; `engine.py` is what `protocols/` see
of both. It imports `dataplane.ledger` and `dataplane.wal`, never the broker.
"""
