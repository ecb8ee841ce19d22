"""The database over a cell's bucket: its manifest, the import of what edges ship, the collection of orphans.

Open `manifest.py`. It imports `schema` and the ledger.
"""
