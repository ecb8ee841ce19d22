"""What of an edge's files is to be sent to the cloud, and how far each is: the store's side of the upload.

Part of a store, and used as one: by one worker at a time. Files do not change, so that each call is short: reading one
to send it is many calls of `part`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dataplane.tsdb.edge.catalog import Catalog
from dataplane.tsdb.edge.files import Files, put_whole, remove_quietly
from dataplane.tsdb.edge.ship_state import ShipState
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableOptions, TableSchema
from providers.base.clock import Rng
from providers.base.errors import Full, NotFound

SST = ".parquet"


def sst_name(file_id: str) -> str:
    """An SST's name on the flash."""
    return f"{file_id}{SST}"


class Outbox:
    """See the module."""

    def __init__(
        self, files: Files, catalog: Catalog, edge: str, rng: Rng, remove: Callable[[Sequence[str]], None]
    ) -> None:
        """`remove`: takes files off the flash once no query reads them."""
        self._remove = remove
        self._files = files
        self._catalog = catalog
        self._rng = rng
        self.edge = edge
        """This edge's name, the origin of its files."""

    @property
    def state(self) -> ShipState:
        """How far files are. `note` changes it."""
        return self._catalog.shipping

    def note(self, entry: dict[str, Any]) -> None:
        """Note an entry of `ship_state.py`, durably, be the flash full or not; of files that are not there any more
        nothing is noted.

        Raises:
            Full: the reserve is used up as well; nothing was noted. Unavailable: it may be.
        """
        there = self._catalog.files
        for key in entry.keys() & {"acked", "aside", "uploads"}:
            entry = {**entry, key: {name: what for name, what in entry[key].items() if name in there}}
        self._catalog.ship(entry)

    def unshipped(self) -> list[FileMeta]:
        """Files that the cloud is not known to have, and that are not set aside."""
        done = self.state
        return [m for m in self._catalog.files.values() if m.file_id not in done.acked and m.file_id not in done.aside]

    def meta(self, file_id: str) -> FileMeta | None:
        """None: it is not on the flash."""
        return self._catalog.files.get(file_id)

    def schema(self, meta: FileMeta) -> TableSchema:
        """That the file was written under."""
        return self._catalog.schemas[meta.table, meta.fingerprint]

    def options(self, table: str) -> TableOptions:
        """The table's present ones; of one that was dropped, the default."""
        there = self._catalog.tables.get(table)
        return there.options if there is not None else TableOptions()

    def part(self, file_id: str, at: int, length: int) -> bytes:
        """Bytes [at, at + length) of a file as they are on the flash, which may be damaged.

        Raises:
            NotFound: it is not there any more.
        """
        self._there(file_id)
        return self._files.part(sst_name(file_id), at, length)

    def rename(self, file_id: str) -> FileMeta:
        """Give a file a fresh id: the cloud takes it under its own no more. Its bytes are written once more.

        Raises:
            NotFound: it is not there any more. Full, Unavailable: it has its old id.
        """
        self._there(file_id)
        fresh = self._rng.token()
        try:
            put_whole(self._files, sst_name(fresh), self._files.read(sst_name(file_id)))
            meta = self._catalog.renamed(file_id, fresh)
        except Full:
            remove_quietly(self._files, [sst_name(fresh)])
            raise
        self._remove([sst_name(file_id)])
        return meta

    def _there(self, file_id: str) -> None:
        if file_id not in self._catalog.files:
            raise NotFound(f"file {file_id} is not on the flash any more")
