"""Multipart uploads: parts that nobody sees until they become an object in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from providers.base.errors import Invalid
from providers.lab.storage_core import StorageCore, check_attributes, check_key, exists_error
from providers.lab.storage_files import Extent
from providers.lab.storage_parts import (
    Meta,
    plain_extents,
    plain_meta,
)
from providers.lab.storage_payload import Payload


class Uploads(StorageCore):
    """The part of `Storage` that is about multipart uploads."""

    def begin_upload(self, bucket: str, key: str, *, attributes: Mapping[str, str] | None = None) -> str:
        """The id of an upload whose parts stay invisible until it is completed, and which survives a restart.
        `attributes` will be the object's.

        Raises:
            NotFound (the bucket), Full, Invalid, Unavailable.
        """
        check_key(key)
        check_attributes(attributes)
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
        check_attributes(attributes)
        check_attributes(attributes)
        with self._told():
            found = self._upload(bucket, upload)
            missing = [number for number in numbers if number not in found.parts]
            if missing:
                raise Invalid(f"upload {upload} has no part {missing[0]}", code="InvalidPart")
            if if_absent and found.key in self._bucket(bucket).objects:
                raise exists_error(bucket, found.key)
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
