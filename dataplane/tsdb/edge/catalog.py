"""What an edge has on its flash: tables, files, how far each table's log is in files, and what encodings suit its
columns. A log of its own, rewritten whole now and then.

Each record is durable before the next is written, so that only the last can be torn; damage before it is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from dataplane.contract.codec import from_plain, to_plain
from dataplane.tsdb.edge.files import Files
from dataplane.tsdb.edge.record_log import Log, decode, encode, resumes_at
from dataplane.tsdb.edge.ship_state import ShipState
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.encoding import Encoding
from providers.base.errors import Corrupt, Full, Unavailable, YunheError

log = logging.getLogger(__name__)

NAME = "catalog"
NEW = "catalog.new"
RESERVE = "reserve"
RESERVE_BYTES = 64 << 10
"""Kept on the flash for the day when it is full: what frees room has to be noted first, and a note needs room."""
REWRITE_BYTES = 1 << 20
"""Size from which it is rewritten when half of it is history."""


class Catalog:
    """See the module. What a method has noted is durable when it returns."""

    def __init__(self, files: Files) -> None:
        """Read it, or begin it.

        Raises:
            Corrupt: a record before the last is damaged.
        """
        self._files = files
        self.tables: dict[str, TableSchema] = {}
        self.schemas: dict[tuple[str, str], TableSchema] = {}
        """Every version that a file or a record of the log may be of, by table and fingerprint."""
        self.files: dict[str, FileMeta] = {}
        self.floors: dict[str, int] = {}
        """Of each table: records of the log up to this one are in files."""
        self.chosen: dict[str, Mapping[str, Encoding]] = {}
        """Of each table's columns, as of its newest file: measuring costs more than making the file."""
        self.shipping = ShipState()
        self._sequence = 0
        """Of the newest file, ever."""
        self._rewritten_bytes = 0
        data = files.read(NAME) if NAME in files.names() else b""
        sequence, size = 1, 0
        for record in decode(data, 1):
            self._apply(json.loads(record.payload))
            sequence, size = record.sequence + 1, record.end
        if resumes_at(data, size, sequence - 1):
            raise Corrupt(
                f"record {sequence} of the edge's catalog is damaged, and others follow it",
                hint="files that were shipped are in the cloud; keep this folder, and begin in a new one",
            )
        self._log = Log.cut(files, NAME, sequence, size)
        self._reserve()

    @property
    def in_doubt(self) -> str | None:
        """As the log's."""
        return self._log.in_doubt

    def table(self, schema: TableSchema) -> None:
        """A new table, or a table's next version."""
        self._note({"table": to_plain(schema)})

    def file(self, meta: FileMeta, floor: int, chosen: Mapping[str, Encoding] | None = None) -> FileMeta:
        """A file that is there, up to which record of the log it has its table's rows, and how its columns are encoded.
        Its sequence is given here.

        Raises:
            Full, Unavailable: it is not noted, or not known to be.
        """
        numbered = {**to_plain(meta), "sequence": self._sequence + 1}
        entry = {"file": numbered, "floor": floor}
        if chosen and chosen != self.chosen.get(meta.table):
            entry["chosen"] = _chosen_entry(meta.table, chosen)
        self._note(entry)
        return self.files[meta.file_id]

    def gone(self, file_ids: Iterable[str]) -> None:
        """Files that are to be removed."""
        self._note_even_if_full({"gone": list(file_ids)})

    def ship(self, entry: dict[str, Any]) -> None:
        """How far files are on their way to the cloud: an entry of `ship_state.py`."""
        self._note_even_if_full({"ship": entry})

    def renamed(self, file_id: str, fresh: str) -> FileMeta:
        """The file has a fresh id, and its place among the others as before."""
        meta = {**to_plain(self.files[file_id]), "file_id": fresh}
        copies = {fresh: self.shipping.copies.get(file_id, 0) + 1}
        self._note({"gone": [file_id], "renamed": meta, "ship": {"copies": copies}})
        return self.files[fresh]

    def _note_even_if_full(self, entry: dict[str, Any]) -> None:
        try:
            self._note(entry)
        except Full:
            if RESERVE not in self._files.names():
                raise
            self._files.remove(RESERVE)
            self._note(entry)

    def _reserve(self) -> None:
        """Make it, or what is missing of it; without room for it all goes on, until the flash is full."""
        try:
            there = self._files.read(RESERVE) if RESERVE in self._files.names() else b""
            if len(there) < RESERVE_BYTES:
                self._files.append(RESERVE, 0, bytes(RESERVE_BYTES))
                self._files.sync(RESERVE)
        except Full:
            log.warning("no-reserve: the flash is nearly full")

    def emptied(self, table: str, floor: int, *, dropped: bool) -> list[str]:
        """The table has no rows, neither in files nor in the log up to record `floor`, or is no more; its files' ids,
        which are to be removed."""
        gone = [meta.file_id for meta in self.files.values() if meta.table == table]
        self._note_even_if_full({"gone": gone, "emptied": table, "floor": floor, "dropped": dropped})
        return gone

    def _note(self, entry: dict[str, Any]) -> None:
        self._log.append(_payload(entry))
        self._log.sync()
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        for table, columns in entry.get("chosen", {}).items():
            self.chosen[table] = {name: Encoding(*its) for name, its in columns.items()}
        if "table" in entry:
            schema = from_plain(TableSchema, entry["table"])
            self.schemas[schema.name, schema.fingerprint] = schema
            if entry.get("present", True):
                self.tables[schema.name] = schema
        elif "file" in entry:
            meta = from_plain(FileMeta, entry["file"])
            self.files[meta.file_id] = meta
            self._sequence = max(self._sequence, meta.sequence)
            self.floors[meta.table] = max(entry["floor"], self.floors.get(meta.table, 0))
        elif "floors" in entry:
            self.floors, self._sequence = dict(entry["floors"]), entry["sequence"]
        else:
            for file_id in entry.get("gone", ()):
                self.files.pop(file_id, None)
                self.shipping.gone(file_id)
            if "emptied" in entry:
                table = entry["emptied"]
                self.floors[table] = max(entry["floor"], self.floors.get(table, 0))
                if entry["dropped"]:
                    self.tables.pop(table, None)
                    self.chosen.pop(table, None)
            if "renamed" in entry:
                renamed = from_plain(FileMeta, entry["renamed"])
                self.files[renamed.file_id] = renamed
            self.shipping.apply(entry.get("ship", {}))

    def tidy(self) -> None:
        """Rewrite it if most of it is history: the state as it is, in a new file that takes the old one's place.

        Raises:
            Full: no room; nothing was changed. Unavailable: the catalog takes nothing more until it is opened anew.
        """
        if self._log.size <= max(REWRITE_BYTES, 2 * self._rewritten_bytes):
            return
        entries: list[dict[str, Any]] = [
            {"table": to_plain(schema), "present": self.tables.get(schema.name) == schema}
            for schema in self.schemas.values()
        ]
        entries += [{"file": to_plain(meta), "floor": 0} for meta in self.files.values()]
        entries.append({"floors": self.floors, "sequence": self._sequence})
        entries += [{"chosen": _chosen_entry(table, columns)} for table, columns in self.chosen.items()]
        entries += [{"ship": entry} for entry in self.shipping.entries()]
        data = b"".join(encode(number, _payload(entry)) for number, entry in enumerate(entries, 1))
        self._files.append(NEW, 0, data)
        self._files.truncate(NEW, len(data))
        self._files.sync(NEW)
        try:
            self._files.rename(NEW, NAME)
            self._files.sync_names()
        except YunheError as error:
            # Which of the two a power cut would leave is not known, and what is noted in one is not in the other.
            self._log.doubt(str(error))
            raise Unavailable(f"the edge's catalog is in doubt: {error}") from error
        self._log = Log(self._files, NAME, len(entries) + 1, len(data))
        self._rewritten_bytes = len(data)

    def keep_reserve(self) -> None:
        """After room was made: have it again. Raises Unavailable."""
        if RESERVE not in self._files.names():
            self._reserve()


def _chosen_entry(table: str, columns: Mapping[str, Encoding]) -> dict[str, Any]:
    return {table: {name: _encoding_entry(encoding) for name, encoding in columns.items()}}


def _encoding_entry(encoding: Encoding) -> list[str | int | None]:
    return [encoding.name, encoding.level, *([encoding.finer] if encoding.finer else [])]


def _payload(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()
