"""A database process's configuration file, which its agent replaces when peers or trust have changed.

The process looks at it now and then and takes over what may change while it runs (`LIVE_FIELDS` and `peers`); anything
else it leaves, for its agent starts it anew then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dataplane.contract.codec import from_json
from dataplane.contract.database import LIVE_FIELDS, DatabaseConfig
from providers.base.clock import Clock
from providers.base.errors import Invalid

log = logging.getLogger(__name__)

LOOK_INTERVAL_MS = 500
"""How late a change may be noticed; a look is one read of a small local file."""


def read_config(path: Path) -> DatabaseConfig:
    """The file as it is.

    Raises:
        Invalid: it cannot be read, or is none.
    """
    try:
        return from_json(DatabaseConfig, path.read_bytes())
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror or error}", hint="its agent writes it") from error


def live(running: DatabaseConfig, newest: DatabaseConfig) -> DatabaseConfig:
    """`running` with what may change of it as `newest` says."""
    changed = {name: getattr(newest.spec, name) for name in LIVE_FIELDS}
    return replace(running, spec=replace(running.spec, **changed), peers=newest.peers)


async def follow_config(
    path: Path, config: DatabaseConfig, changed: Callable[[DatabaseConfig], None], *, clock: Clock
) -> None:
    """Call `changed` with each new configuration, until cancelled. A file that cannot be read changes nothing."""
    said = ""
    while True:
        await clock.sleep_ms(LOOK_INTERVAL_MS)
        try:
            newest = live(config, await asyncio.to_thread(read_config, path))
        except Invalid as error:
            if str(error) != said:
                log.warning("the configuration is left as it was", extra={"why": str(error)})
                said = str(error)
            continue
        said = ""
        if newest != config:
            config = newest
            changed(config)
