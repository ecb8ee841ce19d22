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
import os
import threading
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

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


class Storage:
    """All buckets of one emulated store.

    Opening sweeps temporary files, cuts torn appends and reads the names; it holds a lock on `root` until `close`.

    Raises (constructor):
        Invalid: `root` cannot be written, or another server holds it.
    """

    def __init__(self, root: Path) -> None:
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

    def put(self, bucket: str, key: str, data: bytes, *, if_absent: bool) -> Meta:
        """Durable on return. With `if_absent`, exactly one of any number of concurrent calls succeeds.

        Raises:
            AlreadyExists, NotFound (the bucket), Full, Invalid.
        """
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

    def append(self, bucket: str, key: str, offset: int, data: bytes) -> Meta:
        """Append at exactly the object's size; `offset` 0 on an absent name creates it, as S3 Express and OSS do.

        Raises:
            WrongOffset, NotFound (the bucket, or the object with `offset` > 0), Full; Invalid beyond PARTS_MAX.
        """
        found = self._bucket(bucket)
        path = self._path(found, key)
        with self._stripe(bucket, key):
            entry = found.entries.get(key)
            if entry is not None:
                return self._append(found, path, key, entry, offset, data)
        if offset != 0:
            raise NotFound(f"{bucket}/{key} does not exist")
        try:
            return self.put(bucket, key, data, if_absent=True)
        except AlreadyExists as error:
            raise WrongOffset(f"{bucket}/{key} is not empty") from error

    def _append(self, bucket: _Bucket, path: Path, key: str, entry: _Entry, offset: int, data: bytes) -> Meta:
        if offset != entry.size:
            raise WrongOffset(f"{bucket.name}/{key} has {entry.size} bytes, not {offset}", actual=entry.size)
        if entry.parts >= PARTS_MAX:
            raise Invalid(f"{bucket.name}/{key} has {PARTS_MAX} parts")
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
        found = self._bucket(bucket)
        path = self._path(found, key)
        for last_try in (False, True):
            entry = self._entry(found, key)
            try:
                return self._read(path, entry, start, length)
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
        return Meta(size, etag, last.crc32, last.crc32c, last.crc64, modified_ns // 1_000_000)

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
