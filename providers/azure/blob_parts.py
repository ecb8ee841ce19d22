"""Objects put together from blocks: a stream's, and those of a copy too large for one request.

Blocks are staged under the blob's name and seen by nobody until a block list is committed. They are the name's, not an
upload's: whoever commits or puts first drops the others' blocks. So each writer's block ids begin with a token of its
own and tell when it began, and a commit whose blocks are gone says `InvalidBlockList`: somebody else was first.

Blocks that nobody will commit are dropped by Delete Blob, which the service lets a blob have that is nothing else yet
(azure-storage-node issue 350, azure-sdk-for-cpp issue 3911); it drops them by itself a week after the last one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from providers.azure.blob_client import SCOPE, Connection
from providers.azure.blob_errors import code_of
from providers.base.blocking import SdkCalls
from providers.base.clock import Clock, Rng
from providers.base.errors import AlreadyExists, Conflict, NotFound
from providers.base.streams import ABREAST

BLOCKS_MAX = 50_000
"""Blocks of a blob (Put Block List)."""

COPY_BYTES_MAX = 64 << 20
"""Copied in one request: Copy Blob From URL takes 256 MiB, but has to end within a request's time-out."""

SKEW_MS_MAX = 16 * 60_000
"""No request of a clock further off would have been let in (15 minutes), so nothing that is committed after blocks were
staged is dated earlier than their beginning less this."""

_BLOCK_ID = re.compile(r"[0-9a-f]{32}-(?P<begun>[0-9a-f]{12})-\d{5}")

SOURCE_LIFETIME_MS = 3_600_000
"""How long a copy's right to read its source lasts."""


class BlockUpload:
    """`providers.base.streams.PartUpload` by staged blocks."""

    def __init__(self, blob: Any, key: str, if_absent: bool, calls: SdkCalls, clock: Clock, rng: Rng) -> None:
        self._blob = blob
        self._key = key
        self._if_absent = if_absent
        self._calls = calls
        self._begun_ms = clock.wall_ms()
        self._token = f"{rng.token()}-{self._begun_ms:012x}"
        self.md5: Callable[[], bytes | None] = lambda: None
        """Of the whole, to be kept with the blob; asked for at the end."""

    async def begin(self) -> None:
        """Blocks need no beginning."""

    async def part(self, number: int, data: bytes) -> None:
        call = partial(self._blob.stage_block, self.block_id(number), data, validate_content=True)
        await self._calls.repeated(self._key, call, changes=True)

    def block_id(self, number: int) -> str:
        """All ids of a blob are of one length (Put Block)."""
        return f"{self._token}-{number:05}"

    async def complete(self, count: int) -> None:
        from azure.core import MatchConditions
        from azure.storage.blob import BlobBlock, ContentSettings

        blocks = [BlobBlock(self.block_id(number)) for number in range(1, count + 1)]
        condition = {"match_condition": MatchConditions.IfMissing} if self._if_absent else {}
        md5 = self.md5()
        kept = {"content_settings": ContentSettings(content_md5=bytearray(md5))} if md5 is not None else {}
        call = partial(self._blob.commit_block_list, blocks, validate_content=True, **kept, **condition)
        send = self._calls.once if self._if_absent else self._calls.repeated
        try:
            await send(self._key, call, changes=True)
        except AlreadyExists:
            raise
        except Conflict as error:
            raise await self._outrun(error) from error

    async def _outrun(self, error: Conflict) -> Conflict:
        if self._if_absent:
            try:
                await self._calls.repeated(self._key, self._blob.get_blob_properties)
            except NotFound:
                pass
            else:
                return AlreadyExists(f"{self._key} exists", **error.fields)
        said = f"{self._key}: another writer finished first, and this one's blocks were dropped"
        return Conflict(said, **error.fields)

    async def abort(self) -> None:
        call = partial(drop_blocks, self._blob, self._begun_ms, token=self._token)
        await self._calls.repeated(self._key, call, changes=True)


def drop_blocks(blob: Any, until_ms: int, *, token: str = "") -> bool:
    """Drop the blocks staged under a name that has no blob yet, if all were staged by this adapter, begun by
    `until_ms`, and where `token` is given by that upload; whether they were dropped. To be called in a thread; never
    removes a blob.
    """
    try:
        blob.get_blob_properties()
    except Exception as error:
        if code_of(error) not in ("BlobNotFound", "ResourceNotFound"):
            raise
    else:
        return False
    try:
        committed, staged = blob.get_block_list("all")
    except Exception as error:
        if code_of(error) == "BlobNotFound":
            return False
        raise
    begun = [int(found["begun"], 16) if (found := _BLOCK_ID.fullmatch(block.id)) else None for block in staged]
    known = [each for each in begun if each is not None]
    foreign = len(known) < len(begun) or any(not block.id.startswith(token) for block in staged)
    if committed or foreign or not known or max(known) > until_ms:
        return False
    # Whatever is committed from here on is dated later, and stays.
    earlier = datetime.fromtimestamp((min(known) - SKEW_MS_MAX) / 1000, UTC)
    try:
        blob.delete_blob(if_unmodified_since=earlier)
    except Exception as error:
        if code_of(error) in ("BlobNotFound", "ConditionNotMet"):
            return False
        raise
    return True


class Copy:
    """One copy inside a container."""

    def __init__(self, connection: Connection, source: Any, target: Any, calls: SdkCalls, clock: Clock) -> None:
        self._connection = connection
        self._source = source
        self._target = target
        self._calls = calls
        self._clock = clock

    async def run(self, source_key: str, key: str, if_absent: bool, rng: Rng) -> None:
        """
        Raises:
            NotFound: no such source.
            AlreadyExists, OutcomeUnknown: as `ObjectStore.copy`.
            Conflict: the source was replaced meanwhile.
        """
        found = await self._calls.repeated(source_key, self._source.get_blob_properties)
        if found.size <= COPY_BYTES_MAX:
            await self._at_once(key, found.etag, if_absent)
        else:
            await self._in_blocks(key, found, if_absent, rng)

    async def _at_once(self, key: str, source_etag: str, if_absent: bool) -> None:
        from azure.core import MatchConditions

        condition = {"match_condition": MatchConditions.IfMissing} if if_absent else {}
        unchanged = {"source_etag": source_etag, "source_match_condition": MatchConditions.IfNotModified}

        def copy() -> None:
            url, access = self._readable()
            self._target.start_copy_from_url(url, requires_sync=True, **unchanged, **condition, **access)

        send = self._calls.once if if_absent else self._calls.repeated
        try:
            await send(key, copy, changes=True)
        except Conflict as error:
            if if_absent and error.fields.get("code") in ("ConditionNotMet", "TargetConditionNotMet"):
                raise AlreadyExists(f"{key} exists", **error.fields) from error
            raise

    async def _in_blocks(self, key: str, found: Any, if_absent: bool, rng: Rng) -> None:
        upload = BlockUpload(self._target, key, if_absent, self._calls, self._clock, rng)
        md5 = found.content_settings.content_md5
        upload.md5 = lambda: None if md5 is None else bytes(md5)
        starts = range(0, found.size, COPY_BYTES_MAX)
        gate = asyncio.Semaphore(ABREAST)

        def stage(number: int, start: int) -> None:
            url, access = self._readable()
            self._target.stage_block_from_url(
                upload.block_id(number),
                url,
                source_offset=start,
                source_length=min(COPY_BYTES_MAX, found.size - start),
                # Put Block From URL has this condition, the SDK's call no argument for it.
                headers={"x-ms-source-if-match": found.etag},
                **access,
            )

        async def send(number: int, start: int) -> None:
            async with gate:
                await self._calls.repeated(key, partial(stage, number, start), changes=True)

        sending = [asyncio.create_task(send(at + 1, start)) for at, start in enumerate(starts)]
        try:
            await asyncio.gather(*sending)
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
        await upload.complete(len(starts))

    def _readable(self) -> tuple[str, dict[str, str]]:
        """The source's URL and what else gives the service the right to read it: a signature of the account key, or
        the identity's token."""
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        url = str(self._source.url)
        if self._connection.account_key is None:
            token = self._connection.credential.get_token(SCOPE).token
            return url, {"source_authorization": f"Bearer {token}"}
        expiry = datetime.fromtimestamp((self._clock.wall_ms() + SOURCE_LIFETIME_MS) / 1000, UTC)
        signature = generate_blob_sas(
            self._connection.account,
            self._source.container_name,
            self._source.blob_name,
            account_key=self._connection.account_key,
            permission=BlobSasPermissions(read=True),
            expiry=expiry,
        )
        return f"{url}?{signature}", {}
