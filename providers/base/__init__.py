"""The contracts that every cloud implements, and the few things all code shares: errors, clock, invariants.

Open `objects.py` for the object store, `volumes.py` for block volumes and their fence, `capabilities.py` for the facts
that the WAL choice
is made from, `registry.py` to open a cloud's implementation by name. Imports no SDK. Everybody may import this.
"""
