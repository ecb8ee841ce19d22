"""Desired state → plan → assignments. It may be down at any time: cells go on without it.

Open `api/kinds.py` for what a user writes, `plan/` for the pure decisions, `apply/` for what is done about them, `cli/`
for the way in. Of the data plane it sees `dataplane.contract` and
`dataplane.ledger` only. Imported by `stacks`.
"""
