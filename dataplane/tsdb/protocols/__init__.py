"""How clients reach a database: GreptimeDB's HTTP SQL API, InfluxDB line protocol, OpenTSDB put, the MySQL wire.

It sees either side through `dataplane.tsdb.engine` alone.
"""
