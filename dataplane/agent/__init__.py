"""The agent of one zone: it runs the brokers and databases that its assignment names, and goes on doing so when
the control plane, or the bucket, is gone.

Open `loop.py` first (one turn, one sentence), then `supervisor.py` (processes), `journal.py` (what survives a crash).
Nobody imports this package; it is started as `python -m dataplane.agent`.
"""
