"""Object stores that nobody here wrote, each started as a process of its own, and real clouds: `make conformance`.

A judge is a module with `KINDS`: what to start, with which adapter, and which tests are known to fail there and why.
Nothing here runs by default; which judges do is said by the environment, since a run may cost time or money:

    YUNHE_JUDGES=all          every third-party emulator; or names of them, divided by commas
    YUNHE_CLOUD=aws …         a real cloud instead of everything else: see `real.py`
"""

from __future__ import annotations

import importlib
import os

from tests.conformance.stores import KINDS, Kind

THIRD_PARTY: tuple[str, ...] = ("azurite",)
"""Modules of this package."""


def kinds() -> tuple[Kind, ...]:
    """What the suite runs over, as the environment says."""
    wanted = os.environ.get("YUNHE_JUDGES", "")
    if not wanted:
        return KINDS
    known = {name: importlib.import_module(f"{__name__}.{name}") for name in THIRD_PARTY}
    names = list(known) if wanted == "all" else wanted.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no judge {unknown[0]!r}; there are: {', '.join(known)}")
    return KINDS + tuple(kind for name in names for kind in known[name].KINDS)
