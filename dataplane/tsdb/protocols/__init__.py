"""The ways in over the network, for whichever side: SQL over HTTP as GreptimeDB speaks it, InfluxDB's line protocol,
OpenTSDB's put, the wires of MySQL and Postgres. They see a `Database` (`engine.py`), never a side.
"""
