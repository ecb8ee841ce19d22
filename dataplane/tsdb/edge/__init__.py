"""The database beside the application: ring, memtable, WAL a table, paced flush, upload queue.

Open `database.py`. It imports `sst`, `schema` and `query`, and never the cloud side.
"""
