"""From a plan to the world: idempotent steps, executed by a journaled executor that a crash at any step only
interrupts.

Not here: deciding what shall be (`controlplane/plan`), keeping it so (`controlplane/reconcile`, which uses the same
acts). Open `steps.py` for the order of things, `acts.py` for what each does, `cells.py` for how a cell is reached.
Imported by `controlplane.reconcile` and `controlplane.server`.
"""
