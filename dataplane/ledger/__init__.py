"""The cell's ordered log of decisions, made of objects created with put-if-absent (design §4).

Open `entry.py` for the shapes, `log.py` for append and follow with the rules that keep it a log, then `commands.py` and
`state.py`: what is decided, and the
pure fold that accepts or rejects it. Imported by `dataplane.stream` and above; the control plane reads it through
`dataplane.ledger` as well (mailboxes, status).
"""
