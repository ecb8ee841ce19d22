"""Pure planning: which WAL, which broker where, what changes, what it costs, and how that reads. No I/O and no clock
anywhere.

Not here: what is desired (`controlplane/api`), carrying it out (`controlplane/apply`). Open `wal.py` for the WAL choice
over the table in `wal_table.py`, or `plan.py` for a plan of changes. Anybody in `controlplane` may import it.
"""
