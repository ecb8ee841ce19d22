"""The database over a cell's bucket: manifest, import of what edges ship, own writes, compaction, retention, failover.

Open `manifest.py`. It imports `sst`, `schema` and `query`, and never the edge side.
"""
