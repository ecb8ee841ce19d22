"""The emulated clouds: servers that speak the clouds' own wire protocols on loopback, so that the real SDKs and real
processes run on one machine. Not a mock: bytes are durable, signatures are checked, a fence fences. Open
`objects_server.py` first: it joins `storage.py` (objects as files), the four `dialect_*.py` and `faults.py`;
`volumes_server.py` is the daemon of the block volumes; `launcher.py` starts and stops it all. Imports no SDK. The
servers run as processes of their own; the launcher is for the command line, the volume client for
`providers.base.registry`.
"""
