"""The time-series database: an edge side beside the application, a cloud side over the cell's bucket (design §9).

    edge: ring or protocol ─► memtable (+ WAL a table) ─► paced flush ─► SST ─► upload queue ─► bucket + signed batch
    cloud: signed batch ─► validate ─► manifest entry ─► query;  own writes ─► WAL ─► memtable ─► SST ─► manifest entry

Open `schema/tables.py` and `schema/files.py` for what both sides share, `engine.py` for what protocols see of either
side, then `edge/` and `cloud/`. It imports `dataplane.wal` and `dataplane.ledger`, never the broker; nobody but its own
process (`__main__.py`) and the control plane's command lines start it.
"""
