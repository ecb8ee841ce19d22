"""The declarative kinds a user writes: Cloud, BrokerCluster, Topic, Database, loaded from YAML with every
error at `file:line`.

Not here: what follows from a spec (`controlplane/plan`), where it is kept (`controlplane/store`). Open `kinds.py`
first, then `load.py`; `specs.py` is the value they produce. Anybody in `controlplane` and `stacks` may import it; the
CLI does so lazily, since pydantic takes a tenth of a second to import.
"""
