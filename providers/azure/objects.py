"""Azure Blob Storage through azure-storage-blob.

The SDK's retries are off; `SdkCalls` repeats what may be repeated. A put is one Put Blob request whatever its size:
staged blocks would be conditional only at the end. A given endpoint is addressed in path style (`/account/container`)
and without the environment's proxies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Corrupt, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import NotYet, ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress

SINGLE_PUT_BYTES_MAX = 5000 << 20
"""What one Put Blob request takes (Blob service REST reference)."""

SINGLE_GET_BYTES_MAX = 1 << 30
"""Larger blobs are read in several requests."""

PAGE_OBJECTS_MAX = 5000
"""Blobs a List Blobs page holds (REST reference)."""

_REFUSED = frozenset(["AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch"])


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the container at `address`; nothing is sent yet.

    Raises:
        Invalid: unreadable or missing credentials.
    """
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import ContainerClient

    settings = settings or StoreSettings()
    if address.credentials_file is None:
        raise Invalid("Azure needs a credentials file", hint='a JSON file with "account" and "account_key"')
    secrets = read_credentials(address.credentials_file, "account", "account_key")
    account = str(secrets["account"])
    url = f"{address.endpoint}/{account}" if address.endpoint else f"https://{account}.blob.core.windows.net"
    import requests

    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=settings.threads, pool_maxsize=settings.threads)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.trust_env = address.endpoint is None
    try:
        container = ContainerClient(
            url,
            address.bucket,
            credential={"account_name": account, "account_key": str(secrets["account_key"])},
            transport=RequestsTransport(
                session=session, session_owner=False, use_env_settings=address.endpoint is None
            ),
            retry_total=0,
            connection_timeout=settings.connect_timeout_ms / 1000,
            read_timeout=settings.read_timeout_ms / 1000,
            max_single_put_size=SINGLE_PUT_BYTES_MAX,
            max_single_get_size=SINGLE_GET_BYTES_MAX,
        )
    except ValueError as error:
        raise Invalid(f"container {address.bucket} cannot be opened: {error}") from error
    calls = SdkCalls(f"azure {address.bucket}", settings, _translate, clock=clock, rng=rng)
    return AzureObjectStore(container, session, calls)


class AzureObjectStore(NotYet):
    """One container. See `providers.base.objects.ObjectStore`. No append: these are block blobs."""

    def __init__(self, container: Any, session: Any, calls: SdkCalls) -> None:
        self._container = container
        self._session = session
        self._calls = calls

    async def ensure_bucket(self) -> None:
        def create() -> None:
            try:
                self._container.create_container()
            except Exception as error:
                if _code(error) != "ContainerAlreadyExists":
                    raise

        await self._calls.repeated(self._container.container_name, create, changes=True)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        call = partial(self._put, key, data, if_absent)
        if if_absent:
            await self._calls.once(key, call, changes=True)
        else:
            await self._calls.repeated(key, call, changes=True)

    def _put(self, key: str, data: bytes, if_absent: bool) -> None:
        # Without `overwrite` the SDK sends If-None-Match: *.
        self._container.get_blob_client(key).upload_blob(data, overwrite=not if_absent, max_concurrency=1)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length))

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        blob = self._container.get_blob_client(key)
        whole = start == 0 and length is None
        try:
            stream = blob.download_blob() if whole else blob.download_blob(offset=start, length=length)
        except Exception as error:
            if _code(error) == "InvalidRange" and not whole:
                return b""
            raise
        data: bytes = stream.readall()
        if len(data) != stream.size:
            raise Unavailable(f"{key}: {len(data)} bytes came where {stream.size} were announced")
        md5 = stream.properties.content_settings.content_md5
        if whole and md5 is not None and bytes(md5) != hashlib.md5(data, usedforsecurity=False).digest():
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        properties = await self._calls.repeated(key, self._container.get_blob_client(key).get_blob_properties)
        return ObjectInfo(key, int(properties.size))

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
                found.append(ObjectInfo(row.name, int(row.size)))
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        for key in keys:
            await self._calls.repeated(key, partial(self._delete, key), changes=True)

    def _delete(self, key: str) -> None:
        try:
            self._container.get_blob_client(key).delete_blob()
        except Exception as error:
            if _code(error) != "BlobNotFound":
                raise

    async def append(self, key: str, offset: int, data: bytes) -> None:
        raise Invalid("block blobs cannot be appended to", hint="use block or object WAL")

    async def close(self) -> None:
        self._calls.close()
        self._container.close()
        self._session.close()


def _code(error: Exception) -> str:
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    """By error code, never by status alone: 409 is `BlobAlreadyExists` and a dozen others."""
    from azure.core import exceptions as sdk

    unknown = OutcomeUnknown if changes else Unavailable
    if isinstance(error, sdk.HttpResponseError) and error.status_code:
        return _translate_answer(error, subject, unknown)
    if isinstance(error, sdk.ServiceRequestError) and "NewConnectionError" in repr(error):
        return Unavailable(f"{subject}: {error.message}")
    return unknown(f"{subject}: {error}")


def _translate_answer(error: Any, subject: str, unknown: type[Unavailable]) -> YunheError:
    code = _code(error)
    said = f"{subject}: {code or error.status_code}: {error.reason}"
    if code in ("BlobNotFound", "ResourceNotFound") or (error.status_code == 404 and not code):
        return NotFound(f"{subject} does not exist")
    if code == "BlobAlreadyExists":
        return AlreadyExists(f"{subject} exists")
    if code == "ContainerNotFound":
        return Invalid(said, hint="`yunhe apply` creates the container")
    if code in _REFUSED:
        return Invalid(said, hint="the credentials do not give access to this container")
    if code == "ContainerBeingDeleted":
        return Unavailable(said)
    if error.status_code >= 500 or error.status_code in (408, 429):
        return unknown(said)
    return Invalid(said)
