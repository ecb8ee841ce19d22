"""Object stores that nobody here wrote, each started as a process of its own, and real clouds: `make conformance`.

A judge is a module here with `KINDS`: what to start, with which adapter, and which tests are known to fail there and
why. None runs by default, since a run may cost time or money; the environment says which do:

    YUNHE_JUDGES=all          every third-party emulator; or names of them, divided by commas
    YUNHE_CLOUD=aws …         a real cloud, instead of everything else: see `real.py`
"""

from __future__ import annotations

import importlib
import os
import pkgutil

from tests.conformance.stores import KINDS, Kind


def kinds() -> tuple[Kind, ...]:
    """What the suite runs over, as the environment says."""
    if os.environ.get("YUNHE_CLOUD"):
        from tests.conformance.judges.real import kind_of_environment

        return (kind_of_environment(os.environ),)
    wanted = os.environ.get("YUNHE_JUDGES", "")
    if not wanted:
        return KINDS
    modules = {row.name: importlib.import_module(f"{__name__}.{row.name}") for row in pkgutil.iter_modules(__path__)}
    known: dict[str, tuple[Kind, ...]] = {
        name: module.KINDS for name, module in modules.items() if hasattr(module, "KINDS")
    }
    names = sorted(known) if wanted == "all" else wanted.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no judge {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    return KINDS + tuple(kind for name in names for kind in known[name])
