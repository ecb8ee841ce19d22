"""Puts the plugins' executables into a folder of the lab's own.

Not beside `yunhe` itself: whoever has that on the PATH would get the lab where the cloud is meant. Each executable says
which lab it is of, so that the folder on the PATH is all that a rehearsal needs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from providers.base.errors import Unavailable
from providers.base.files import replace_file

PACKAGES = ("aws", "azure-native", "gcp", "alicloud")


def install(state_dir: Path) -> Path:
    """Write `pulumi-resource-…` for the lab of that state directory; the folder, to be put first on the PATH.

    Raises:
        Unavailable: it cannot be written.
    """
    folder = state_dir.expanduser().absolute() / "lab" / "plugins"
    home = Path(__file__).parents[2]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for package in PACKAGES:
            path = folder / f"pulumi-resource-{package}"
            text = (
                "#!/bin/sh\n"
                f"YUNHE_STATE_DIR={shlex.quote(str(state_dir.expanduser().absolute()))}\n"
                f"PYTHONPATH={shlex.quote(str(home))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
                "export YUNHE_STATE_DIR PYTHONPATH\n"
                f'exec {shlex.quote(sys.executable)} -m stacks.plugins {package} "$@"\n'
            )
            replace_file(path, text.encode(), mode=0o700)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written: {error.strerror}") from error
    return folder
