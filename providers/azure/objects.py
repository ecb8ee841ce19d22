"""Azure Blob Storage through azure-storage-blob.

The SDK's retries are off; `SdkCalls` repeats what may be repeated. A put is one Put Blob request whatever its size; a
stream's blocks are seen only when their list is committed. Every write carries its MD5, which the service compares
(`validate_content`; its CRC-64 mode needs a compiled extension of the SDK); a read asks for the MD5 of each range, of
at most 4 MiB, and compares a large whole object with the MD5 that it was stored with.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from providers.azure.blob_client import CHECKED_BYTES_MAX, SINGLE_PUT_BYTES_MAX, Connection, connect
from providers.azure.blob_errors import code_of, translate, translate_answer
from providers.azure.blob_parts import BLOCKS_MAX, BlockUpload, Copy, drop_blocks
from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range
from providers.base.buckets import not_empty
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable, WrongOffset, YunheError
from providers.base.objects import ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress
from providers.base.streams import fetch_stream, store_stream

PAGE_OBJECTS_MAX = 5000
"""Blobs a List Blobs page holds (REST reference)."""

BATCH_KEYS_MAX = 256
"""Requests in a Blob Batch (REST reference)."""

APPEND_BYTES_MAX = 100 << 20
"""Of one Append Block (REST reference, since version 2022-11-02)."""


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the container at `address`; nothing is sent yet.

    Raises:
        Invalid: unreadable or missing credentials, a name that no container has.
    """
    settings = settings or StoreSettings()
    connection = connect(address, settings)
    account = f"azure {connection.account}" if connection.account else None
    calls = SdkCalls(f"azure {address.bucket}", settings, translate, clock=clock, rng=rng, account=account)
    return AzureObjectStore(connection, calls, clock, rng)


class AzureObjectStore:
    """One container. See `providers.base.objects.ObjectStore`. Objects made by `create_appendable` are append blobs,
    all others block blobs."""

    def __init__(self, connection: Connection, calls: SdkCalls, clock: Clock, rng: Rng) -> None:
        self._connection = connection
        self._container = connection.container
        self._calls = calls
        self._clock = clock
        self._rng = rng

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(key)

    async def ensure_bucket(self) -> None:
        def create() -> None:
            try:
                self._container.create_container()
            except Exception as error:
                if code_of(error) != "ContainerAlreadyExists":
                    raise

        await self._calls.repeated(self._container.container_name, create, changes=True)

    async def bucket_exists(self) -> bool:
        return await self._calls.repeated(self._container.container_name, lambda: bool(self._container.exists()))

    async def remove_bucket(self) -> None:
        def remove() -> None:
            try:
                # Azure would delete what is in it, too.
                if any(True for _ in self._container.list_blobs(results_per_page=1)):
                    raise not_empty(self._container.container_name)
                self._container.delete_container()
            except Exception as error:
                if code_of(error) != "ContainerNotFound":
                    raise

        await self._calls.repeated(self._container.container_name, remove, changes=True)

    # ---- writing

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        if len(data) > SINGLE_PUT_BYTES_MAX:
            raise Invalid(f"{key}: a put has at most {SINGLE_PUT_BYTES_MAX} bytes", hint="use put_stream")
        call = partial(self._put, key, data, if_absent)
        if if_absent:
            await self._calls.once(key, call, changes=True)
        else:
            await self._calls.repeated(key, call, changes=True)

    def _put(self, key: str, data: bytes, if_absent: bool) -> None:
        # Without `overwrite` the SDK sends If-None-Match: *.
        self._blob(key).upload_blob(data, overwrite=not if_absent, max_concurrency=1, validate_content=True)

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        check_key(key)
        digest = hashlib.md5(usedforsecurity=False)

        async def hashed() -> AsyncGenerator[bytes, None]:
            async for chunk in chunks:
                await asyncio.to_thread(digest.update, chunk)
                yield chunk

        def upload() -> BlockUpload:
            made = BlockUpload(self._blob(key), key, if_absent, self._calls, self._clock, self._rng)
            made.md5 = digest.digest
            return made

        single = partial(self.put, key, if_absent=if_absent)
        async with aclosing(hashed()) as source:
            await store_stream(source, single, upload, parts_max=BLOCKS_MAX)

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        check_key(source)
        check_key(key)
        copy = Copy(self._connection, self._blob(source), self._blob(key), self._calls, self._clock)
        await copy.run(source, key, if_absent, self._rng)

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        """Blocks over an object that exists are passed over: its next put drops them, or the service within a week."""
        until_ms = self._clock.wall_ms() - older_than_ms
        collected, token = 0, None
        while True:
            names, token = await self._calls.repeated(prefix, partial(self._empty_page, prefix, token))
            for name in names:
                call = partial(drop_blocks, self._blob(name), until_ms)
                collected += await self._calls.repeated(name, call, changes=True)
            if not token:
                return collected

    def _empty_page(self, prefix: str, token: str | None) -> tuple[list[str], str | None]:
        """Names without bytes of one page, among them those with nothing but blocks; and where the next page begins."""
        pages = self._container.list_blobs(
            name_starts_with=prefix or None, include=["uncommittedblobs"], results_per_page=PAGE_OBJECTS_MAX
        ).by_page(continuation_token=token)
        names = [row.name for row in next(pages, ()) if not row.size]
        return names, pages.continuation_token

    async def create_appendable(self, key: str) -> None:
        from azure.core import MatchConditions

        check_key(key)
        call = partial(self._blob(key).create_append_blob, match_condition=MatchConditions.IfMissing)
        await self._calls.once(key, call, changes=True)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        check_key(key)
        if offset < 0 or not data:
            raise Invalid(f"an append has an offset of 0 or more and at least one byte, not {offset}, {len(data)}")
        if len(data) > APPEND_BYTES_MAX:
            raise Invalid(f"{key}: an append has at most {APPEND_BYTES_MAX} bytes", hint="append it in pieces")
        call = partial(self._blob(key).append_block, data, appendpos_condition=offset, validate_content=True)
        try:
            await self._calls.once(key, call, changes=True)
        except WrongOffset as error:
            error.fields["actual"] = (await self.head(key)).size
            raise

    # ---- reading

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length))

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        first = CHECKED_BYTES_MAX if length is None else min(length, CHECKED_BYTES_MAX)
        data, found = self._checked(key, start, first, None)
        if found is None:
            return b""
        # "bytes 0-99/100"
        size = int(str(found.content_range).rpartition("/")[2])
        end = size if length is None else min(size, start + length)
        if start + len(data) >= end:
            return data
        try:
            return data + self._rest(key, data, start, end, size, found)
        except Exception as error:
            if isinstance(error, Conflict) or code_of(error) == "ConditionNotMet":
                raise Unavailable(f"{key} was replaced while it was read") from error
            raise

    def _rest(self, key: str, data: bytes, start: int, end: int, size: int, found: Any) -> bytes:
        """What follows `data` up to `end`: in one request where the whole can be compared with its MD5, else in checked
        ranges."""
        md5 = found.content_settings.content_md5
        version = _Version.of(found)
        at = start + len(data)
        if start > 0 or end < size or md5 is None:
            starts = range(at, end, CHECKED_BYTES_MAX)
            ranges = ((each, min(CHECKED_BYTES_MAX, end - each)) for each in starts)
            return b"".join(self._checked(key, each, count, version)[0] for each, count in ranges)
        stream = self._blob(key).download_blob(offset=at, length=end - at, **version.condition)
        rest: bytes = stream.readall()
        if len(rest) != end - at:
            raise Unavailable(f"{key}: {len(rest)} bytes came where {end - at} were announced")
        digest = hashlib.md5(data, usedforsecurity=False)
        digest.update(rest)
        if digest.digest() != bytes(md5):
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")
        return rest

    def _checked(self, key: str, start: int, length: int, version: _Version | None) -> tuple[bytes, Any]:
        """Up to `length` bytes (at most CHECKED_BYTES_MAX) compared with their checksum, and the blob's properties;
        None for these when it has no byte at `start`."""
        condition = version.condition if version is not None else {}
        try:
            stream = self._blob(key).download_blob(offset=start, length=length, validate_content=True, **condition)
        except Exception as error:
            if code_of(error) == "InvalidRange":
                return b"", None
            raise
        data: bytes = stream.readall()
        if len(data) != stream.size:
            raise Unavailable(f"{key}: {len(data)} bytes came where {stream.size} were announced")
        if version is not None and not version.holds(stream.properties):
            raise Conflict(f"{key} was replaced while it was read")
        return data, stream.properties

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        check_key(key)
        check_range(start, length)
        found = await self._calls.repeated(key, self._blob(key).get_blob_properties)
        version = _Version.of(found)
        size = int(found.size)
        end = size if length is None else min(size, start + length)
        md5 = found.content_settings.content_md5 if (start, end) == (0, size) else None
        digest = hashlib.md5(usedforsecurity=False)

        async def fetch(at: int, count: int) -> bytes:
            try:
                return (await self._calls.repeated(key, partial(self._checked, key, at, count, version)))[0]
            except NotFound as error:
                raise Conflict(f"{key} was removed while it was read") from error

        async with aclosing(fetch_stream(fetch, start, end, piece_bytes=CHECKED_BYTES_MAX)) as pieces:
            async for piece in pieces:
                if md5 is not None:
                    await asyncio.to_thread(digest.update, piece)
                yield piece
        if md5 is not None and digest.digest() != bytes(md5):
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        return _info(key, await self._calls.repeated(key, self._blob(key).get_blob_properties))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_limit(limit)
        return await self._calls.repeated(prefix, partial(self._list, prefix, start_after, limit))

    def _list(self, prefix: str, start_after: str, limit: int) -> Sequence[ObjectInfo]:
        page = min(limit + 1, PAGE_OBJECTS_MAX)
        where = {"start_from": start_after} if start_after else {}
        found: list[ObjectInfo] = []
        # `start_from` is inclusive: one more is asked for, and the name itself is passed over.
        for row in self._container.list_blobs(name_starts_with=prefix or None, results_per_page=page, **where):
            if len(found) == limit:
                break
            if row.name > start_after:
                found.append(_info(row.name, row))
        return found

    # ---- removing

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if len(keys) == 1:
            await self._calls.repeated(keys[0], partial(self._delete, keys[0]), changes=True)
            return
        failed: dict[str, str] = {}
        last: YunheError | None = None
        for at in range(0, len(keys), BATCH_KEYS_MAX):
            some = keys[at : at + BATCH_KEYS_MAX]
            try:
                await self._calls.repeated(some[0], partial(self._delete_batch, some), changes=True)
            except (Unavailable, Invalid) as error:
                failed.update(error.fields.get("failed") or dict.fromkeys(some, error.message))
                last = error
        if last is not None:
            kind = Invalid if isinstance(last, Invalid) else Unavailable
            raise kind(
                f"{len(failed)} objects were not deleted: {last.message}", hint=last.hint, failed=failed
            ) from last

    def _delete(self, key: str) -> None:
        try:
            self._blob(key).delete_blob()
        except Exception as error:
            if code_of(error) != "BlobNotFound":
                raise

    def _delete_batch(self, keys: Sequence[str]) -> None:
        answers = list(self._container.delete_blobs(*keys, raise_on_any_failure=False))
        if len(answers) != len(keys):
            raise Unavailable(f"{len(answers)} answers came to {len(keys)} deletions")
        failed: dict[str, YunheError] = {}
        for key, answer in zip(keys, answers, strict=True):
            code = answer.headers.get("x-ms-error-code") or ""
            if answer.status_code not in (200, 202) and code != "BlobNotFound":
                failed[key] = translate_answer(answer.status_code, code, "", key)
        if failed:
            # One that asking again does not mend is the one to tell.
            first = next((each for each in failed.values() if not isinstance(each, Unavailable)), None)
            told = first or next(iter(failed.values()))
            kind = Unavailable if first is None else Invalid
            raise kind(told.message, hint=told.hint, failed={key: each.message for key, each in failed.items()})

    async def close(self) -> None:
        self._calls.close()
        self._container.close()
        self._connection.session.close()


@dataclass(frozen=True, slots=True)
class _Version:
    """What the ranges of one read have in common. Of an append blob not the ETag, which each append changes though the
    bytes before stay, but its birth."""

    etag: str | None
    created: datetime | None

    @staticmethod
    def of(found: Any) -> _Version:
        grows = str(getattr(found.blob_type, "value", found.blob_type)) == "AppendBlob"
        return _Version(None, found.creation_time) if grows else _Version(str(found.etag), None)

    @property
    def condition(self) -> dict[str, Any]:
        from azure.core import MatchConditions

        return {} if self.etag is None else {"etag": self.etag, "match_condition": MatchConditions.IfNotModified}

    def holds(self, found: Any) -> bool:
        return self.created is None or found.creation_time == self.created


def _info(key: str, row: Any) -> ObjectInfo:
    modified_ms = None if row.last_modified is None else int(row.last_modified.timestamp() * 1000)
    return ObjectInfo(key, int(row.size), modified_ms, str(row.etag or "").strip('"'))
