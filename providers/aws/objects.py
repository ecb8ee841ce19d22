"""S3 and S3 Express through botocore, the core of boto3: the same clients, without the resource layer that nobody here
uses, so that a process starts sooner.

S3-compatible stores use the same class (`providers/private/objects.py`). The SDK's own retries are off; `SdkCalls`
repeats what may be repeated. A given endpoint is addressed in path style and without the environment's proxies. For
directory buckets (`…--x-s3`) the SDK makes and renews the five-minute sessions: it asks for a new one 45 seconds early,
on one caller's request.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.aws.express import ExpressAppends, zone_of
from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import (
    AlreadyExists,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
    YunheError,
)
from providers.base.objects import NotYet, ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress

DELETE_KEYS_MAX = 1000
"""Keys a DeleteObjects request takes (S3 API reference)."""

PAGE_OBJECTS_MAX = 1000
"""Objects a ListObjectsV2 page holds (S3 API reference)."""

_MISSING = frozenset(["NoSuchKey", "404", "NotFound"])
_REFUSED = frozenset(
    ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AllAccessDisabled", "403"]
)
_LATER = frozenset(["ConditionalRequestConflict", "RequestTimeTooSkewed", "ExpiredToken", "OperationAborted"])
"""Definite answers that nothing was done, and that may be otherwise next time."""


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet.

    Raises:
        Invalid: unreadable credentials.
    """
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    settings = settings or StoreSettings()
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
    try:
        client = botocore.session.get_session().create_client(
            "s3",
            region_name=address.region,
            endpoint_url=address.endpoint,
            aws_access_key_id=secrets.get("access_key"),
            aws_secret_access_key=secrets.get("secret_key"),
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise Invalid(f"bucket {address.bucket} cannot be opened: {error}") from error
    calls = SdkCalls(f"s3 {address.bucket}", settings, _translate, clock=clock, rng=rng)
    return S3ObjectStore(client, address, calls, ExpressAppends(client, address, settings, clock))


class S3ObjectStore(NotYet):
    """One S3 bucket. See `providers.base.objects.ObjectStore`; only directory buckets can append."""

    def __init__(self, client: Any, address: StoreAddress, calls: SdkCalls, appends: ExpressAppends) -> None:
        self._client = client
        self._appends = appends
        self._address = address
        self._bucket = address.bucket
        self._express = address.bucket.endswith("--x-s3")
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
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise

        await self._calls.repeated(self._bucket, create, changes=True)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        if if_absent:
            call = partial(self._client.put_object, Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
            await self._calls.once(key, call, changes=True)
        else:
            call = partial(self._client.put_object, Bucket=self._bucket, Key=key, Body=data)
            await self._calls.repeated(key, call, changes=True)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length))

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        if start == 0 and length is None:
            answer = self._client.get_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
        else:
            span = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=span)
            except Exception as error:
                if _code(error) == "InvalidRange":
                    return b""
                raise
        data: bytes = answer["Body"].read()
        if len(data) != answer["ContentLength"] or (length is not None and len(data) > length):
            raise Unavailable(f"{key}: {len(data)} bytes came where {answer['ContentLength']} were announced")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        answer = await self._calls.repeated(key, partial(self._client.head_object, Bucket=self._bucket, Key=key))
        return ObjectInfo(key, int(answer["ContentLength"]))

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
            found.extend(ObjectInfo(row["Key"], int(row["Size"])) for row in answer.get("Contents", ()))
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
            rows.extend(ObjectInfo(row["Key"], int(row["Size"])) for row in answer.get("Contents", ()))
            if not answer["IsTruncated"]:
                return sorted((row for row in rows if row.key > start_after), key=lambda row: row.key)[:limit]
            token = {"ContinuationToken": answer["NextContinuationToken"]}
        raise Invalid(f"{prefix!r} holds more than {self._calls.settings.list_objects_max} objects")

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if len(keys) == 1:
            call = partial(self._client.delete_object, Bucket=self._bucket, Key=keys[0])
            await self._calls.repeated(keys[0], call, changes=True)
            return
        for at in range(0, len(keys), DELETE_KEYS_MAX):
            some = keys[at : at + DELETE_KEYS_MAX]
            what = {"Objects": [{"Key": key} for key in some], "Quiet": True}
            call = partial(self._client.delete_objects, Bucket=self._bucket, Delete=what)
            answer = await self._calls.repeated(some[0], call, changes=True)
            failed = answer.get("Errors", ())
            if failed:
                raise Unavailable(f"{len(failed)} of {len(some)} objects were not deleted: {failed[0].get('Code')}")

    async def append(self, key: str, offset: int, data: bytes) -> None:
        check_key(key)
        if not self._express:
            raise Invalid(f"bucket {self._bucket} is no S3 Express bucket and cannot append")
        if offset < 0 or not data:
            raise Invalid(f"an append has an offset of 0 or more and at least one byte, not {offset}, {len(data)}")
        if offset == 0:
            # S3 Express would create the object. It exists after this, unless somebody deletes it meanwhile.
            await self.head(key)
        call = partial(self._appends.append, key, offset, data)
        try:
            await self._calls.once(key, call, changes=True)
        except WrongOffset as error:
            error.fields["actual"] = (await self.head(key)).size
            raise

    async def close(self) -> None:
        self._calls.close()
        self._appends.close()
        self._client.close()


def _code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code, never by status alone: S3's 409 means "again"."""
    from botocore import exceptions as sdk
    from urllib3.exceptions import ConnectTimeoutError
    from urllib3.exceptions import NewConnectionError as ConnectError

    if isinstance(error, sdk.ClientError):
        if error.operation_name == "CreateSession":
            # Asked for before the request proper, which was not sent.
            changes = False
        return _translate_answer(error, subject, changes)
    if isinstance(error, sdk.FlexibleChecksumError):
        return Corrupt(f"{subject}: the bytes that came do not match their checksum")
    if isinstance(error, sdk.NoCredentialsError | sdk.PartialCredentialsError):
        return Invalid(f"no AWS credentials: {error}")
    if isinstance(error, sdk.EndpointConnectionError | sdk.ConnectTimeoutError | ConnectError | ConnectTimeoutError):
        return Unavailable(f"{subject}: {error}")
    return (OutcomeUnknown if changes else Unavailable)(f"{subject}: {error}")


def _translate_answer(error: Any, subject: str, changes: bool) -> YunheError:
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{subject}: {code}: {error.response.get('Error', {}).get('Message', '')}"
    if code in _MISSING:
        return NotFound(f"{subject} does not exist")
    if code == "PreconditionFailed":
        return AlreadyExists(f"{subject} exists")
    if code == "InvalidWriteOffset":
        return WrongOffset(said)
    if code == "NoSuchBucket":
        return Invalid(said, hint="`yunhe apply` creates the bucket")
    if code in _REFUSED:
        return Invalid(said, hint="the credentials do not give access to this bucket")
    if code in _LATER:
        return Unavailable(said)
    if status >= 500 or status == 429 or code in ("SlowDown", "Throttling", "RequestTimeout"):
        return (OutcomeUnknown if changes else Unavailable)(said)
    return Invalid(said)
