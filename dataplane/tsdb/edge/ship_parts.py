"""A file's upload in parts, as the edge's catalog keeps it: what a power cut must not make begin anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dataplane.tsdb.edge.ship_state import upload_begun


class KeptUpload:
    """`providers.base.resumed.Progress` of one file. Its name is noted before the first part is sent."""

    def __init__(
        self,
        file_id: str,
        upload: str | None,
        note: Callable[[dict[str, Any]], Awaitable[None]],
        pay: Callable[[int], Awaitable[None]],
    ) -> None:
        """`upload`: by the catalog. `note`: an entry, durably."""
        self._file_id = file_id
        self._note = note
        self._pay = pay
        self.upload = upload

    async def keep(self, upload: str | None) -> None:
        """As `Progress`."""
        if upload != self.upload:
            await self._note(upload_begun(self._file_id, upload))
            self.upload = upload

    async def pay(self, count: int) -> None:
        """As `Progress`."""
        await self._pay(count)
