"""The emulated clouds: servers that speak the clouds' own wire protocols on loopback, so that the real SDKs and real
processes run on one machine. Not a mock: bytes are durable, signatures are checked, a fence fences. Open
`objects_server.py` first: it joins `storage.py` (all bytes, in one log), `wire_connection.py` (HTTP), the four
`dialect_*.py` and `gate.py` (faults and meter); `volumes_server.py` is the daemon of the block volumes,
`control_server.py` the control APIs; `launcher.py` starts and stops it all, `running.py` does so for tests and the
command line. Imports no SDK. The servers run as processes of their own; the volume client is for
`providers.base.registry`.
"""
