"""The controller's part in tidiness: objects in the bucket that the ledger does not refer to and never will.

An object is written before it is committed; between the two a broker may die, lose its partition, or see its commit
refused. Nothing here goes by age. The ledger's fold itself refuses late commits (`ledger/object_names.py`): an object
is deleted only when no commit of its name can be accepted any more, in the state that this node has read. A request of
the dead that arrives after that makes another orphan, which a later turn finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dataplane.ledger.commands import NodeEpoch
from dataplane.ledger.object_names import committable, objects_prefix
from dataplane.ledger.state import CellState
from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

PAGE = 1_000
PAGES_MAX = 20
"""Pages that one turn lists; the next turn goes on where it ended."""
UPLOADS_AGE_MS = 86_400_000
"""Parts of unfinished uploads are removed after a day: whoever still writes them has long given up."""


class OrphanCollector:
    """See the module."""

    def __init__(
        self,
        me: NodeEpoch,
        *,
        cluster: str,
        state: Callable[[], CellState],
        bucket: ObjectStore,
        clock: Clock,
        interval_ms: float,
    ) -> None:
        self._me = me
        self._prefix = objects_prefix(cluster)
        self._state = state
        self._bucket = bucket
        self._clock = clock
        self._interval_ms = interval_ms
        self._after = ""

    async def run(self) -> None:
        """Look, and delete, until cancelled."""
        while True:
            await self._clock.sleep_ms(self._interval_ms)
            try:
                await self.turn()
            except Unavailable as error:
                log.warning("orphans-wait", extra={"error": str(error)})

    async def turn(self) -> int:
        """Delete the orphans among the next PAGES_MAX pages of the bucket; how many there were. Nothing on a node that
        is not the controller.

        Raises:
            Unavailable: the bucket does not answer.
        """
        if self._state().controller != self._me:
            self._after = ""
            return 0
        deleted = 0
        for _ in range(PAGES_MAX):
            page = await self._bucket.list(self._prefix, start_after=self._after, limit=PAGE)
            # Looked at after the listing: whatever the state, what it excludes stays excluded.
            state = self._state()
            garbage = set(state.garbage)  # has its own time, for readers that still want it
            orphans = [
                info.key
                for info in page
                if info.key not in state.objects and info.key not in garbage and not committable(state, info.key)
            ]
            if orphans:
                await self._bucket.delete(orphans)
                deleted += len(orphans)
            if len(page) < PAGE:
                self._after = ""
                await self._bucket.collect_uploads(self._prefix, UPLOADS_AGE_MS)
                break
            self._after = page[-1].key
        if deleted:
            log.info("orphans-deleted", extra={"objects": deleted})
        return deleted
