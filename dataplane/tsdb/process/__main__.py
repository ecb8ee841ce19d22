"""`python -m dataplane.tsdb.process --config FILE`: one process of a database, of the role that the file states."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from dataplane.contract.codec import from_json
from dataplane.contract.database import DatabaseConfig, DatabaseRole
from providers.base.errors import YunheError
from providers.base.logs import configure, say_error
from providers.base.loops import run_loop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dataplane.tsdb.process", description="One Yunhe database process.")
    parser.add_argument("--config", required=True, type=Path, help="DatabaseConfig, JSON, written by the agent")
    path: Path = parser.parse_args().config
    configure()
    try:
        config = from_json(DatabaseConfig, path.read_bytes())
        if config.spec.role is DatabaseRole.CLOUD:
            from dataplane.tsdb.process import cloud

            run_loop(cloud.run(config, lambda: from_json(DatabaseConfig, path.read_bytes())))
        else:
            run_loop(importlib.import_module("dataplane.tsdb.process.edge").run(config))
    except (OSError, YunheError) as error:
        say_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
