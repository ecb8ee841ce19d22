"""Google Cloud Storage through google-cloud-storage.

A put is a single multipart request whatever its size; a stream goes through a resumable upload, which makes the object
with its last request. Every write carries its crc32c, which Google compares; a whole object's crc32c is compared on
read. The SDK's retries are off; `SdkCalls` repeats what may be repeated. A given endpoint is reached without the
environment's proxies.

`collect_uploads` has nothing to do: Google lists no sessions of unfinished uploads, shows nothing of them, and drops
them after a week. A stream that fails in a living process drops its own at once.

Limits of the cloud: one write a second to one name (more is 429, of which a create does not learn whether it happened);
no appends on standard buckets.

Least privileges (a custom role): storage.objects.create, .get, .list, .delete (which replacing needs too);
storage.buckets.get and .create for `ensure_bucket` only.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any

import google_crc32c

from providers.base.blocking import SdkCalls, StoreSettings, check_key, check_limit, check_range
from providers.base.buckets import not_empty
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Corrupt, Invalid, NotFound, YunheError
from providers.base.objects import ObjectInfo, ObjectStore
from providers.base.registry import StoreAddress
from providers.base.streams import PART_BYTES, fetch_stream, store_stream
from providers.gcp.account import authorized_session, sign_in, signer, status_of
from providers.gcp.gcs_errors import no_bucket, translate_gcs
from providers.gcp.gcs_wire import Wire, failure_of
from providers.gcp.resumable import ResumableUpload

NO_METADATA_LOOKUPS = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
"""Keeps the SDK from fetching the bucket's metadata beside our requests, for traces that nobody takes here."""

BATCH_KEYS_MAX = 100
"""Calls in a batch request (guide: batch requests)."""

PARTS_MAX = 5 << 40
"""No limit on chunks; an object has at most 5 TiB."""

NO_APPEND = "GCS objects cannot be appended to"
HINT_NO_APPEND = "Rapid buckets append, over gRPC only, which is not built here; use block or object WAL"

_FIELDS = "name,size,updated,generation"


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet. Without a credentials file: Google's application default
    credentials.

    Raises:
        Invalid: unreadable or missing credentials.
    """
    os.environ.setdefault(NO_METADATA_LOOKUPS, "true")
    import google.cloud.storage as storage

    settings = settings or StoreSettings()
    own_endpoint = address.endpoint is not None
    signed = sign_in(address.credentials_file, address.endpoint)
    session = authorized_session(signed, own_endpoint=own_endpoint, connections=settings.threads)
    options = {"api_endpoint": address.endpoint} if address.endpoint else None
    client: Any = storage.Client(
        project=signed.project or "yunhe", credentials=signed.credentials, _http=session, client_options=options
    )
    timeout_s = (settings.connect_timeout_ms / 1000, settings.read_timeout_ms / 1000)
    wire = Wire(signer(signed, session, settings), address.endpoint, address.bucket, settings)
    account = f"gcp {signed.project}" if signed.project else None
    calls = SdkCalls(f"gcs {address.bucket}", settings, translate_gcs, clock=clock, rng=rng, account=account)
    return GcsObjectStore(client, wire, address, calls, {"timeout": timeout_s, "retry": None})


class GcsObjectStore:
    """One GCS bucket. See `providers.base.objects.ObjectStore`. No append."""

    def __init__(self, client: Any, wire: Wire, address: StoreAddress, calls: SdkCalls, bounds: dict[str, Any]) -> None:
        self._client = client
        self._wire = wire
        self._address = address
        self._bucket = client.bucket(address.bucket)
        self._calls = calls
        self._bounds = bounds

    async def ensure_bucket(self) -> None:
        location = None if self._address.endpoint else self._address.region

        def create() -> None:
            try:
                self._client.create_bucket(self._bucket, location=location, **self._bounds)
            except Exception as error:
                # 409 also stands for somebody else's bucket of that name; ours is one that we can see.
                if status_of(error) != 409:
                    raise
                self._client.get_bucket(self._bucket, **self._bounds)

        await self._calls.repeated(self._address.bucket, create, changes=True)

    async def bucket_exists(self) -> bool:
        def look() -> bool:
            return self._client.lookup_bucket(self._bucket, **self._bounds) is not None

        return await self._calls.repeated(self._address.bucket, look)

    async def remove_bucket(self) -> None:
        def remove() -> None:
            try:
                self._bucket.delete(client=self._client, **self._bounds)
            except Exception as error:
                if status_of(error) in (409, 412):  # Google's answer, and fake-gcs-server's
                    raise not_empty(self._address.bucket) from error
                if status_of(error) != 404:
                    raise

        await self._calls.repeated(self._address.bucket, remove, changes=True)

    # ---- writing

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        call = partial(self._wire.put, key, data, if_absent=if_absent)
        if if_absent:
            await self._calls.once(key, call, changes=True)
        else:
            await self._calls.repeated(key, call, changes=True)

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        check_key(key)
        await store_stream(
            chunks,
            partial(self.put, key, if_absent=if_absent),
            lambda: ResumableUpload(self._wire, self._calls, key, if_absent=if_absent),
            parts_max=PARTS_MAX // PART_BYTES,
            abreast=1,  # a session takes its bytes in order
        )

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        check_key(source)
        check_key(key)
        token: str | None = None
        while True:
            call = partial(self._rewrite, source, key, token, 0 if if_absent else None)
            if if_absent:
                token = await self._calls.once(key, call, changes=True)
            else:
                token = await self._calls.repeated(key, call, changes=True)
            if token is None:
                return

    def _rewrite(self, source: str, key: str, token: str | None, generation: int | None) -> str | None:
        """One step of a rewrite; the token of the next, or None when it is done. Within a bucket one is enough, but for
        large objects whose storage class changes."""
        try:
            token, _, _ = self._bucket.blob(key).rewrite(
                self._bucket.blob(source), token=token, if_generation_match=generation, **self._bounds
            )
        except Exception as error:
            if status_of(error) == 404 and not no_bucket(error):
                raise NotFound(f"{source} does not exist") from error
            raise
        return token

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        return 0

    async def create_appendable(self, key: str) -> None:
        raise Invalid(NO_APPEND, hint=HINT_NO_APPEND)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        raise Invalid(NO_APPEND, hint=HINT_NO_APPEND)

    # ---- reading

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self.head(key)
            return b""
        return await self._calls.repeated(key, partial(self._wire.get, key, start, length))

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        check_key(key)
        check_range(start, length)
        found = await self._calls.repeated(key, partial(self._wire.metadata, key))
        size, generation = int(found["size"]), found["generation"]
        end = size if length is None else min(size, start + length)
        whole = start == 0 and end == size
        checksum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

        async def fetch(at: int, count: int) -> bytes:
            try:
                return await self._calls.repeated(key, partial(self._wire.read, key, generation, at, count))
            except NotFound as error:
                raise Conflict(f"{key} was removed while it was read") from error

        async with aclosing(fetch_stream(fetch, start, end)) as pieces:
            async for piece in pieces:
                if whole:
                    checksum.update(piece)
                yield piece
        if whole and found.get("crc32c", "") != self._wire.encoded(checksum.digest()):
            raise Corrupt(f"{key}: the bytes that came do not match their checksum")

    async def head(self, key: str) -> ObjectInfo:
        check_key(key)
        found = await self._calls.repeated(key, partial(self._wire.metadata, key))
        return _info(key, found["size"], found["generation"], datetime.fromisoformat(found["updated"]))

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
            fields=f"items({_FIELDS}),nextPageToken",
            **self._bounds,
        )
        found = [_info(row.name, row.size, row.generation, row.updated) for row in rows if row.name > start_after]
        return found[:limit]

    # ---- removing

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        failed: dict[str, str] = {}
        worst: YunheError | None = None
        wanted = list(dict.fromkeys(keys))
        for at in range(0, len(wanted), BATCH_KEYS_MAX):
            some = wanted[at : at + BATCH_KEYS_MAX]
            left = dict.fromkeys(some, "")
            try:
                await self._calls.repeated(self._address.bucket, partial(self._delete, left), changes=True)
            except YunheError as error:
                failed.update({key: why or error.message for key, why in left.items()})
                worst = error if worst is None or isinstance(error, Invalid) else worst
        if worst is not None:
            raise type(worst)(
                f"{len(failed)} of {len(wanted)} objects were not removed: {worst}", hint=worst.hint, failed=failed
            ) from worst

    def _delete(self, left: dict[str, str]) -> None:
        """Delete what is in `left`, taking out of it what is gone and noting of the rest why not."""
        keys = list(left)
        if len(keys) == 1:
            try:
                self._bucket.delete_blob(keys[0], **self._bounds)
            except Exception as error:
                if status_of(error) != 404 or no_bucket(error):
                    raise
            left.clear()
            return
        batch = self._client.batch(raise_exception=False)
        with batch:
            for key in keys:
                self._bucket.delete_blob(key, **self._bounds)
        worst: Exception | None = None
        for key, answer in zip(keys, batch._responses, strict=True):
            if 200 <= answer.status_code < 300:
                del left[key]
                continue
            failure = failure_of(answer, "DELETE", "")
            if status_of(failure) == 404 and not no_bucket(failure):
                del left[key]
                continue
            left[key] = str(failure)
            worst = failure
        if worst is not None:
            raise worst

    async def close(self) -> None:
        self._calls.close()
        self._client.close()
        self._wire.close()


def _info(key: str, size: Any, generation: Any, updated: datetime | None) -> ObjectInfo:
    modified_ms = None if updated is None else int(updated.timestamp() * 1000)
    return ObjectInfo(key, int(size), modified_ms, str(generation or ""))
