"""The time-series database (design §9). Here so far: what its two sides agree on, files,
the edge's rows, and the cloud's manifest and import.

    edge: rows ─► log ─► memtable ─► SST
    cloud: an edge's signed batch in the bucket ─► every file checked ─► one manifest entry ─► ack for the edge

Open `schema/tables.py` and `schema/files.py`, then `edge/store.py`, `cloud/manifest.py` and `cloud/ingest.py`. No
process runs it yet: upload, query and protocols are not built. It imports `dataplane.ledger`, never the broker.
"""
