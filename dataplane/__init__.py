"""What runs in a cell, alone: ledger, WALs, streams, brokers, failover, agents. It never imports `controlplane`.

Open `contract/` first for what an agent is told and reports, then `broker/node.py`, where ledger, WAL, streams and
failover meet in one broker process.
"""
