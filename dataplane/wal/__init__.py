"""Where an append is durable before it is acked: one log of numbered blocks a broker epoch, kept on one or two sides.

Open `base.py` for the contract and its numbered obligations, then `commit.py` (group commit: records into blocks, acks
in order), then the sides: `ring.py` on a block volume, `objects.py` (consecutive names), `lanes.py` (S3 Express
appends), each with its reader; `recover.py` fences and reads, `modes.py` opens all of it from a spec. It knows no Kafka
and no ledger commands: who may do what arrives as arguments. Imported by `dataplane.stream` and above.
"""
