"""A stand-in for a database's process: `python stand_in_database.py --config FILE`. It makes its key once, listens on
its HTTP port, says that it serves, and does so until told to stop. What its file said at the start, or at
the last SIGHUP, is in `told.json`.

It owns its database when its name is the first of all nodes' that it was told.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

stopping: list[int] = []
asked = [1]
signal.signal(signal.SIGHUP, lambda *_: asked.append(1))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stopping.append(1))
path = Path(sys.argv[2])
config = json.loads(path.read_text())
spec = config["spec"]
folder = Path(config["folder"])
key = folder / "key"
if not key.exists():
    key.write_text(hashlib.sha256(os.urandom(32)).hexdigest())
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((spec["host"], spec["http_port"]))
listener.listen()
ready = {"pid": os.getpid(), "http_port": spec["http_port"]}
if spec["role"] == "edge":
    ready["public_key"] = key.read_text()
else:
    ready["mysql_port"] = spec["mysql_port"]
    ready["postgres_port"] = spec["postgres_port"]
    ready["owner"] = spec["node"] == min([spec["node"], *config["peers"]])


def put(name: Path, text: str) -> None:
    fresh = name.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(name)


put(Path(config["ready_file"]), json.dumps(ready))
print("serving", flush=True)
while not stopping:
    if asked:
        asked.clear()
        put(folder / "told.json", path.read_text())
    time.sleep(0.05)
