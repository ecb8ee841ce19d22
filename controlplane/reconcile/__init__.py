"""Level-triggered reconciling: a queue of keys, a runner, one reconciler a kind. A turn reads all, compares, acts, and
says in one sentence what it did and why.

Not here: deciding (`controlplane/plan`), the acts themselves (`controlplane/apply/acts.py`). Open `runner.py` first.
Imported by `controlplane.server` alone.
"""
