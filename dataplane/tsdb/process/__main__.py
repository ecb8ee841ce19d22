"""`python -m dataplane.tsdb.process --config FILE`: one database process, of either side.

Exit codes: 0 after SIGTERM or SIGINT, all in order; 1 when it could not start or had to stop, with one sentence on
standard error; its agent starts it again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from dataplane.contract.codec import from_json
from dataplane.contract.database import DatabaseConfig
from providers.base.errors import YunheError
from providers.base.logs import configure, say_error
from providers.base.loops import run_loop


def main() -> int:
    """See the module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.tsdb.process", description="One Yunhe database process.")
    parser.add_argument("--config", required=True, type=Path, help="its configuration, JSON, written by the agent")
    args = parser.parse_args()
    configure()
    try:
        config = from_json(DatabaseConfig, args.config.read_bytes())
        side = importlib.import_module(f"dataplane.tsdb.process.{config.spec.role}")  # not the other one's libraries
        serve: Callable[[DatabaseConfig, Path], Coroutine[Any, Any, int]] = side.serve
        return run_loop(serve(config, args.config))
    except (OSError, YunheError) as error:
        say_error(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
