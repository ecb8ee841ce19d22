"""The control plane as a process: the HTTP API, the reconcilers and the executor over one store (`python -m
controlplane.server --state-dir DIR`).

Not here: what a turn or a step does (`controlplane/reconcile`, `controlplane/apply`). Open `app.py` for the API,
`run.py` for start and stop, `files.py` for what lies on disk. The CLI imports `files.py` alone, and talks HTTP
otherwise.
"""
