"""A Kafka-compatible broker: one process, one event loop.

Open `node.py` for the broker's life without Kafka (ledger, WAL, partitions, failover), `engine.py` for the border to
the protocol, `net.py` and `handlers/` for the protocol itself, `__main__.py` for how it
is put together. Nobody imports this package; an agent starts it by command line.
"""
