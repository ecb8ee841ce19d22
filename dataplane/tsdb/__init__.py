"""The time-series database (design §9). Here so far: what its two sides agree on, and the cloud's manifest and import.

    an edge's signed batch in the bucket ─► every file checked ─► one manifest entry ─► ack for the edge

Open `schema/tables.py` and `schema/files.py`, then `cloud/manifest.py` and `cloud/ingest.py`. No process runs it yet:
edge, query and protocols are not built. It imports `dataplane.ledger`, never the broker.
"""
