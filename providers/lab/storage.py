"""Objects as files under one directory: what every emulated object store keeps its bytes in.

Layout: `buckets/<bucket>/<escaped key>` and `tmp/`, on one file system. An object's file is a sequence of *parts*, one
for a put and one more for each append:

    magic 4 | payload bytes u64 | blocks u32 | crc32, crc32c u32, crc64 u64 of the object up to here | md5 of the
    object's first put 16 | key bytes u16, key (first part only) | crc32c of each 1 MiB block | crc32c of all the above
    | payload

Durability: a put is written to `tmp/`, synced, linked or renamed to its name, and the folder synced; only then does the
in-memory index, which all reads go by, show it. So whatever a crash leaves behind, no reader has seen what may be lost,
and none ever sees a torn object. An append is one write and one sync at the committed end; a part that is torn by a
crash was never acked and is cut when the store opens. All methods block and may be called from several threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from providers.base.clock import Clock, SystemClock
from providers.base.errors import AlreadyExists, Corrupt, Full, Invalid, NotFound, Unavailable, WrongOffset
from providers.base.files import sync_folder
from providers.lab.storage_parts import (
    BLOCK_BYTES,
    HEAD,
    KEY_BYTES_MAX,
    U32,
    Part,
    decode,
    encode,
    file_name,
    read_head,
    read_part,
    write_all,
)
from providers.lab.storage_payload import Payload
from providers.lab.wire import Content

PARTS_MAX = 10_000
"""S3 Express: appends an object takes, its first put included."""

_LOCK_STRIPES = 64


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of an object without reading its bytes. Checksums cover the whole object; `etag` changes with every
    write."""

    size: int
    etag: str
    crc32: int
    crc32c: int
    crc64: int
    modified_ms: int
    md5: bytes | None = None
    """Of an object put in one piece, where somebody asked for it; None otherwise, and then `etag` is no MD5."""
    appendable: bool = False
    parts: int = 1
    """Pieces that it was put together from: the parts of its upload, or its put and its appends."""
    generation: int = 0
    """Grows with every write of the storage."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What the dialect put beside the bytes (content type, user metadata); of no meaning to the storage."""


@dataclass(slots=True)
class _Entry:
    size: int
    parts: int = 1
    starts: array[int] = field(default_factory=lambda: array("Q"))
    """Logical offset of each part after the first, and `places` its offset in the file: empty for most objects."""
    places: array[int] = field(default_factory=lambda: array("Q"))
    file_bytes: int = 0


class _Bucket:
    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.entries: dict[str, _Entry] = {}
        self.keys: list[str] = []
        self.lock = threading.Lock()

    def show(self, key: str, entry: _Entry) -> None:
        with self.lock:
            if key not in self.entries:
                insort(self.keys, key)
            self.entries[key] = entry

    def hide(self, key: str) -> None:
        with self.lock:
            if self.entries.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]


class Held:
    """A reply's bytes that are in memory already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pieces(self) -> Iterator[bytes]:
        yield self._data


def _uploads_of(bucket: str) -> str:
    return f"{bucket}~uploads"  # no bucket of any cloud has such a name


class Storage:
    """All buckets of one emulated store.

    Opening sweeps temporary files, cuts torn appends and reads the names; it holds a lock on `root` until `close`.

    Raises (constructor):
        Invalid: `root` cannot be written, or another server holds it.
    """

    def __init__(self, root: Path, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._extra: dict[tuple[str, str], tuple[bool, dict[str, str]]] = {}
        self._root = root
        self._tmp = root / "tmp"
        self._buckets: dict[str, _Bucket] = {}
        self._stripes = [threading.Lock() for _ in range(_LOCK_STRIPES)]
        self._counter = 0
        self._counter_lock = threading.Lock()
        try:
            self._tmp.mkdir(parents=True, exist_ok=True)
            (root / "buckets").mkdir(exist_ok=True)
            self._lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"{root} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise Invalid(f"another server is using {root}") from error
        for stale in self._tmp.iterdir():
            stale.unlink()
        for folder in sorted((root / "buckets").iterdir()):
            self._buckets[folder.name] = self._load(folder)
        sync_folder(root)

    def close(self) -> None:
        """Give up the lock on the directory."""
        os.close(self._lock)

    # -- buckets

    def create_bucket(self, bucket: str) -> bool:
        """Create it; False when it is there already."""
        with self._stripe(bucket, ""):
            if bucket in self._buckets:
                return False
            folder = self._root / "buckets" / bucket
            folder.mkdir()
            sync_folder(folder.parent)
            self._buckets[bucket] = _Bucket(bucket, folder)
            return True

    def has_bucket(self, bucket: str) -> bool:
        return bucket in self._buckets

    # -- objects

    def put(
        self,
        bucket: str,
        key: str,
        data: Payload | bytes,
        *,
        if_absent: bool = False,
        appendable: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Meta:
        """Durable on return. With `if_absent`, exactly one of any number of concurrent calls succeeds. `appendable`
        and `attributes` are kept with the object, until the next put.

        Raises:
            AlreadyExists, NotFound (the bucket), Full, Invalid.
        """
        data = data if isinstance(data, bytes) else data.read()
        meta = self._put(bucket, key, data, if_absent=if_absent)
        self._extra[bucket, key] = (appendable, dict(attributes or {}))
        return self._with_extra(bucket, key, meta)

    def _with_extra(self, bucket: str, key: str, meta: Meta) -> Meta:
        appendable, attributes = self._extra.get((bucket, key), (False, {}))
        return replace(meta, appendable=appendable, attributes=attributes)

    def _put(self, bucket: str, key: str, data: bytes, *, if_absent: bool) -> Meta:
        found = self._bucket(bucket)
        path = self._path(found, key)
        with self._stripe(bucket, key):
            if if_absent and key in found.entries:
                raise AlreadyExists(f"{bucket}/{key} exists")
            md5 = hashlib.md5(data, usedforsecurity=False).digest()
            part = encode(data, Part(0, 0, 0, 0, md5, key, (), 0))
            fresh = self._temporary()
            try:
                with fresh.open("xb", buffering=0) as file:
                    write_all(file.fileno(), part, 0)
                    write_all(file.fileno(), data, len(part))
                    os.fsync(file.fileno())
                if if_absent:
                    # Linking fails when the name is taken, whatever the index says.
                    os.link(fresh, path)
                    fresh.unlink()
                else:
                    fresh.replace(path)
                sync_folder(found.folder)
                status = path.stat()
            except FileExistsError as error:
                fresh.unlink(missing_ok=True)
                raise AlreadyExists(f"{bucket}/{key} exists") from error
            except OSError as error:
                fresh.unlink(missing_ok=True)
                raise Full(f"{bucket}/{key} could not be stored: {error.strerror}") from error
            found.show(key, _Entry(len(data), file_bytes=len(part) + len(data)))
            return self._meta(decode(part, path), 1, len(data), status.st_mtime_ns)

    def append(
        self,
        bucket: str,
        key: str,
        offset: int,
        data: Payload | bytes,
        *,
        create: bool = True,
        only_appendable: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Meta:
        """Append at exactly the object's size.

        `create`: `offset` 0 on an absent name creates an appendable object, as S3 Express and OSS do; `attributes` are
        its. `only_appendable`: to objects that were made so (OSS, Azure), not to any (S3 Express).

        Raises:
            WrongOffset (`fields["actual"]`: the size), NotFound (the bucket, or the object), Full; Invalid with
            `fields["code"]` "TooManyParts" beyond PARTS_MAX, "NotAppendable" when it was not made so.
        """
        data = data if isinstance(data, bytes) else data.read()
        found = self._bucket(bucket)
        absent = key not in found.entries
        if absent and not create:
            raise NotFound(f"{bucket}/{key} does not exist")
        if only_appendable and not absent and not self._extra.get((bucket, key), (False, {}))[0]:
            raise Invalid(f"{bucket}/{key} is not appendable", code="NotAppendable")
        if absent and offset == 0:
            self._extra[bucket, key] = (True, dict(attributes or {}))
        return self._with_extra(bucket, key, self._append_any(bucket, key, offset, data))

    def _append_any(self, bucket: str, key: str, offset: int, data: bytes) -> Meta:
        found = self._bucket(bucket)
        path = self._path(found, key)
        with self._stripe(bucket, key):
            entry = found.entries.get(key)
            if entry is not None:
                return self._append(found, path, key, entry, offset, data)
        if offset != 0:
            raise NotFound(f"{bucket}/{key} does not exist")
        try:
            return self._put(bucket, key, data, if_absent=True)
        except AlreadyExists as error:
            raise WrongOffset(f"{bucket}/{key} is not empty") from error

    def _append(self, bucket: _Bucket, path: Path, key: str, entry: _Entry, offset: int, data: bytes) -> Meta:
        if offset != entry.size:
            raise WrongOffset(f"{bucket.name}/{key} has {entry.size} bytes, not {offset}", actual=entry.size)
        if entry.parts >= PARTS_MAX:
            raise Invalid(f"{bucket.name}/{key} has {PARTS_MAX} parts", code="TooManyParts")
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            last = read_head(descriptor, entry.places[-1] if entry.places else 0, path)
            head = encode(data, last)
            try:
                write_all(descriptor, head + data, entry.file_bytes)
                os.fdatasync(descriptor)
            except OSError as error:
                os.ftruncate(descriptor, entry.file_bytes)
                raise Full(f"{bucket.name}/{key} could not be stored: {error.strerror}") from error
            modified_ns = os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
        grown = _Entry(
            size=entry.size + len(data),
            parts=entry.parts + 1,
            starts=entry.starts + array("Q", [entry.size]),
            places=entry.places + array("Q", [entry.file_bytes]),
            file_bytes=entry.file_bytes + len(head) + len(data),
        )
        bucket.show(key, grown)
        return self._meta(decode(head, path), grown.parts, grown.size, modified_ns)

    def contains(self, bucket: str, key: str) -> bool:
        """Whether the object is there; touches no file.

        Raises:
            NotFound: no such bucket.
        """
        return key in self._bucket(bucket).entries

    def size(self, bucket: str, key: str) -> int:
        """Size from memory.

        Raises:
            NotFound
        """
        return self._entry(self._bucket(bucket), key).size

    def head(self, bucket: str, key: str) -> Meta:
        """
        Raises:
            NotFound, Corrupt
        """
        return self.read(bucket, key, 0, 0)[0]

    def read(self, bucket: str, key: str, start: int, length: int | None) -> tuple[Meta, bytes]:
        """The bytes [start, start + length) as far as the object goes, each checked against its checksum.

        Raises:
            NotFound, Corrupt
        """
        meta, content = self.open(bucket, key, start, length)
        return meta, b"".join(content.pieces())

    def open(self, bucket: str, key: str, start: int, length: int | None) -> tuple[Meta, Content]:
        """As `read`, the bytes to be read piece by piece: what a reply of any size is made from.

        Raises:
            NotFound, Corrupt
        """
        found = self._bucket(bucket)
        path = self._path(found, key)
        for last_try in (False, True):
            entry = self._entry(found, key)
            try:
                meta, data = self._read(path, entry, start, length)
                return self._with_extra(bucket, key, meta), Held(data)
            except (Corrupt, FileNotFoundError) as error:
                # The object may have been replaced between the look-up and the open: then the index has moved on.
                if found.entries.get(key) is not entry and not last_try:
                    continue
                if isinstance(error, Corrupt):
                    raise
                raise Corrupt(f"{path} has gone from under the server") from error
        raise Unavailable(f"{bucket}/{key} is being replaced")

    def _read(self, path: Path, entry: _Entry, start: int, length: int | None) -> tuple[Meta, bytes]:
        end = entry.size if length is None else min(entry.size, start + length)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            modified_ns = os.fstat(descriptor).st_mtime_ns
            chunks = []
            last = None
            if start < end:
                first = bisect_right(entry.starts, start)
                for index in range(first, entry.parts):
                    begins = entry.starts[index - 1] if index else 0
                    if begins >= end:
                        break
                    place = entry.places[index - 1] if index else 0
                    ends = entry.starts[index] if index < len(entry.starts) else entry.size
                    last = read_head(descriptor, place, path)
                    if last.payload != ends - begins:
                        raise Corrupt(f"{path} is not as long as it was")
                    chunks.append(read_part(descriptor, place, last, max(start - begins, 0), end - begins, path))
            if last is None or end < entry.size:
                last = read_head(descriptor, entry.places[-1] if entry.places else 0, path)
            return self._meta(last, entry.parts, entry.size, modified_ns), b"".join(chunks)
        finally:
            os.close(descriptor)

    # -- multipart uploads

    def begin_upload(self, bucket: str, key: str, *, attributes: Mapping[str, str] | None = None) -> str:
        """The id of an upload whose parts stay invisible until it is completed, and which survives a restart.
        `attributes` will be the object's.

        Raises:
            NotFound (the bucket), Full, Invalid.
        """
        found = self._bucket(bucket)
        self._path(found, key)
        with self._counter_lock:
            self._counter += 1
            upload = f"{self._clock.wall_ms():x}{self._counter:08x}"
        record = {"key": key, "started_ms": self._clock.wall_ms(), "attributes": dict(attributes or {})}
        self.create_bucket(_uploads_of(bucket))
        self._put(_uploads_of(bucket), upload, json.dumps(record).encode(), if_absent=True)
        return upload

    def _upload(self, bucket: str, upload: str) -> dict[str, Any]:
        self._bucket(bucket)
        try:
            return dict(json.loads(self.read(_uploads_of(bucket), upload, 0, None)[1]))
        except NotFound as error:
            raise NotFound(f"no upload {upload} to {bucket}", upload=upload) from error

    def put_part(self, bucket: str, upload: str, number: int, data: Payload | bytes) -> Meta:
        """Store part `number` (0 to PARTS_MAX) of the upload, durably; the last of several with one number counts.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload), Full, Invalid.
        """
        self._upload(bucket, upload)
        if not 0 <= number <= PARTS_MAX:
            raise Invalid(f"a part's number is 0 to {PARTS_MAX}, not {number}", code="PartNumber")
        data = data if isinstance(data, bytes) else data.read()
        return self._put(_uploads_of(bucket), f"{upload}/{number:06}", data, if_absent=False)

    def parts(self, bucket: str, upload: str) -> Sequence[tuple[int, Meta]]:
        """What is there of the upload, by number.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload).
        """
        self._upload(bucket, upload)
        held = _uploads_of(bucket)
        rows, _ = self.list(held, f"{upload}/", limit=PARTS_MAX + 1)
        return [(int(key.rpartition("/")[2]), self.head(held, key)) for key, _ in rows]

    def complete_upload(self, bucket: str, upload: str, numbers: Sequence[int], *, if_absent: bool = False) -> Meta:
        """Make the object of these parts, in this order, in one step; the upload and its other parts are gone then.

        Raises:
            AlreadyExists, NotFound (as `parts`), Full; Invalid with `fields["code"]` "InvalidPart" when a part is not
            there: the upload stays.
        """
        record = self._upload(bucket, upload)
        there = {number for number, _ in self.parts(bucket, upload)}
        missing = [number for number in numbers if number not in there]
        if missing:
            raise Invalid(f"upload {upload} has no part {missing[0]}", code="InvalidPart")
        held = _uploads_of(bucket)
        data = b"".join(self.read(held, f"{upload}/{number:06}", 0, None)[1] for number in numbers)
        meta = self.put(bucket, record["key"], data, if_absent=if_absent, attributes=record["attributes"])
        self.abort_upload(bucket, upload)
        return replace(meta, parts=len(numbers))

    def abort_upload(self, bucket: str, upload: str) -> None:
        """Drop the upload and its parts.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload).
        """
        self._upload(bucket, upload)
        held = _uploads_of(bucket)
        rows, _ = self.list(held, f"{upload}/", limit=PARTS_MAX + 1)
        self.delete(held, [upload, *(key for key, _ in rows)])

    def uploads(self, bucket: str, prefix: str) -> Sequence[tuple[str, str, int]]:
        """(key, upload, started_ms) of the uploads under way to keys with this prefix, by key and then by id.

        Raises:
            NotFound: no such bucket.
        """
        self._bucket(bucket)
        if not self.has_bucket(_uploads_of(bucket)):
            return []
        rows, _ = self.list(_uploads_of(bucket), "", limit=1 << 30)
        found = []
        for upload in (key for key, _ in rows if "/" not in key):
            record = self._upload(bucket, upload)
            if record["key"].startswith(prefix):
                found.append((record["key"], upload, int(record["started_ms"])))
        return sorted(found)

    def copy(
        self,
        bucket: str,
        key: str,
        source_bucket: str,
        source_key: str,
        *,
        if_absent: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Meta:
        """Make an object with the bytes of another, and its attributes unless others are given. The copy is not
        appendable.

        Raises:
            AlreadyExists, NotFound (a bucket, or the source with `fields["source"]`), Corrupt, Full, Invalid.
        """
        try:
            meta, data = self.read(source_bucket, source_key, 0, None)
        except NotFound as error:
            raise NotFound(error.message, source=source_key, **error.fields) from error
        kept = meta.attributes if attributes is None else attributes
        return self.put(bucket, key, data, if_absent=if_absent, attributes=kept)

    def list(
        self, bucket: str, prefix: str, *, start_after: str = "", start_at: str = "", limit: int
    ) -> tuple[Sequence[tuple[str, int]], bool]:
        """Up to `limit` (key, size) in order that sort after `start_after` and not before `start_at`, and whether there
        are more.

        Raises:
            NotFound: no such bucket.
        """
        found = self._bucket(bucket)
        with found.lock:
            at = bisect_left(found.keys, max(prefix, start_at))
            if start_after:
                at = max(at, bisect_right(found.keys, start_after))
            page = found.keys[at : at + limit + 1]
            rows = [(key, found.entries[key].size) for key in page if key.startswith(prefix)]
        return rows[:limit], len(rows) > limit

    def delete(self, bucket: str, keys: Sequence[str]) -> Sequence[bool]:
        """Remove the objects, durably; for each whether it was there.

        Raises:
            NotFound: no such bucket.
        """
        found = self._bucket(bucket)
        gone = []
        for key in keys:
            path = self._path(found, key)
            with self._stripe(bucket, key):
                there = key in found.entries
                found.hide(key)
                path.unlink(missing_ok=True)
            gone.append(there)
        if any(gone):
            sync_folder(found.folder)
        return gone

    # -- inside

    def _bucket(self, bucket: str) -> _Bucket:
        found = self._buckets.get(bucket)
        if found is None:
            raise NotFound(f"no bucket {bucket}", bucket=bucket)
        return found

    def _entry(self, bucket: _Bucket, key: str) -> _Entry:
        entry = bucket.entries.get(key)
        if entry is None:
            raise NotFound(f"{bucket.name}/{key} does not exist")
        return entry

    def _stripe(self, bucket: str, key: str) -> threading.Lock:
        return self._stripes[hash((bucket, key)) % _LOCK_STRIPES]

    def _temporary(self) -> Path:
        with self._counter_lock:
            self._counter += 1
            return self._tmp / f"{self._counter}"

    def _path(self, bucket: _Bucket, key: str) -> Path:
        if not key or len(key.encode()) > KEY_BYTES_MAX:
            raise Invalid(f"a key has 1 to {KEY_BYTES_MAX} bytes")
        return bucket.folder / file_name(key)

    def _meta(self, last: Part, parts: int, size: int, modified_ns: int) -> Meta:
        etag = last.md5.hex() if parts == 1 else f"{last.md5.hex()}-{parts}"
        md5 = last.md5 if parts == 1 else None
        return Meta(size, etag, last.crc32, last.crc32c, last.crc64, modified_ns // 1_000_000, md5, parts=parts)

    def _load(self, folder: Path) -> _Bucket:
        bucket = _Bucket(folder.name, folder)
        with os.scandir(folder) as listing:
            for found in listing:
                key = unquote(found.name)
                path = Path(found.path)
                if found.name.startswith("%~") or "--x-s3" in folder.name:
                    key, entry = self._load_parts(path, key)
                else:
                    # A put was renamed into place whole: its header's length follows from the file's, and is checked on
                    # read.
                    entry = self._single(path, found.stat().st_size)
                bucket.entries[key] = entry
        bucket.keys = sorted(bucket.entries)
        return bucket

    def _single(self, path: Path, file_bytes: int) -> _Entry:
        key_bytes = len(unquote(path.name).encode())
        fixed = HEAD.size + key_bytes + U32.size
        # blocks = ceil(payload / BLOCK_BYTES) and file = fixed + 4 * blocks + payload, solved for the payload.
        blocks = -(-(max(file_bytes - fixed, 0)) // (BLOCK_BYTES + U32.size))
        return _Entry(max(file_bytes - fixed - U32.size * blocks, 0), file_bytes=file_bytes)

    def _load_parts(self, path: Path, key: str) -> tuple[str, _Entry]:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            file_bytes = os.fstat(descriptor).st_size
            try:
                head = read_head(descriptor, 0, path)
            except Corrupt:
                # The first part was renamed into place whole, so this is damage, not a torn write: it stays, and reads
                # of it fail.
                return key, _Entry(0, file_bytes=file_bytes)
            entry = _Entry(head.payload, file_bytes=head.head_bytes + head.payload)
            while entry.file_bytes < file_bytes:
                place = entry.file_bytes
                try:
                    part = read_head(descriptor, place, path)
                    ends = place + part.head_bytes + part.payload
                    if ends >= file_bytes:
                        # Only the last append can be torn: the one before was synced first.
                        read_part(descriptor, place, part, 0, part.payload, path)
                except Corrupt:
                    os.ftruncate(descriptor, place)
                    os.fsync(descriptor)
                    break
                entry.starts.append(entry.size)
                entry.places.append(place)
                entry.parts += 1
                entry.size += part.payload
                entry.file_bytes = ends
            return head.key, entry
        finally:
            os.close(descriptor)
