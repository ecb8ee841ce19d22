"""S3 and S3 Express: objects by lean requests (`lean.py`), everything rarer through botocore, the core of boto3: the
same clients, without the resource layer that nobody here uses, so that a process starts sooner.

S3-compatible stores use the same class (`providers/private/objects.py`). The SDK's own retries are off; `SdkCalls`
repeats what may be repeated. A given endpoint is addressed in path style and without the environment's proxies.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import crc32c

from providers.aws.errors import code_of, translate
from providers.aws.express import ChainSigner, SessionSigner
from providers.aws.lean import CHECKSUM, LeanRequests, zone_of
from providers.aws.session import credentials, make_client
from providers.aws.uploads import COPY_BYTES_MAX, PARTS_MAX, S3Upload, collect_uploads
from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range, read_credentials
from providers.base.buckets import not_empty
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable, WrongOffset
from providers.base.objects import ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress
from providers.base.resumed import Progress, store_resumed
from providers.base.streams import PART_BYTES, fetch_stream, store_stream

DELETE_KEYS_MAX = 1000
"""Keys a DeleteObjects request takes (S3 API reference)."""

EXPRESS = StoreSettings(read_timeout_ms=3_000)
"""S3 Express answers within single-digit milliseconds (S3 user guide, S3 Express One Zone): one that says nothing for
seconds is away, and whoever appends to it waits for it with every ack."""

PAGE_OBJECTS_MAX = 1000
"""Objects a ListObjectsV2 page holds (S3 API reference)."""


def open_store(
    address: StoreAddress,
    *,
    clock: Clock,
    rng: Rng,
    settings: StoreSettings | None = None,
    conditional_copies: bool = True,
) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet. Without `conditional_copies`, for stores whose CopyObject
    passes over If-None-Match, a conditional copy is a multipart upload with a conditional completion.

    Raises:
        Invalid: unreadable credentials.
    """
    from botocore.config import Config
    from botocore.credentials import Credentials
    from botocore.exceptions import BotoCoreError

    settings = settings or (EXPRESS if address.bucket.endswith("--x-s3") else StoreSettings())
    secrets = read_credentials(address.credentials_file, "access_key", "secret_key")
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=settings.connect_timeout_ms / 1000,
        read_timeout=settings.read_timeout_ms / 1000,
        max_pool_connections=settings.threads,
        parameter_validation=False,
        proxies={} if address.endpoint else None,
        s3={"addressing_style": "path" if address.endpoint else "auto"},
    )
    given = {name: secrets.get(name) for name in ("access_key", "secret_key", "session_token")}
    try:
        chain = Credentials(*given.values()) if secrets else credentials()
        client = make_client(
            "s3",
            region_name=address.region,
            endpoint_url=address.endpoint,
            aws_access_key_id=given["access_key"],
            aws_secret_access_key=given["secret_key"],
            aws_session_token=given["session_token"],
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise Invalid(f"bucket {address.bucket} cannot be opened: {error}") from error
    account = f"s3 {address.endpoint or address.region} {address.credentials_file or ''}"
    calls = SdkCalls(f"s3 {address.bucket}", settings, translate, clock=clock, rng=rng, account=account)
    sessions = SessionSigner(client, address, clock) if address.bucket.endswith("--x-s3") else None
    lean = LeanRequests(client, address, settings, sessions or ChainSigner(chain, address.region))
    return S3ObjectStore(client, address, calls, lean, sessions, conditional_copies=conditional_copies)


class S3ObjectStore:
    """One S3 bucket. See `providers.base.objects.ObjectStore`; only directory buckets can append."""

    def __init__(
        self,
        client: Any,
        address: StoreAddress,
        calls: SdkCalls,
        lean: LeanRequests,
        sessions: SessionSigner | None,
        *,
        conditional_copies: bool,
    ) -> None:
        self._client = client
        self._lean = lean
        self._sessions = sessions
        self._address = address
        self._bucket = address.bucket
        self._express = sessions is not None
        self._conditional_copies = conditional_copies
        self._calls = calls

    async def ensure_bucket(self) -> None:
        configuration: dict[str, Any] | None = None
        if self._express:
            configuration = {
                "Location": {"Type": "AvailabilityZone", "Name": zone_of(self._bucket)},
                "Bucket": {"DataRedundancy": "SingleAvailabilityZone", "Type": "Directory"},
            }
        elif self._address.endpoint is None and self._address.region != "us-east-1":
            configuration = {"LocationConstraint": self._address.region}
        extra = {"CreateBucketConfiguration": configuration} if configuration else {}

        def create() -> None:
            try:
                self._client.create_bucket(Bucket=self._bucket, **extra)
            except Exception as error:
                # Another account's bucket of that name is `BucketAlreadyExists`, and stays an error.
                if code_of(error) != "BucketAlreadyOwnedByYou":
                    raise

        await self._calls.repeated(self._bucket, create, changes=True)

    async def bucket_exists(self) -> bool:
        def look() -> bool:
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except Exception as error:
                if code_of(error) in ("404", "NoSuchBucket"):
                    return False
                raise
            return True

        return await self._calls.repeated(self._bucket, look)

    async def remove_bucket(self) -> None:
        def remove() -> None:
            try:
                self._client.delete_bucket(Bucket=self._bucket)
            except Exception as error:
                if code_of(error) == "BucketNotEmpty":
                    raise not_empty(self._bucket) from error
                if code_of(error) != "NoSuchBucket":
                    raise

        await self._calls.repeated(self._bucket, remove, changes=True)

    # -- writing

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        if if_absent:
            await self._calls.once(key, partial(self._put, key, data, {"If-None-Match": "*"}), changes=True)
        else:
            await self._calls.repeated(key, partial(self._put, key, data, {}), changes=True)

    def _put(self, key: str, data: bytes, headers: Mapping[str, str]) -> None:
        try:
            self._lean.put(key, data, headers, operation="PutObject")
        except Exception as error:
            if self._sessions is not None and code_of(error) in ("ExpiredToken", "InvalidToken"):
                self._sessions.forget()
            raise

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        check_key(key)

        async def single(data: bytes) -> None:
            await self.put(key, data, if_absent=if_absent)

        await store_stream(chunks, single, lambda: self._upload(key, if_absent), parts_max=PARTS_MAX)

    @property
    def resumes_from(self) -> int:
        return PART_BYTES

    async def put_resumed(
        self, key: str, chunks: AsyncIterable[bytes], progress: Progress, *, if_absent: bool = False
    ) -> None:
        check_key(key)
        await store_resumed(chunks, self._upload(key, if_absent), progress, parts_max=PARTS_MAX)

    def _upload(self, key: str, if_absent: bool) -> S3Upload:
        return S3Upload(self._client, self._lean, self._calls, self._bucket, key, if_absent=if_absent)

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        check_key(source)
        check_key(key)
        found = await self.head(source)
        where = {"Bucket": self._bucket, "Key": source}
        if found.size <= COPY_BYTES_MAX and (self._conditional_copies or not if_absent):
            copy = partial(self._client.copy_object, Bucket=self._bucket, Key=key, CopySource=where)
            if if_absent:
                await self._calls.once(key, partial(copy, IfNoneMatch="*"), changes=True)
            else:
                await self._calls.repeated(key, copy, changes=True)
            return
        if found.size == 0:
            await self.put(key, b"", if_absent=if_absent)  # a part has at least one byte
            return
        upload = self._upload(key, if_absent)
        await upload.begin()
        try:
            count = -(-found.size // COPY_BYTES_MAX)
            for number in range(1, count + 1):
                start = (number - 1) * COPY_BYTES_MAX
                await upload.copy_part(number, where, found.etag, start, min(COPY_BYTES_MAX, found.size - start))
        except BaseException:
            await upload.abort_quietly()
            raise
        await upload.complete_or_abort(count)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if len(keys) == 1:
            call = partial(self._client.delete_object, Bucket=self._bucket, Key=keys[0])
            await self._calls.repeated(keys[0], call, changes=True)
            return
        failed: dict[str, str] = {}
        for at in range(0, len(keys), DELETE_KEYS_MAX):
            some = keys[at : at + DELETE_KEYS_MAX]
            what = {"Objects": [{"Key": key} for key in some], "Quiet": True}
            call = partial(self._client.delete_objects, Bucket=self._bucket, Delete=what)
            answer = await self._calls.repeated(some[0], call, changes=True)
            failed.update((row.get("Key", ""), row.get("Code", "")) for row in answer.get("Errors", ()))
        if failed:
            refused = [
                code for code in failed.values() if code not in ("InternalError", "SlowDown", "ServiceUnavailable")
            ]
            raise (Invalid if refused else Unavailable)(
                f"{len(failed)} of {len(keys)} objects were not deleted, the first for {next(iter(failed.values()))}",
                failed=failed,
            )

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        return await collect_uploads(self._client, self._calls, self._bucket, prefix, older_than_ms)

    # -- reading

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length, {}))

    def _get(self, key: str, start: int, length: int | None, headers: Mapping[str, str]) -> bytes:
        if start == 0 and length is None:
            return self._lean.get(key, headers).data
        span = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        try:
            answer = self._lean.get(key, {"Range": span, **headers})
        except Exception as error:
            if code_of(error) in ("InvalidRange", "416"):
                return b""
            raise
        if answer.status != 206:
            # A store without ranges answers with all of it; of an empty object that is right, and S3's own 416 too.
            end = None if length is None else start + length
            return answer.data[start:end]
        if length is not None and len(answer.data) > length:
            raise Unavailable(f"{key}: {len(answer.data)} bytes came where {length} were asked for")
        return answer.data

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        check_key(key)
        check_range(start, length)
        headers = await self._calls.repeated(key, partial(self._head, key))
        size, version = int(headers["Content-Length"]), {"If-Match": headers["ETag"]}
        end = size if length is None else min(size, start + length)

        async def fetch(at: int, span: int) -> bytes:
            return await self._calls.repeated(key, partial(self._get, key, at, span, version))

        # Nothing but the checksum of all the bytes is to be had, so a range is checked by TLS and TCP alone.
        stored = headers.get(CHECKSUM, "-")
        whole = (start, end) == (0, size) and "-" not in stored
        crc = 0
        try:
            async with aclosing(fetch_stream(fetch, start, end)) as pieces:
                async for piece in pieces:
                    crc = crc32c.crc32c(piece, crc) if whole else crc
                    yield piece
        except NotFound as error:
            raise Conflict(f"{key} was removed while it was read", key=key) from error
        if whole and base64.b64encode(crc.to_bytes(4, "big")).decode() != stored:
            raise Corrupt(f"{key}: the bytes that came do not match their checksum", key=key)

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        headers = await self._calls.repeated(key, partial(self._head, key))
        return ObjectInfo(key, int(headers["Content-Length"]), _modified_ms(headers), headers.get("ETag", ""))

    def _head(self, key: str) -> Mapping[str, str]:
        try:
            return self._lean.head(key)
        except Exception as error:
            if code_of(error) != "404":
                raise
        # HEAD has no room to say whether the object or its bucket is missing. GET says it, or that it is there by now.
        self._lean.get(key, {"Range": "bytes=0-0"})
        return self._lean.head(key)

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_limit(limit)
        if self._express:
            return await self._list_unordered(prefix, start_after, limit)
        found: list[ObjectInfo] = []
        while len(found) < limit:
            want = min(limit - len(found), PAGE_OBJECTS_MAX)
            call = partial(
                self._client.list_objects_v2, Bucket=self._bucket, Prefix=prefix, StartAfter=start_after, MaxKeys=want
            )
            answer = await self._calls.repeated(prefix, call)
            found.extend(_info(row) for row in answer.get("Contents", ()))
            if not answer["IsTruncated"]:
                break
            start_after = found[-1].key
        return found

    async def _list_unordered(self, prefix: str, start_after: str, limit: int) -> Sequence[ObjectInfo]:
        """All of it, sorted here: a directory bucket neither sorts nor knows StartAfter (API reference,
        ListObjectsV2)."""
        if prefix and not prefix.endswith("/"):
            raise Invalid(f"an S3 Express bucket lists only prefixes that end in /, not {prefix!r}")
        rows: list[ObjectInfo] = []
        token: dict[str, str] = {}
        while len(rows) < self._calls.settings.list_objects_max:
            call = partial(self._client.list_objects_v2, Bucket=self._bucket, Prefix=prefix, **token)
            answer = await self._calls.repeated(prefix, call)
            rows.extend(_info(row) for row in answer.get("Contents", ()))
            if not answer["IsTruncated"]:
                return sorted((row for row in rows if row.key > start_after), key=lambda row: row.key)[:limit]
            token = {"ContinuationToken": answer["NextContinuationToken"]}
        raise Invalid(f"{prefix!r} holds more than {self._calls.settings.list_objects_max} objects")

    # -- appending

    async def create_appendable(self, key: str) -> None:
        check_key(key)
        self._check_appends()
        await self.put(key, b"", if_absent=True)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        check_key(key)
        self._check_appends()
        if offset < 0 or not data:
            raise Invalid(f"an append has an offset of 0 or more and at least one byte, not {offset}, {len(data)}")
        if offset == 0:
            # S3 Express would create the object. It exists after this, unless somebody deletes it meanwhile.
            await self.head(key)
        call = partial(self._put, key, data, {"x-amz-write-offset-bytes": str(offset)})
        try:
            await self._calls.once(key, call, changes=True)
        except WrongOffset as error:
            error.fields["actual"] = (await self.head(key)).size
            raise

    def _check_appends(self) -> None:
        if not self._express:
            raise Invalid(
                f"bucket {self._bucket} is no S3 Express bucket and cannot append",
                hint="a directory bucket's name ends in --x-s3",
            )

    async def close(self) -> None:
        self._calls.close()
        self._lean.close()
        self._client.close()


def _modified_ms(headers: Mapping[str, str]) -> int | None:
    from email.utils import parsedate_to_datetime

    date = headers.get("Last-Modified")
    return None if date is None else int(parsedate_to_datetime(date).timestamp() * 1000)


def _info(row: Mapping[str, Any]) -> ObjectInfo:
    modified = row.get("LastModified")
    at_ms = None if modified is None else int(modified.timestamp() * 1000)
    return ObjectInfo(row["Key"], int(row["Size"]), at_ms, row.get("ETag", ""))
