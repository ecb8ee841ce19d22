"""Retention on an edge: files all of whose rows are older than their table's `ttl` leave the flash.

A file that is still to be uploaded stays, however old: the cloud has a `ttl` of its own, and the flash's owner is not
asked to lose what was never sent. An edge that uploads nothing keeps nothing for that.
"""

from __future__ import annotations

import logging

from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.schema.retention import expired
from providers.base.clock import Clock
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

INTERVAL_MS = 60_000
"""Between two looks for what has expired. Queries show none of it meanwhile."""


def expire(store: EdgeStore, now_ms: int, *, uploads: bool) -> int:
    """Remove what has expired, durably; returns how many files. `now_ms`: by the wall clock. `uploads`: whether files
    that the cloud is not known to have stay.

    Raises:
        Full, Unavailable: they are still there, or will be gone when the store is opened anew.
    """
    schemas = [schema for schema in store.tables if schema.options.ttl_ms is not None]
    if not schemas:
        return 0
    keep = {meta.file_id for meta in store.outbox.unshipped()} if uploads else frozenset()
    gone = [meta.file_id for schema in schemas for meta in expired(schema, store.files(schema.name), now_ms, keep)]
    store.forget(gone)
    return len(gone)


async def retain(database: EdgeDatabase, *, uploads: bool, clock: Clock, interval_ms: float = INTERVAL_MS) -> None:
    """`expire` again and again, until cancelled."""
    while True:
        try:
            gone = await database.with_store(lambda store: expire(store, clock.wall_ms(), uploads=uploads))
            if gone:
                log.info("expired: %d files", gone)
        except YunheError as error:
            log.error("edge-retention: %s", error)
        await clock.sleep_ms(interval_ms)
