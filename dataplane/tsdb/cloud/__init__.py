"""The database over a cell's bucket: its manifest, the import of what edges ship, the nodes of which one owns it and
takes writes, compaction, retention, and the collection of orphans.

Open `database.py` for what protocols see, `manifest.py` for what the database is made of. It imports `schema`, `sst`,
the engine's contract, the WAL and the ledger.
"""
