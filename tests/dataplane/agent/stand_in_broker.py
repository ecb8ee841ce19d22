"""A stand-in broker: says that it serves, and does so until told to stop. `python stand_in_broker.py --config FILE`."""

import json
import os
import signal
import sys
from pathlib import Path

config = json.loads(Path(sys.argv[2]).read_text())
ready = Path(config["ready_file"])
fresh = ready.with_suffix(".new")
fresh.write_text(json.dumps({"pid": os.getpid(), "kafka_port": config["broker"]["kafka_port"]}))
fresh.replace(ready)
print("serving", flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
