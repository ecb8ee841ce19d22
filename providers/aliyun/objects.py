"""Aliyun OSS through alibabacloud-oss-v2: see `providers.base.objects.ObjectStore`.

Create-if-absent is `x-oss-forbid-overwrite` (PutObject, CopyObject, CompleteMultipartUpload), which OSS ignores in a
bucket that is or was versioned: `ensure_bucket` refuses one, and so does every answer that carries a version id. The
bucket-level OverwriteConfig is never used: its page admits concurrent creators. A given endpoint is addressed in path
style and without the environment's proxies.

Append: OSS appends only to objects that were born by AppendObject, up to 5 GiB. At position 0 it would create one, so
an append at 0 looks first; should the object be deleted between the look and the append, it is born again with these
bytes. AppendObject has no documented forbid-overwrite (its page lists none, though the SDK has the field), so creators
are told apart by their first bytes only: position 0 is given away once.

RAM actions: oss:PutObject, oss:GetObject, oss:DeleteObject, oss:ListObjects, oss:AbortMultipartUpload, oss:ListParts,
oss:ListMultipartUploads; for `ensure_bucket` oss:GetBucketInfo and oss:PutBucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from functools import partial

from fastcrc import crc64

from providers.aliyun.capabilities import ZRS_REGIONS
from providers.aliyun.oss_client import OssBucket, open_bucket
from providers.aliyun.oss_errors import translate
from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range
from providers.base.clock import Clock, Rng
from providers.base.credentials import read_credentials
from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
)
from providers.base.objects import ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress
from providers.base.resumed import Progress, store_resumed
from providers.base.streams import PART_BYTES, fetch_stream, store_stream

DELETE_KEYS_MAX = 1000
"""Keys a DeleteMultipleObjects request takes (OSS API reference)."""

PAGE_OBJECTS_MAX = 1000
"""Objects a ListObjectsV2 page holds (OSS API reference)."""

APPEND_BYTES_MAX = 5 << 30
"""Size of an object that AppendObject makes (page appendobject, 2025-12-06)."""

COPY_BYTES_MAX = 1 << 30
"""CopyObject's safe size (page copyobject); larger ones are copied in parts, of this size each."""

APPENDED_KEPT_MAX = 1_024
"""Appended objects whose size and checksum are remembered, so that the next append's answer can be checked."""


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet. Without a credentials file: `OSS_ACCESS_KEY_ID` and
    `OSS_ACCESS_KEY_SECRET`, else the default chain of alibabacloud-credentials.

    Raises:
        Invalid: unreadable credentials, malformed endpoint.
    """
    settings = settings or StoreSettings()
    secrets = read_credentials(address.credentials_file, "access_key", "secret_key")
    bucket = open_bucket(address, settings, secrets)
    # OSS limits an account's requests, 10,000 a second in most regions (page limits).
    account = f"aliyun oss {secrets.get('access_key', 'default chain')}"
    calls = SdkCalls(f"oss {address.bucket}", settings, translate, clock=clock, rng=rng, account=account)
    return OssObjectStore(bucket, calls, clock, zone_redundant=address.region in ZRS_REGIONS)


class OssObjectStore:
    """One OSS bucket. See the module."""

    def __init__(self, bucket: OssBucket, calls: SdkCalls, clock: Clock, *, zone_redundant: bool) -> None:
        self._bucket = bucket
        self._calls = calls
        self._clock = clock
        self._redundancy = "ZRS" if zone_redundant else None
        self._appended: OrderedDict[str, tuple[int, int]] = OrderedDict()

    async def ensure_bucket(self) -> None:
        await self._calls.repeated(self._bucket.name, partial(self._bucket.create, self._redundancy), changes=True)

    async def bucket_exists(self) -> bool:
        return await self._calls.repeated(self._bucket.name, self._bucket.exists)

    async def remove_bucket(self) -> None:
        await self._calls.repeated(self._bucket.name, self._bucket.remove, changes=True)

    # ---- whole objects

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        call = partial(self._bucket.put, key, data, if_absent=if_absent)
        if if_absent:
            await self._calls.once(key, call, changes=True)
        else:
            await self._calls.repeated(key, call, changes=True)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        try:
            return await self._calls.repeated(key, partial(self._bucket.get, key, start, length))
        except Invalid as error:
            if error.fields.get("code") == "InvalidRange":
                return b""
            raise

    async def head(self, key: str) -> ObjectInfo:
        return (await self._head(key))[0]

    async def _head(self, key: str) -> tuple[ObjectInfo, int | None]:
        check_key(key)
        return await self._calls.repeated(key, partial(self._bucket.head, key))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_limit(limit)
        found: list[ObjectInfo] = []
        while len(found) < limit:
            want = min(limit - len(found), PAGE_OBJECTS_MAX)
            page, more = await self._calls.repeated(prefix, partial(self._bucket.list, prefix, start_after, want))
            found.extend(page)
            if not more or not page:
                break
            start_after = found[-1].key
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if len(keys) == 1:
            await self._calls.repeated(keys[0], partial(self._bucket.delete_one, keys[0]), changes=True)
            return
        failed: dict[str, str] = {}
        for at in range(0, len(keys), DELETE_KEYS_MAX):
            some = list(keys[at : at + DELETE_KEYS_MAX])
            left = await self._calls.repeated(some[0], partial(self._bucket.delete, some), changes=True)
            failed.update(dict.fromkeys(left, "not among those that OSS deleted"))
        if failed:
            raise Unavailable(f"{len(failed)} of {len(keys)} objects were not deleted", failed=failed)

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        check_key(source)
        check_key(key)
        info = await self.head(source)
        if info.size > COPY_BYTES_MAX:
            await self._copy_in_parts(info, key, if_absent)
            return
        call = partial(self._bucket.copy, source, key, if_absent=if_absent)
        try:
            if if_absent:
                await self._calls.once(key, call, changes=True)
            else:
                await self._calls.repeated(key, call, changes=True)
        except NotFound as error:
            raise NotFound(f"{source} does not exist") from error

    async def _copy_in_parts(self, source: ObjectInfo, key: str, if_absent: bool) -> None:
        upload = _Upload(self._bucket, self._calls, key, if_absent)
        await upload.begin()
        try:
            for number, at in enumerate(range(0, source.size, COPY_BYTES_MAX), start=1):
                await upload.part_copy(number, source, at, min(COPY_BYTES_MAX, source.size - at))
            await upload.complete(number)
        except OutcomeUnknown:
            raise  # it may yet be completed: its parts are left alone
        except BaseException:
            await upload.abort()
            raise

    # ---- streams

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        check_key(key)
        await store_stream(
            chunks,
            partial(self.put, key, if_absent=if_absent),
            lambda: _Upload(self._bucket, self._calls, key, if_absent),
        )

    @property
    def resumes_from(self) -> int:
        return PART_BYTES

    async def put_resumed(
        self, key: str, chunks: AsyncIterable[bytes], progress: Progress, *, if_absent: bool = False
    ) -> None:
        check_key(key)
        await store_resumed(chunks, _Upload(self._bucket, self._calls, key, if_absent), progress)

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        check_range(start, length)
        info, expected = await self._head(key)
        end = info.size if length is None else min(info.size, start + length)
        whole = start == 0 and end == info.size
        crc = 0

        async def fetch(at: int, size: int) -> bytes:
            try:
                return await self._calls.repeated(key, partial(self._bucket.get, key, at, size, info.etag))
            except NotFound as error:
                raise Conflict(f"{key} was removed meanwhile") from error

        async with aclosing(fetch_stream(fetch, start, end)) as pieces:
            async for piece in pieces:
                crc = crc64.xz(piece, crc)
                yield piece
        if whole and expected is not None and crc != expected:
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        before_ms = self._clock.wall_ms() - older_than_ms
        stale: list[tuple[str, str]] = []
        marker = ("", "")
        while True:
            rows, marker = await self._calls.repeated(prefix, partial(self._bucket.uploads, prefix, marker))
            stale.extend((key, upload) for key, upload, began_ms in rows if began_ms <= before_ms)
            if not any(marker):
                break
        for key, upload in stale:
            await self._calls.repeated(key, partial(self._bucket.abort, key, upload), changes=True)
        return len(stale)

    # ---- appends

    async def create_appendable(self, key: str) -> None:
        check_key(key)
        try:
            await self._calls.once(key, partial(self._bucket.append, key, 0, b"", None), changes=True)
        except WrongOffset as error:
            raise AlreadyExists(f"{key} exists, and is not empty") from error
        except Invalid as error:
            if error.fields.get("code") == "ObjectNotAppendable":
                raise AlreadyExists(f"{key} exists, and was not born appendable") from error
            raise

    async def append(self, key: str, offset: int, data: bytes) -> None:
        check_key(key)
        if offset < 0 or not data:
            raise Invalid(f"an append has an offset of 0 or more and at least one byte, not {offset}, {len(data)}")
        if offset + len(data) > APPEND_BYTES_MAX:
            raise Invalid(f"{key} would be longer than {APPEND_BYTES_MAX} bytes", hint="go on in another object")
        if offset == 0:
            await self.head(key)
        size, crc = self._appended.pop(key, (0, 0)) if offset else (0, 0)
        before = crc if size == offset else None
        try:
            after = await self._calls.once(key, partial(self._bucket.append, key, offset, data, before), changes=True)
        except WrongOffset as error:
            if not error.fields.get("actual"):
                # Of an absent object too OSS says that the position is not its length.
                error.fields["actual"] = (await self.head(key)).size
            raise
        if after is not None:
            self._appended[key] = (offset + len(data), after)
            while len(self._appended) > APPENDED_KEPT_MAX:
                self._appended.popitem(last=False)

    async def close(self) -> None:
        self._calls.close()
        self._bucket.close()


class _Upload:
    """A multipart upload: see `providers.base.streams.PartUpload`."""

    def __init__(self, bucket: OssBucket, calls: SdkCalls, key: str, if_absent: bool) -> None:
        self._bucket = bucket
        self._calls = calls
        self._key = key
        self._if_absent = if_absent
        self._upload = ""
        self._etags: dict[int, str] = {}
        self._there: dict[int, tuple[int, str, str]] = {}
        """Of an upload that is gone on with: size, ETag and CRC-64 by the part's number."""
        self._crc: int | None = 0
        self._bytes = 0

    async def begin(self) -> None:
        # A repetition may begin two of them; the one without parts is collected as stale.
        self._upload = await self._calls.repeated(self._key, partial(self._bucket.begin, self._key), changes=True)

    async def part(self, number: int, data: bytes) -> None:
        # Tasks begin in the order in which parts were cut, so the object's checksum grows here, before any await.
        if self._crc is not None:
            self._crc = crc64.xz(data, self._crc)
        self._bytes += len(data)
        call = partial(self._bucket.part, self._key, self._upload, number, data)
        self._etags[number] = await self._calls.repeated(f"part {number} of {self._key}", call, changes=True)

    @property
    def name(self) -> str:
        return self._upload

    async def resume(self, name: str) -> bool:
        call = partial(self._bucket.parts, self._key, name)
        there = await self._calls.repeated(self._key, call)
        if there is None:
            return False
        self._upload, self._there = name, there
        return True

    def passed(self, number: int, data: bytes) -> bool:
        size, etag, crc = self._there.get(number, (0, "", ""))
        if (size, crc) != (len(data), str(crc64.xz(data))):
            return False
        if self._crc is not None:
            self._crc = crc64.xz(data, self._crc)
        self._bytes += size
        self._etags[number] = etag
        return True

    async def part_copy(self, number: int, source: ObjectInfo, start: int, length: int) -> None:
        self._crc = None
        call = partial(self._bucket.part_copy, self._key, self._upload, number, source, start, length)
        self._etags[number] = await self._calls.repeated(f"part {number} of {self._key}", call, changes=True)

    async def complete(self, count: int) -> None:
        etags = [self._etags[number] for number in range(1, count + 1)]
        call = partial(self._bucket.complete, self._key, self._upload, etags, self._crc, if_absent=self._if_absent)
        try:
            await self._calls.once(self._key, call, changes=True)
        except OutcomeUnknown:
            if self._if_absent:
                raise
            # Not conditional: a repetition does no harm, and if the first one was carried out, says so by NoSuchUpload.
            try:
                await self._calls.repeated(self._key, call, changes=True)
            except Conflict:
                info, crc = await self._calls.repeated(self._key, partial(self._bucket.head, self._key))
                if (info.size, crc) != (self._bytes, self._crc):
                    raise

    async def abort(self) -> None:
        if self._upload:
            await self._calls.repeated(self._key, partial(self._bucket.abort, self._key, self._upload), changes=True)
