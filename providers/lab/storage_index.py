"""All names of the storage, in memory: a fold of the log's records, the same whether they were just added or are read
back at a start.

Records are JSON lists: `["bucket", name]`, `["object", bucket, key, meta, extents]`, `["append", bucket, key, offset,
size, sums, modified_ms, extents]`, `["delete", bucket, keys]`, `["upload", bucket, id, key, started_ms, attributes,
parts]`, `["part", bucket, id, number, meta, extents]`, `["complete", bucket, id, key, meta, extents]`, `["abort",
bucket, id]`, `["data", bucket, key]`, `["no-bucket", bucket]`, `["opened", ""]`, `["closed", ""]`. Extents that are
null: the record's own data, in one piece.

Compaction (`storage_compaction.py`) says the oldest segment's live content anew at the log's end and removes the
segment. So what a remaining record builds on may be gone: an append to a name that is not there, or a part of an
unknown upload, is passed over, for either it is dead or a later record says the whole.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from providers.lab.storage_crc import Sums
from providers.lab.storage_files import Extent
from providers.lab.storage_parts import Stored, read_extents, read_meta


@dataclass(slots=True)
class Upload:
    """A multipart upload under way."""

    key: str
    started_ms: int
    attributes: Mapping[str, str]
    home: int
    parts: dict[int, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """The names in one bucket. `keys` are those of `objects`, in order."""

    name: str
    objects: dict[str, Stored] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    uploads: dict[str, Upload] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record was added: its segment, where its data begin, their length and crc32c (they are one block), and
    its own length."""

    segment: int
    at: int
    data_bytes: int
    data_crc32c: int
    record_bytes: int
    sequence: int


class Index:
    """See the module. The storage's lock is around every call."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.live_bytes = 0
        """Of the log: what objects keep alive."""
        self.sorting = True
        """Off while the log is read: names are sorted once, at its end."""

    def sort(self) -> None:
        for bucket in self.buckets.values():
            bucket.keys = sorted(bucket.objects)
        self.sorting = True

    def apply(self, record: Sequence[Any], place: Place) -> tuple[list[int], list[int]]:
        """Fold a record in; the payload files that are referred to once more, and once less."""
        kind, name = record[0], record[1]
        if kind in ("opened", "closed"):
            return [], []
        if kind == "no-bucket":
            removed = self.buckets.get(name)
            if removed is None:
                return [], []
            let_go = [number for upload in removed.uploads.values() for number in _files_of(upload)]
            for key in list(removed.objects):
                let_go += self._remove(removed, key)
            del self.buckets[name]
            return [], let_go
        # A bucket's own record may come after those of what is in it, for the beginning of the log was compacted.
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = Bucket(name)
        match kind:
            case "object":
                _, _, key, meta, extents = record
                stored = Stored.of(read_meta(meta), _extents(extents, place), *_home(place))
                if extents:
                    # Moved by compaction: its bytes in the log are records of their own.
                    stored.log_bytes += sum(extent[2] for extent in stored.extents if extent[0] > 0)
                return self._put(bucket, key, stored)
            case "append":
                return self._append(bucket, record, place)
            case "delete":
                gone: list[int] = []
                for key in record[2]:
                    gone += self._remove(bucket, key)
                return [], gone
            case "upload":
                _, _, upload, key, started_ms, attributes, parts = record
                made = Upload(key, started_ms, attributes, place.segment)
                for number, meta, extents in parts:
                    made.parts[number] = Stored.of(read_meta(meta), read_extents(extents), *_home(place))
                old = bucket.uploads.get(upload)
                bucket.uploads[upload] = made
                return _files_of(made), _files_of(old)
            case "part":
                _, _, upload, number, meta, extents = record
                found = bucket.uploads.get(upload)
                if found is None:
                    return [], []
                part = Stored.of(read_meta(meta), read_extents(extents), *_home(place))
                before = found.parts.get(number)
                found.parts[number] = part
                return part.files, before.files if before else []
            case "complete":
                _, _, upload, key, meta, extents = record
                used = self._put(bucket, key, Stored.of(read_meta(meta), read_extents(extents), *_home(place)))
                return used[0], used[1] + _files_of(bucket.uploads.pop(upload, None))
            case "abort":
                return [], _files_of(bucket.uploads.pop(record[2], None))
        return [], []  # "bucket"; "data", to which an object's record refers

    def _put(self, bucket: Bucket, key: str, stored: Stored) -> tuple[list[int], list[int]]:
        before = bucket.objects.get(key)
        if before is None:
            if self.sorting:
                insort(bucket.keys, key)
        else:
            self.live_bytes -= before.log_bytes
        bucket.objects[key] = stored
        self.live_bytes += stored.log_bytes
        return stored.files, before.files if before else []

    def _append(self, bucket: Bucket, record: Sequence[Any], place: Place) -> tuple[list[int], list[int]]:
        _, _, key, offset, size, sums, modified_ms, extents = record
        before = bucket.objects.get(key)
        if before is None or before.meta.size != offset:
            return [], []
        added = _extents(extents, place)
        meta = before.meta.appended(size, Sums(*sums), modified_ms, place.sequence)
        if added:
            grown = before.grown(meta, added[0], place.record_bytes)
        else:
            grown = Stored(meta, before.extents, before.starts, before.home, before.log_bytes + place.record_bytes)
        bucket.objects[key] = grown
        self.live_bytes += place.record_bytes
        return [-extent[0] for extent in added if extent[0] < 0], []

    def _remove(self, bucket: Bucket, key: str) -> list[int]:
        before = bucket.objects.pop(key, None)
        if before is None:
            return []
        if self.sorting:
            del bucket.keys[bisect_left(bucket.keys, key)]
        self.live_bytes -= before.log_bytes
        return before.files


def encode(record: Sequence[Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def decode(meta: bytes) -> list[Any]:
    found: list[Any] = json.loads(meta.decode("utf-8", "surrogatepass"))
    return found


def _home(place: Place) -> tuple[int, int]:
    return place.segment, place.record_bytes


def _extents(plain: Sequence[Sequence[Any]] | None, place: Place) -> list[Extent]:
    if plain is not None:
        return read_extents(plain)
    return [(place.segment, place.at, place.data_bytes, array("I", [place.data_crc32c]))] if place.data_bytes else []


def _files_of(upload: Upload | None) -> list[int]:
    return [file for part in upload.parts.values() for file in part.files] if upload else []
