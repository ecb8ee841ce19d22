"""How far each file is on its way to the cloud, as the edge's catalog keeps it: what a power cut must not undo.

    waiting ──► in a batch ──► acked ──► removed, after a while
       ▲            │ refused
       └────────────┴──► set aside: kept, and not sent again

Files of which nothing is noted wait. A batch is noted before it is put into the bucket, and no number is noted before
the batch of the one before is there: what the cloud looks for next is never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Shipment:
    """A batch that has its number, and no answer yet. `made_ms`: by the edge's wall clock, part of the signed bytes."""

    number: int
    made_ms: int
    file_ids: tuple[str, ...]


@dataclass(slots=True)
class ShipState:
    """The fold of the catalog's entries about shipping."""

    next_number: int = 0
    """Of the batch to be made next; 0: to be found out from the bucket."""
    open: dict[int, Shipment] = field(default_factory=dict)
    """Batches without an answer, by number."""
    acked: dict[str, int] = field(default_factory=dict)
    """Files that the cloud has: when the edge heard so, by its wall clock, in milliseconds."""
    aside: dict[str, str] = field(default_factory=dict)
    """Files that are kept and not sent again: why."""
    copies: dict[str, int] = field(default_factory=dict)
    """Files under a fresh id: the how manieth that is."""

    uploads: dict[str, str] = field(default_factory=dict)
    """Uploads in parts that were begun, by file: the store's own names of them."""

    def apply(self, entry: dict[str, Any]) -> None:
        """What an entry of the catalog says; its keys are those that the methods below write."""
        if "closed" in entry:
            self.open.pop(entry["closed"], None)
        if "batch" in entry:
            plain = entry["batch"]
            self.open[plain["number"]] = Shipment(plain["number"], plain["made_ms"], tuple(plain["files"]))
        self.acked.update(entry.get("acked", {}))
        self.aside.update(entry.get("aside", {}))
        self.copies.update(entry.get("copies", {}))
        for file_id, upload in entry.get("uploads", {}).items():
            if upload is None:
                self.uploads.pop(file_id, None)
            else:
                self.uploads[file_id] = upload
        self.next_number = entry.get("next", self.next_number)

    def gone(self, file_id: str) -> None:
        """The file is no more on the flash."""
        for of in (self.acked, self.aside, self.copies, self.uploads):
            of.pop(file_id, None)

    def entries(self) -> Iterator[dict[str, Any]]:
        """What makes the same state from nothing."""
        yield {
            "acked": self.acked,
            "aside": self.aside,
            "copies": self.copies,
            "uploads": self.uploads,
            "next": self.next_number,
        }
        for shipment in self.open.values():
            yield {"batch": plain(shipment)}


def plain(shipment: Shipment) -> dict[str, Any]:
    """As JSON values."""
    return {"number": shipment.number, "made_ms": shipment.made_ms, "files": list(shipment.file_ids)}


def upload_begun(file_id: str, upload: str | None) -> dict[str, Any]:
    """The file's parts go into this upload from here on; None: into none any more."""
    return {"uploads": {file_id: upload}}


def batch_made(shipment: Shipment) -> dict[str, Any]:
    """These files are in this batch, which may be in the bucket from here on."""
    return {"batch": plain(shipment), "next": shipment.number + 1}


def batch_imported(shipment: Shipment, at_ms: int) -> dict[str, Any]:
    """The cloud has its files."""
    return {"closed": shipment.number, "acked": dict.fromkeys(shipment.file_ids, at_ms)}


def batch_refused(shipment: Shipment, aside: dict[str, str]) -> dict[str, Any]:
    """The cloud has none of its files; those that are not set aside wait again."""
    return {"closed": shipment.number, "aside": aside}


def batch_withdrawn(shipment: Shipment, next_number: int) -> dict[str, Any]:
    """Another batch has that number, or none has to be made of it any more: its files wait again."""
    return {"closed": shipment.number, "next": next_number}
