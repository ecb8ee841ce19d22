"""Endless append-only logs of Kafka record batches over a shared WAL and object storage.

Open `partition.py` first (one open stream: append, high watermark, read), then `objects.py` (the stream-set object's
format), `upload.py` (WAL to object storage), `reader.py`
(historical reads through a block cache), `producers.py` (idempotence). Batches stay opaque: the base offset is patched
and the CRC verified, nothing is decoded or recompressed.
Imported by `dataplane.failover` and above; it talks to the ledger through arguments.
"""
