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
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from providers.base.errors import Conflict, Invalid, NotFound, WrongOffset
from providers.lab.storage_core import PARTS_MAX, check_attributes, check_key, exists_error, placed
from providers.lab.storage_parts import (
    NO_ATTRIBUTES,
    Meta,
    ObjectContent,
    plain_extents,
    plain_meta,
)
from providers.lab.storage_payload import Payload
from providers.lab.storage_uploads import Uploads

__all__ = ["PARTS_MAX", "Meta", "Storage"]


class Storage(Uploads):
    """See the module. Holds a lock on `root` until `close`.

    Raises (constructor):
        Invalid: `root` cannot be written, another server holds it, or it holds something else.
        Corrupt: a durable part of the log is damaged.
    """

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

    def remove_bucket(self, bucket: str, *, with_objects: bool = False) -> None:
        """Remove it, and unfinished uploads to it. `with_objects`: what it holds goes with it.

        Raises:
            NotFound (the bucket), Conflict (it holds objects), Full, Unavailable
        """
        with self._told():
            if self._bucket(bucket).objects and not with_objects:
                raise Conflict(f"bucket {bucket} holds objects", bucket=bucket)
            # What lies here is taken up at the next start: the folder must not bring it back.
            with contextlib.suppress(OSError):
                (self._folder / "buckets" / bucket).rmdir()
            self._commit(["no-bucket", bucket], frees=True)

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
        check_key(key)
        check_attributes(attributes)
        with self._payload(data) as payload:
            md5, sums = payload.known_md5(), payload.sums
            inline, extents = placed(payload)
            with self._told():
                found = self._bucket(bucket)
                if if_absent and key in found.objects:
                    raise exists_error(bucket, key)
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
        check_key(key)
        check_attributes(attributes)
        with self._payload(data) as payload:
            sums = payload.sums
            inline, extents = placed(payload)
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
        check_key(key)
        check_attributes(attributes)
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
                    raise exists_error(bucket, key)
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
