"""Aliyun OSS through oss2.

oss2 has no retries of its own. Its checksum code is pure Python where its C part is missing, so it is off and CRC-64 is
checked here. A given endpoint is addressed in path style and without the environment's proxies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastcrc import crc64

from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Corrupt, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import NotYet, ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress

DELETE_KEYS_MAX = 1000
"""Keys a DeleteMultipleObjects request takes (OSS API reference)."""

PAGE_OBJECTS_MAX = 1000
"""Objects a ListObjectsV2 page holds (OSS API reference)."""

_REFUSED = frozenset(["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurityToken"])
_STORED_CRC = "x-oss-hash-crc64ecma"


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet. Without a credentials file: `OSS_ACCESS_KEY_ID`,
    `OSS_ACCESS_KEY_SECRET`.

    Raises:
        Invalid: unreadable or missing credentials, malformed endpoint or bucket name.
    """
    import oss2
    from oss2.credentials import EnvironmentVariableCredentialsProvider, StaticCredentialsProvider

    settings = settings or StoreSettings()
    secrets = read_credentials(address.credentials_file, "access_key", "secret_key")
    try:
        provider = (
            StaticCredentialsProvider(secrets["access_key"], secrets["secret_key"])
            if secrets
            else EnvironmentVariableCredentialsProvider()
        )
        session = oss2.Session(pool_size=settings.threads)
        session.session.trust_env = address.endpoint is None
        bucket = oss2.Bucket(
            oss2.ProviderAuth(provider),
            address.endpoint or f"https://oss-{address.region}.aliyuncs.com",
            address.bucket,
            session=session,
            connect_timeout=(settings.connect_timeout_ms / 1000, settings.read_timeout_ms / 1000),
            enable_crc=False,
            region=address.region,
            is_path_style=address.endpoint is not None,
        )
    except (oss2.exceptions.ClientError, ValueError) as error:
        raise Invalid(f"bucket {address.bucket} cannot be opened: {error}") from error
    calls = SdkCalls(f"oss {address.bucket}", settings, _translate, clock=clock, rng=rng)
    return OssObjectStore(bucket, calls)


class OssObjectStore(NotYet):
    """One OSS bucket. See `providers.base.objects.ObjectStore`. No append: OSS appends only to objects that were born
    appendable."""

    def __init__(self, bucket: Any, calls: SdkCalls) -> None:
        self._bucket = bucket
        self._calls = calls

    async def ensure_bucket(self) -> None:
        await self._calls.repeated(self._bucket.bucket_name, self._bucket.create_bucket, changes=True)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        if if_absent:
            headers = {"x-oss-forbid-overwrite": "true"}
            await self._calls.once(key, partial(self._put, key, data, headers), changes=True)
        else:
            await self._calls.repeated(key, partial(self._put, key, data, {}), changes=True)

    def _put(self, key: str, data: bytes, headers: dict[str, str]) -> None:
        result = self._bucket.put_object(key, data, headers={"content-type": "application/octet-stream", **headers})
        if "x-oss-version-id" in result.headers:
            # forbid-overwrite is ignored once versioning was enabled, suspended or not (OSS, PutObject).
            raise Invalid(
                f"bucket {self._bucket.bucket_name} is or was versioned, so create-if-absent does not hold in it",
                hint="use a bucket that was never versioned",
            )
        if result.crc is not None and int(result.crc) != crc64.xz(data):
            raise Corrupt(f"{key} was stored with another checksum than it was sent with")

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length))

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        whole = start == 0 and length is None
        if whole:
            result = self._bucket.get_object(key)
        else:
            # Without this header OSS answers a range that reaches past the end with the whole object (OSS, GetObject).
            headers = {"x-oss-range-behavior": "standard"}
            span = (start, None if length is None else start + length - 1)
            try:
                result = self._bucket.get_object(key, byte_range=span, headers=headers)
            except Exception as error:
                if _code(error) == "InvalidRange":
                    return b""
                raise
        data: bytes = result.read()
        if len(data) != result.content_length or (length is not None and len(data) > length):
            raise Unavailable(f"{key}: {len(data)} bytes came where {result.content_length} were announced")
        stored = result.headers.get(_STORED_CRC)
        if whole and stored is not None and int(stored) != crc64.xz(data):
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        result = await self._calls.repeated(key, partial(self._bucket.head_object, key))
        return ObjectInfo(key, int(result.content_length))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_limit(limit)
        found: list[ObjectInfo] = []
        while len(found) < limit:
            want = min(limit - len(found), PAGE_OBJECTS_MAX)
            call = partial(self._bucket.list_objects_v2, prefix=prefix, start_after=start_after, max_keys=want)
            answer = await self._calls.repeated(prefix, call)
            found.extend(ObjectInfo(row.key, int(row.size)) for row in answer.object_list)
            if not answer.is_truncated:
                break
            start_after = found[-1].key
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if len(keys) == 1:
            await self._calls.repeated(keys[0], partial(self._bucket.delete_object, keys[0]), changes=True)
            return
        for at in range(0, len(keys), DELETE_KEYS_MAX):
            some = list(keys[at : at + DELETE_KEYS_MAX])
            await self._calls.repeated(some[0], partial(self._bucket.batch_delete_objects, some), changes=True)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        raise Invalid("OSS appends only to objects that were born appendable", hint="use block or object WAL")

    async def close(self) -> None:
        self._calls.close()
        self._bucket.session.session.close()


def _code(error: Exception) -> str:
    return str(getattr(error, "code", ""))


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code, never by status alone: 409 is `FileAlreadyExists` and others."""
    import requests
    from oss2 import exceptions as sdk

    unknown = OutcomeUnknown if changes else Unavailable
    if isinstance(error, sdk.RequestError):
        cause = error.exception
        # A connection that was never made sent nothing; `ConnectionError` itself also covers one that broke.
        if isinstance(cause, requests.exceptions.ConnectTimeout) or "NewConnectionError" in repr(cause):
            return Unavailable(f"{subject}: {cause}")
        return unknown(f"{subject}: {cause}")
    if isinstance(error, sdk.ServerError):
        return _translate_answer(error, subject, unknown)
    if isinstance(error, sdk.ClientError):
        return Invalid(f"{subject}: {error}")
    return unknown(f"{subject}: {error}")


def _translate_answer(error: Any, subject: str, unknown: type[Unavailable]) -> YunheError:
    code = _code(error)
    said = f"{subject}: {code}: {error.message}"
    if code in ("NoSuchKey", "SymlinkTargetNotExist") or (error.status == 404 and not code):
        return NotFound(f"{subject} does not exist")
    if code == "FileAlreadyExists":
        return AlreadyExists(f"{subject} exists")
    if code == "NoSuchBucket":
        return Invalid(said, hint="`yunhe apply` creates the bucket")
    if code in _REFUSED:
        return Invalid(said, hint="the credentials do not give access to this bucket")
    if code == "RequestTimeTooSkewed":
        return Unavailable(said)
    if error.status >= 500 or error.status == 429 or code in ("RequestTimeout", "QpsLimitExceeded"):
        return unknown(said)
    return Invalid(said)
