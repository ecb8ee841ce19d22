"""`python -m controlplane.server --state-dir DIR`: the control plane of one state directory, until SIGTERM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from providers.base.errors import YunheError
from providers.base.logs import say_error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m controlplane.server", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="state directory, made by `yunhe up`")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 picks a free one")
    args = parser.parse_args()

    from controlplane.server.run import serve

    try:
        serve(args.state_dir, port=args.port)
    except YunheError as error:
        say_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
