"""`python -m stacks.plugins PACKAGE ENGINE`: serve one package for Pulumi's engine.

`python -m stacks.plugins install`: write the executables below the state directory, and print their folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from providers.base.errors import YunheError
from stacks.plugins.install import install
from stacks.wire import default_state_dir, engine_address, sentence, serve


def main() -> int:
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "install":
        try:
            print(install(Path(default_state_dir())))
        except YunheError as error:
            print(f"error: {sentence(error)}", file=sys.stderr)
            return 1
        return 0
    from stacks.plugins.server import PACKAGES, LabPlugin

    if what not in PACKAGES:
        print(f"error: {what!r} is none of install, {', '.join(PACKAGES)}", file=sys.stderr)
        return 1
    serve(LabPlugin(engine_address(), PACKAGES[what]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
