"""Benchmarks: `yunhe bench NAME` measures what the project promises, each figure beside a peer or the machine's limit
in the same run. Not tests: nothing fails for being slow. Open `cli.py` first, then `load.py`, the load that our brokers
and Apache Kafka's get alike. Imported by the command line alone.
"""
