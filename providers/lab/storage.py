"""All objects of one emulated store: what every dialect stands on.

    root/format      which layout this is
    root/log/        records of all that happened; small payloads inside        (`storage_log.py`)
    root/data/       large payloads, a file each                                (`storage_files.py`)
    root/buckets/    an empty folder here makes a bucket at the next start

What is there is a fold of the log, held in memory (`storage_index.py`): opening reads the log, cuts a torn tail and
removes payload files that nothing refers to. A large payload is synced before the record that refers to it is added.

Every change is one record, so it is there whole or not at all. It shows in memory at once, but nobody is told of it,
nor of anything that was concluded from it, before the log is synced up to there: each method waits for that, unless a
server says `with storage.deferred()` and holds its answer back itself until `synced` has got to `written`.

All methods but those two block and may be called from several threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import AlreadyExists, Invalid, NotFound, WrongOffset, YunheError
from providers.base.files import replace_file
from providers.lab.storage_compaction import Compactor
from providers.lab.storage_files import BLOCK_BYTES, DataFiles, Extent, Spool
from providers.lab.storage_index import Bucket, Index, Place, Upload, decode, encode
from providers.lab.storage_log import SEGMENT_BYTES, Disk, Log
from providers.lab.storage_parts import (
    KEY_BYTES_MAX,
    NO_ATTRIBUTES,
    Meta,
    ObjectContent,
    Stored,
    plain_extents,
    plain_meta,
)
from providers.lab.storage_payload import Payload

__all__ = ["PARTS_MAX", "Meta", "Storage"]

PARTS_MAX = 10_000
"""S3 and OSS: parts of an upload; S3 Express: appends an object takes, its first put included."""

ATTRIBUTES_BYTES_MAX = 16 << 10
"""More than any cloud takes of user metadata (Azure and GCS: 8 KiB)."""

FORMAT = b"yunhe-objects 2\n"


class Storage:
    """See the module. Holds a lock on `root` until `close`.

    Raises (constructor):
        Invalid: `root` cannot be written, another server holds it, or it holds something else.
        Corrupt: a durable part of the log is damaged.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        rng: Rng | None = None,
        parts_max: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._rng = rng or SystemRng()
        self.parts_max = PARTS_MAX if parts_max is None else parts_max
        self.disk = Disk()
        """What a drill does to it."""
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._freed: list[tuple[int, list[int]]] = []
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"{root} cannot be written: {error.strerror}") from error
        try:
            self._open(root)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, root: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Invalid(f"another server is using {root}") from error
        _check_format(root)
        for name in ("log", "data", "buckets"):
            (root / name).mkdir(exist_ok=True)
        self.files = DataFiles(root / "data", self.disk)
        self._log = Log(root / "log", self.disk, segment_bytes=self._segment_bytes)
        self._index = Index()
        self._index.sorting = False
        for record in self._log.replay():
            taken, freed = self._index.apply(
                decode(record.meta),
                Place(
                    record.segment,
                    record.at,
                    record.data_bytes,
                    record.data_crc32c,
                    record.ends - record.begins,
                    record.sequence,
                ),
            )
            self.files.recount(taken, freed)
        self._index.sort()
        self.files.sweep()
        self._closed = threading.Event()
        self._compactor_wakes = threading.Event()
        self._compactor = threading.Thread(target=self._compact_for_ever, name="compact", daemon=True)
        # What was found is synced; said in a record, damage to it is told from a torn tail from now on.
        self._commit(["opened", ""])
        for folder in sorted((root / "buckets").iterdir()):
            self.create_bucket(folder.name)
        self._compactor.start()

    def close(self) -> None:
        """Sync, end the threads and give up the lock on the directory."""
        self._closed.set()
        self._compactor_wakes.set()
        self._compactor.join()
        with self._mutex, contextlib.suppress(YunheError):
            self._log.add(encode(["closed", ""]), frees=True)
        self._log.close()
        os.close(self._lock)

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, this thread's calls do not wait: whoever holds back what they say must wait for `written` instead."""
        self._local.deferred = True
        try:
            yield
        finally:
            self._local.deferred = False

    @property
    def written(self) -> int:
        """Sequence of the last change."""
        return self._log.written

    @property
    def synced(self) -> int:
        """Sequence up to which all is durable."""
        return self._log.synced

    @property
    def broken(self) -> OSError | None:
        """The disk's error after which nothing is promised any more."""
        return self._log.broken

    def on_synced(self, told: Callable[[], None]) -> None:
        """Have `told` called, in a thread of the storage's, whenever `synced` or `broken` changes."""
        self._log.on_synced = told

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Holds the mutex inside; after it waits until all that was seen there is durable, errors included."""
        try:
            with self._mutex:
                yield
        finally:
            if not getattr(self._local, "deferred", False):
                self._log.wait(self._log.written)

    def _commit(self, record: Sequence[Any], data: bytes = b"", crc_32c: int = 0, *, frees: bool = False) -> Place:
        """Add a record and fold it in. The mutex is held.

        Raises:
            Full, Unavailable: nothing was changed.
        """
        meta = encode(record)
        sequence = self._log.add(meta, data, data_crc32c=crc_32c, frees=frees)
        segment, at = self._log.last
        place = Place(segment, at, len(data), crc_32c, len(meta) + len(data) + 44, sequence)
        taken, freed = self._index.apply(record, place)
        if taken:
            self.files.hold(taken)
            self._log.new_name_in(self.files.folder)
        if freed:
            # Removed when the record is durable: until then a crash brings back who refers to them.
            self._freed.append((sequence, freed))
        if freed or frees:
            self._compactor_wakes.set()
        return place

    def _compact_for_ever(self) -> None:
        compactor = Compactor(self._log, self._index, self._mutex, self._commit, self._segment_bytes)
        while not self._closed.is_set():
            self._compactor_wakes.wait(1.0)
            self._compactor_wakes.clear()
            self._remove_freed()
            compactor.turn()

    def _remove_freed(self) -> None:
        with self._mutex:
            freed, self._freed = self._freed, []
        for sequence, numbers in freed:
            try:
                self._log.wait(sequence)
            except YunheError:
                return  # the log is broken: a restart sorts it out
            self.files.release(numbers)

    # ── buckets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def create_bucket(self, bucket: str) -> bool:
        """Create it; False when it is there already.

        Raises:
            Full, Unavailable
        """
        with self._told():
            fresh = bucket not in self._index.buckets
            if fresh:
                self._commit(["bucket", bucket])
        return fresh

    def sizes(self) -> Mapping[str, int]:
        """Bytes that each bucket holds, parts of unfinished uploads included, as they are billed: for the meter."""
        return {
            name: sum(stored.meta.size for stored in list(bucket.objects.values()))
            + sum(part.meta.size for upload in list(bucket.uploads.values()) for part in list(upload.parts.values()))
            for name, bucket in list(self._index.buckets.items())
        }

    def has_bucket(self, bucket: str) -> bool:
        return bucket in self._index.buckets

    # ── objects ─────────────────────────────────────────────────────────────────────────────────────────────────────

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
        """With `if_absent`, exactly one of any number of concurrent calls succeeds. `appendable` and `attributes` are
        kept with the object, until the next put.

        Raises:
            AlreadyExists, NotFound (the bucket), Full, Invalid, Unavailable.
        """
        _check_key(key)
        _check_attributes(attributes)
        with self._payload(data) as payload:
            md5, sums = payload.known_md5(), payload.sums
            inline, extents = _placed(payload)
            with self._told():
                found = self._bucket(bucket)
                if if_absent and key in found.objects:
                    raise _exists(bucket, key)
                meta = Meta.of(
                    payload.size,
                    sums,
                    self._clock.wall_ms(),
                    self._log.written + 1,
                    md5=md5,
                    appendable=appendable,
                    attributes=attributes or NO_ATTRIBUTES,
                )
                self._commit(["object", bucket, key, plain_meta(meta), extents], inline, sums.crc32c)
        return meta

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
            WrongOffset (`fields["actual"]`: the size), NotFound (the bucket, or the object), Full, Unavailable; Invalid
            with `fields["code"]` "TooManyParts" beyond `parts_max`, "NotAppendable" when it was not made so.
        """
        _check_key(key)
        _check_attributes(attributes)
        with self._payload(data) as payload:
            sums = payload.sums
            inline, extents = _placed(payload)
            plain_sums = [sums.crc32, sums.crc32c, sums.crc64]
            with self._told():
                stored = self._bucket(bucket).objects.get(key)
                now_ms = self._clock.wall_ms()
                if stored is None:
                    if offset != 0 or not create:
                        raise NotFound(f"{bucket}/{key} does not exist")
                    kept = attributes or NO_ATTRIBUTES
                    sequence = self._log.written + 1
                    meta = Meta.of(payload.size, sums, now_ms, sequence, appendable=True, attributes=kept)
                    record: list[Any] = ["object", bucket, key, plain_meta(meta), extents]
                else:
                    if only_appendable and not stored.meta.appendable:
                        raise Invalid(f"{bucket}/{key} is not appendable", code="NotAppendable")
                    if offset != stored.meta.size:
                        raise WrongOffset(
                            f"{bucket}/{key} has {stored.meta.size} bytes, not {offset}", actual=stored.meta.size
                        )
                    if stored.meta.parts >= self.parts_max:
                        raise Invalid(f"{bucket}/{key} has {self.parts_max} parts", code="TooManyParts")
                    record = ["append", bucket, key, offset, payload.size, plain_sums, now_ms, extents]
                self._commit(record, inline, sums.crc32c)
                meta = self._bucket(bucket).objects[key].meta
        return meta

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
        appendable. A large object's bytes are shared, not copied.

        Raises:
            AlreadyExists, NotFound (a bucket, or the source with `fields["source"]`), Corrupt, Full, Invalid,
            Unavailable.
        """
        _check_key(key)
        _check_attributes(attributes)
        try:
            meta, content = self.open(source_bucket, source_key, 0, None)
        except NotFound as error:
            raise NotFound(error.message, source=source_key, **error.fields) from error
        kept = meta.attributes if attributes is None else attributes
        try:
            if any(extent[0] > 0 for extent in content.extents):
                # What lies in the log belongs to the object that it was written for: compaction moves it with that one.
                with self._gathered(content.pieces(), content.size) as payload:
                    return self.put(bucket, key, payload, if_absent=if_absent, attributes=kept)
            with self._told():
                found = self._bucket(bucket)
                if if_absent and key in found.objects:
                    raise _exists(bucket, key)
                sequence, now_ms = self._log.written + 1, self._clock.wall_ms()
                made = Meta.of(meta.size, meta.sums, now_ms, sequence, md5=meta.md5, parts=meta.parts, attributes=kept)
                self._commit(["object", bucket, key, plain_meta(made), plain_extents(content.extents)])
        finally:
            content.close()
        return made

    def contains(self, bucket: str, key: str) -> bool:
        """Whether the object is there; touches no file.

        Raises:
            NotFound (the bucket), Unavailable
        """
        with self._told():
            return key in self._bucket(bucket).objects

    def size(self, bucket: str, key: str) -> int:
        """
        Raises:
            NotFound, Unavailable
        """
        return self.head(bucket, key).size

    def head(self, bucket: str, key: str) -> Meta:
        """
        Raises:
            NotFound, Unavailable
        """
        with self._told():
            return self._stored(bucket, key).meta

    def read(self, bucket: str, key: str, start: int, length: int | None) -> tuple[Meta, bytes]:
        """The bytes [start, start + length) as far as the object goes, in memory: for small objects.

        Raises:
            NotFound, Corrupt, Unavailable
        """
        meta, content = self.open(bucket, key, start, length)
        with contextlib.closing(content):
            return meta, b"".join(content.pieces())

    def open(self, bucket: str, key: str, start: int, length: int | None) -> tuple[Meta, ObjectContent]:
        """As `read`, the bytes to be read piece by piece: what a reply of any size is made from.

        Raises:
            NotFound, Unavailable
        """
        with self._told():
            stored = self._stored(bucket, key)
            size = stored.meta.size
            end = size if length is None else min(size, start + length)
            content = ObjectContent(stored, start, end, self._log.segments, self.files.open, self._hold)
        return stored.meta, content

    def list(
        self, bucket: str, prefix: str, *, start_after: str = "", start_at: str = "", limit: int
    ) -> tuple[Sequence[tuple[str, int]], bool]:
        """Up to `limit` (key, size) in order that sort after `start_after` and not before `start_at`, and whether there
        are more.

        Raises:
            NotFound (the bucket), Unavailable
        """
        rows, more = self.list_metas(bucket, prefix, start_after=start_after, start_at=start_at, limit=limit)
        return [(key, meta.size) for key, meta in rows], more

    def list_metas(
        self, bucket: str, prefix: str, *, start_after: str = "", start_at: str = "", limit: int
    ) -> tuple[Sequence[tuple[str, Meta]], bool]:
        """As `list`, with all that is known of each object.

        Raises:
            NotFound (the bucket), Unavailable
        """
        with self._told():
            found = self._bucket(bucket)
            at = bisect_left(found.keys, max(prefix, start_at))
            if start_after:
                at = max(at, bisect_right(found.keys, start_after))
            page = found.keys[at : at + limit + 1]
            rows = [(key, found.objects[key].meta) for key in page if key.startswith(prefix)]
        return rows[:limit], len(rows) > limit

    def delete(self, bucket: str, keys: Sequence[str]) -> Sequence[bool]:
        """Remove the objects; for each whether it was there.

        Raises:
            NotFound (the bucket), Full, Unavailable
        """
        with self._told():
            found = self._bucket(bucket)
            there = [key in found.objects for key in keys]
            gone = [key for key, was in zip(keys, there, strict=True) if was]
            if gone:
                self._commit(["delete", bucket, gone], frees=True)
        return there

    # ── multipart uploads ───────────────────────────────────────────────────────────────────────────────────────────

    def begin_upload(self, bucket: str, key: str, *, attributes: Mapping[str, str] | None = None) -> str:
        """The id of an upload whose parts stay invisible until it is completed, and which survives a restart.
        `attributes` will be the object's.

        Raises:
            NotFound (the bucket), Full, Invalid, Unavailable.
        """
        _check_key(key)
        _check_attributes(attributes)
        upload = self._rng.token()
        with self._told():
            self._bucket(bucket)
            self._commit(["upload", bucket, upload, key, self._clock.wall_ms(), dict(attributes or {}), []])
        return upload

    def put_part(self, bucket: str, upload: str, number: int, data: Payload | bytes) -> Meta:
        """Store part `number` (0 to 99,999) of the upload; the last of several with one number counts.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload), Full, Unavailable; Invalid with
            `fields["code"]` "PartNumber".
        """
        if not 0 <= number < 100_000:
            raise Invalid(f"a part's number is 0 to 99,999, not {number}", code="PartNumber")
        self.upload_key(bucket, upload)
        with self._payload(data) as given, self._in_file(given) as payload:
            md5 = given.known_md5()
            extents = plain_extents([payload.spool.extent] if payload.spool is not None else [])
            with self._told():
                self._upload(bucket, upload)
                sequence, now_ms = self._log.written + 1, self._clock.wall_ms()
                meta = Meta.of(payload.size, payload.sums, now_ms, sequence, md5=md5)
                self._commit(["part", bucket, upload, number, plain_meta(meta), extents])
        return meta

    def parts(self, bucket: str, upload: str) -> Sequence[tuple[int, Meta]]:
        """What is there of the upload, by number.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload), Unavailable.
        """
        with self._told():
            return [(number, part.meta) for number, part in sorted(self._upload(bucket, upload).parts.items())]

    def complete_upload(
        self,
        bucket: str,
        upload: str,
        numbers: Sequence[int],
        *,
        if_absent: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Meta:
        """Make the object of these parts, in this order, in one step; the upload and its other parts are gone then.
        `attributes`: instead of those that the upload began with (on Azure they come at the end).

        Raises:
            AlreadyExists, NotFound (as `parts`), Full, Unavailable; Invalid with `fields["code"]` "InvalidPart" when a
            part is not there: the upload stays.
        """
        _check_attributes(attributes)
        with self._told():
            found = self._upload(bucket, upload)
            missing = [number for number in numbers if number not in found.parts]
            if missing:
                raise Invalid(f"upload {upload} has no part {missing[0]}", code="InvalidPart")
            if if_absent and found.key in self._bucket(bucket).objects:
                raise _exists(bucket, found.key)
            parts = [found.parts[number] for number in numbers]
            made = Meta.of(0, parts[0].meta.sums, 0, 0) if parts else Meta.of(0, Payload(b"").sums, 0, 0)
            sums, size, extents = made.sums, 0, list[Extent]()
            for part in parts:
                sums = sums.join(part.meta.sums, part.meta.size) if size else part.meta.sums
                size += part.meta.size
                extents += part.extents
            sequence, now_ms = self._log.written + 1, self._clock.wall_ms()
            kept = found.attributes if attributes is None else attributes
            meta = Meta.of(size, sums, now_ms, sequence, parts=len(parts), attributes=kept)
            self._commit(["complete", bucket, upload, found.key, plain_meta(meta), plain_extents(extents)])
        return meta

    def abort_upload(self, bucket: str, upload: str) -> None:
        """Drop the upload and its parts.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload), Full, Unavailable.
        """
        with self._told():
            self._upload(bucket, upload)
            self._commit(["abort", bucket, upload], frees=True)

    def uploads(self, bucket: str, prefix: str) -> Sequence[tuple[str, str, int]]:
        """(key, upload, started_ms) of the uploads under way to keys with this prefix, by key and then by start.

        Raises:
            NotFound (the bucket), Unavailable
        """
        with self._told():
            found = [
                (upload.key, name, upload.started_ms)
                for name, upload in self._bucket(bucket).uploads.items()
                if upload.key.startswith(prefix)
            ]
        return sorted(found, key=lambda row: (row[0], row[2]))

    def upload_key(self, bucket: str, upload: str) -> str:
        """The key that an upload is for.

        Raises:
            NotFound (the bucket, or with `fields["upload"]` the upload), Unavailable.
        """
        with self._told():
            return self._upload(bucket, upload).key

    def collect_uploads(self, older_than_ms: int) -> int:
        """Drop every upload that began more than `older_than_ms` ago; how many.

        Raises:
            Full, Unavailable
        """
        until_ms = self._clock.wall_ms() - older_than_ms
        with self._told():
            stale = [
                (bucket.name, upload)
                for bucket in self._index.buckets.values()
                for upload, found in bucket.uploads.items()
                if found.started_ms < until_ms
            ]
            for bucket_name, upload in stale:
                self._commit(["abort", bucket_name, upload], frees=True)
        return len(stale)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bucket(self, bucket: str) -> Bucket:
        found = self._index.buckets.get(bucket)
        if found is None:
            raise NotFound(f"no bucket {bucket}", bucket=bucket)
        return found

    def _stored(self, bucket: str, key: str) -> Stored:
        found = self._bucket(bucket).objects.get(key)
        if found is None:
            raise NotFound(f"{bucket}/{key} does not exist")
        return found

    def _upload(self, bucket: str, upload: str) -> Upload:
        found = self._bucket(bucket).uploads.get(upload)
        if found is None:
            raise NotFound(f"no upload {upload} to {bucket}", upload=upload)
        return found

    @contextlib.contextmanager
    def _payload(self, data: Payload | bytes) -> Iterator[Payload]:
        if isinstance(data, Payload):
            yield data  # its maker closes it
        elif len(data) <= BLOCK_BYTES:
            yield Payload(data)
        else:
            with self._gathered((data,), len(data)) as payload:
                yield payload

    @contextlib.contextmanager
    def _gathered(self, pieces: Iterable[bytes], size: int) -> Iterator[Payload]:
        if size <= BLOCK_BYTES:
            yield Payload(b"".join(pieces))
            return
        with contextlib.ExitStack() as undo:
            spool = Spool(self.files, size)
            undo.callback(spool.abandon)
            for piece in pieces:
                spool.write(piece)
            yield Payload(spool)

    @contextlib.contextmanager
    def _in_file(self, payload: Payload) -> Iterator[Payload]:
        """Parts are in files whatever their size, for those can be shared by the object that they will make."""
        filed = payload if payload.size == 0 else payload.in_file(self.files)
        try:
            yield filed
        finally:
            if filed is not payload:
                filed.close()

    def _hold(self, numbers: Sequence[int]) -> Callable[[], None]:
        self.files.hold(numbers)
        return lambda: self.files.release(numbers)


def _placed(payload: Payload) -> tuple[bytes, list[list[Any]] | None]:
    """The bytes that go into the log, and the extents of those that do not; None: the log's record has them all."""
    if payload.spool is not None:
        return b"", plain_extents([payload.spool.extent])
    return (payload.read(), None) if payload.size else (b"", [])


def _exists(bucket: str, key: str) -> AlreadyExists:
    return AlreadyExists(f"{bucket}/{key} exists")


def _check_key(key: str) -> None:
    if not key or len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise Invalid(f"a key has 1 to {KEY_BYTES_MAX} bytes")


def _check_attributes(attributes: Mapping[str, str] | None) -> None:
    if attributes and sum(len(name) + len(value) for name, value in attributes.items()) > ATTRIBUTES_BYTES_MAX:
        raise Invalid(f"what is kept beside an object has at most {ATTRIBUTES_BYTES_MAX} characters")


def _check_format(root: Path) -> None:
    """Take up an empty directory, or one that was taken up before."""
    try:
        found = (root / "format").read_bytes()
    except FileNotFoundError:
        older = any(path.is_file() for path in (root / "buckets").glob("*/*")) or any((root / "log").glob("*"))
        found = b"older" if older else FORMAT
        if not older:
            replace_file(root / "format", FORMAT, durable=True)
    if found != FORMAT:
        raise Invalid(
            f"{root} holds objects in another layout than this version's",
            hint="begin with an empty directory; what is there can be read by the version that wrote it",
        )
