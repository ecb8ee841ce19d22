"""Google Cloud Storage through google-cloud-storage.

Puts are single multipart requests whatever their size: a resumable upload checks its condition only at the end. The
SDK's retries are off; `SdkCalls` repeats what may be repeated. A given endpoint is reached without the environment's
proxies.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import google_crc32c

from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range, read_credentials
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Corrupt, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import NotYet, ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress

ENDPOINT = "https://storage.googleapis.com"
BOUNDARY = "yunhe-7f1c9a02b6d84e35"
PIECE_BYTES = 1 << 20
NO_METADATA_LOOKUPS = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
"""Keeps the SDK from fetching the bucket's metadata beside our requests, for traces that nobody takes here."""


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet. Without a credentials file: Google's application default
    credentials.

    Raises:
        Invalid: unreadable or missing credentials.
    """
    os.environ.setdefault(NO_METADATA_LOOKUPS, "true")
    import google.auth
    import google.auth.credentials
    import google.auth.exceptions
    import google.auth.transport.requests
    import google.cloud.storage as storage
    import google.oauth2.service_account
    import requests

    # Published without types for their constructors.
    service_account: Any = google.oauth2.service_account.Credentials
    anonymous: Any = google.auth.credentials.AnonymousCredentials
    authorized_session: Any = google.auth.transport.requests.AuthorizedSession

    settings = settings or StoreSettings()
    secrets = read_credentials(address.credentials_file)
    project = None
    try:
        if "service_account" in secrets:
            info = secrets["service_account"]
            scopes = ["https://www.googleapis.com/auth/devstorage.full_control"]
            credentials = service_account.from_service_account_info(info, scopes=scopes)
            project = credentials.project_id
        elif secrets.get("anonymous") is True:
            credentials = anonymous()
        elif address.credentials_file is not None:
            raise Invalid(f"credentials file {address.credentials_file} lacks service_account")
        else:
            credentials, project = google.auth.default()
    except (google.auth.exceptions.GoogleAuthError, ValueError) as error:
        raise Invalid(f"no usable Google credentials: {error}") from error
    session = authorized_session(credentials)
    session.trust_env = address.endpoint is None
    adapter = requests.adapters.HTTPAdapter(pool_connections=settings.threads, pool_maxsize=settings.threads)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    options = {"api_endpoint": address.endpoint} if address.endpoint else None
    client = storage.Client(project=project or "yunhe", credentials=credentials, _http=session, client_options=options)
    calls = SdkCalls(f"gcs {address.bucket}", settings, _translate, clock=clock, rng=rng)
    return GcsObjectStore(client, session, address, calls)


class GcsObjectStore(NotYet):
    """One GCS bucket. See `providers.base.objects.ObjectStore`. No append."""

    def __init__(self, client: Any, session: Any, address: StoreAddress, calls: SdkCalls) -> None:
        self._client = client
        self._session = session
        self._address = address
        self._bucket = client.bucket(address.bucket)
        self._calls = calls
        settings = calls.settings
        self._timeout = (settings.connect_timeout_ms / 1000, settings.read_timeout_ms / 1000)

    async def ensure_bucket(self) -> None:
        location = None if self._address.endpoint else self._address.region

        def create() -> None:
            try:
                self._client.create_bucket(self._bucket, location=location, timeout=self._timeout, retry=None)
            except Exception as error:
                # 409 also stands for somebody else's bucket of that name; ours is one that we can see.
                if _status(error) != 409:
                    raise
                self._client.get_bucket(self._bucket, timeout=self._timeout, retry=None)

        await self._calls.repeated(self._address.bucket, create, changes=True)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        call = partial(self._put, key, data, 0 if if_absent else None)
        if if_absent:
            await self._calls.once(key, call, changes=True)
        else:
            await self._calls.repeated(key, call, changes=True)

    def _put(self, key: str, data: bytes, generation: int | None) -> None:
        # The SDK's uploads turn to resumable ones above 8 MiB, which are several requests, and join the body in memory:
        # of 64 MiB, with the interpreter's lock held. So the request is made here, over the SDK's session.
        from google.api_core.exceptions import from_http_response

        checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        body = _Related({"name": key, "crc32c": checksum, "contentType": "application/octet-stream"}, data)
        condition = {} if generation is None else {"ifGenerationMatch": str(generation)}
        response = self._session.post(
            f"{self._address.endpoint or ENDPOINT}/upload/storage/v1/b/{quote(self._address.bucket, safe='')}/o",
            params={"uploadType": "multipart", **condition},
            data=body,
            headers={"Content-Type": f'multipart/related; boundary="{BOUNDARY}"'},
            timeout=self._timeout,
        )
        if response.status_code == 404:
            raise Invalid(f"bucket {self._address.bucket} does not exist", hint="`yunhe apply` creates it")
        if response.status_code >= 300:
            raise from_http_response(response)  # type: ignore[no-untyped-call]

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._get, key, start, length))

    def _get(self, key: str, start: int, length: int | None) -> bytes:
        blob = self._bucket.blob(key)
        ranged = {} if start == 0 and length is None else {"start": start}
        if length is not None:
            ranged["end"] = start + length - 1
        try:
            data: bytes = blob.download_as_bytes(
                raw_download=True, checksum="crc32c", timeout=self._timeout, retry=None, **ranged
            )
        except Exception as error:
            if _status(error) == 416 and ranged:
                return b""
            raise
        if length is not None and len(data) > length:
            raise Unavailable(f"{key}: {len(data)} bytes came where at most {length} were asked for")
        return data

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        blob = self._bucket.blob(key)
        await self._calls.repeated(key, partial(blob.reload, timeout=self._timeout, retry=None))
        return ObjectInfo(key, int(blob.size))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        check_limit(limit)
        return await self._calls.repeated(prefix, partial(self._list, prefix, start_after, limit))

    def _list(self, prefix: str, start_after: str, limit: int) -> Sequence[ObjectInfo]:
        # `start_offset` is inclusive: one more is asked for, and the name itself is passed over.
        rows = self._client.list_blobs(
            self._bucket,
            prefix=prefix or None,
            start_offset=start_after or None,
            max_results=limit + 1,
            fields="items(name,size),nextPageToken",
            timeout=self._timeout,
            retry=None,
        )
        found = [ObjectInfo(row.name, int(row.size)) for row in rows if row.name > start_after]
        return found[:limit]

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        for key in keys:
            await self._calls.repeated(key, partial(self._delete, key), changes=True)

    def _delete(self, key: str) -> None:
        try:
            self._bucket.delete_blob(key, timeout=self._timeout, retry=None)
        except Exception as error:
            if _status(error) != 404 or _no_bucket(error):
                raise

    async def append(self, key: str, offset: int, data: bytes) -> None:
        raise Invalid("GCS objects cannot be appended to", hint="use block or object WAL")

    async def close(self) -> None:
        self._calls.close()
        self._client.close()


class _Related:
    """A `multipart/related` body of an object's metadata and its bytes, sent piece by piece and never joined."""

    def __init__(self, metadata: Mapping[str, str], data: bytes) -> None:
        head = f"--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
        self._head = f"{head}--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
        self._data = memoryview(data)
        self._tail = f"\r\n--{BOUNDARY}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + len(self._data) + len(self._tail)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for at in range(0, len(self._data), PIECE_BYTES):
            yield self._data[at : at + PIECE_BYTES]
        yield self._tail


def _status(error: Exception) -> int:
    """Of an API error, or of an upload or download helper's."""
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", 0)
    return int(status) if isinstance(status, int) else 0


def _no_bucket(error: Exception) -> bool:
    # GCS has one reason, notFound, for both; its sentence tells them apart.
    return "bucket" in str(error) and "No such object" not in str(error)


def _translate(error: Exception, subject: str, changes: bool) -> YunheError:
    import google.auth.exceptions
    import requests
    from google.api_core.exceptions import GoogleAPICallError

    unknown = OutcomeUnknown if changes else Unavailable
    status = _status(error)
    if isinstance(error, GoogleAPICallError) and status:
        return _translate_answer(status, error, subject, unknown)
    if type(error).__name__ == "DataCorruption":
        return Corrupt(f"{subject}: the bytes that came do not match their checksum")
    if isinstance(error, google.auth.exceptions.TransportError):
        return Unavailable(f"{subject}: no access token: {error}")
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return Invalid(f"{subject}: {error}", hint="the credentials do not give access to this bucket")
    if status:
        return _translate_answer(status, error, subject, unknown)
    if isinstance(error, requests.exceptions.ConnectTimeout) or "NewConnectionError" in repr(error):
        return Unavailable(f"{subject}: {error}")
    return unknown(f"{subject}: {error}")


def _translate_answer(status: int, error: Exception, subject: str, unknown: type[Unavailable]) -> YunheError:
    said = f"{subject}: {error}"
    match status:
        case 404 if _no_bucket(error):
            return Invalid(said, hint="`yunhe apply` creates the bucket")
        case 404:
            return NotFound(f"{subject} does not exist")
        case 412:
            return AlreadyExists(f"{subject} exists")
        case 401 | 403:
            return Invalid(said, hint="the credentials do not give access to this bucket")
        case 408 | 429:
            return unknown(said)
        case _ if status >= 500:
            return unknown(said)
    return Invalid(said)
