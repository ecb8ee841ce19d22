"""Uploads in parts that are gone on with: by a later try, or a later life, of whoever sends the same bytes.

    known upload? ─► ask the store which parts it has ─► of each piece: there already ─► passed over
                          └─ gone: begin another              └─ not, or another ─► sent, `abreast` at once ─► complete

The owner keeps the upload's name and nothing else (`Progress`). What is there the store says, and each part is compared
by its checksum with the bytes that would be sent, so that nothing rests on what somebody remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import Protocol, runtime_checkable

from providers.base.errors import AlreadyExists, Conflict, Invalid, Unavailable, YunheError
from providers.base.streams import ABREAST, PART_BYTES, PartUpload, abort_quietly, pieces


class Progress(Protocol):
    """One object's upload as its owner keeps it."""

    @property
    def upload(self) -> str | None:
        """The one that was begun and is not over, as far as is known."""
        ...

    async def keep(self, upload: str | None) -> None:
        """From here on it is this one, durably; None: there is none any more."""
        ...

    async def pay(self, count: int) -> None:
        """A request with a body of so many bytes is about to be sent."""
        ...


@runtime_checkable
class ResumableStore(Protocol):
    """What an `ObjectStore` is besides whose uploads in parts can be gone on with."""

    @property
    def resumes_from(self) -> int:
        """Bytes above which an object is sent in parts, and `put_resumed` is worth its requests."""
        ...

    async def put_resumed(
        self, key: str, chunks: AsyncIterable[bytes], progress: Progress, *, if_absent: bool = False
    ) -> None:
        """As `put_stream`, of the bytes that an earlier call under the same key and `progress` may have begun to send.
        One that fails for now, or is cancelled, leaves its parts for the next; one that fails for good removes them.
        What nobody goes on with is for `collect_uploads`, or a rule of the bucket's.

        Raises:
            As `put_stream`, and what `progress` raises.
        """
        ...


class ResumableUpload(PartUpload, Protocol):
    """A `PartUpload` of a store that says what it has."""

    @property
    def name(self) -> str:
        """By which it is found again, once it is begun or gone on with."""
        ...

    async def resume(self, name: str) -> bool:
        """Go on with that one; False: it is not there, or cannot be looked at."""
        ...

    def passed(self, number: int, data: bytes) -> bool:
        """Whether part `number` is there with just these bytes, and is taken as sent."""
        ...


async def store_resumed(
    chunks: AsyncIterable[bytes],
    upload: ResumableUpload,
    progress: Progress,
    *,
    part_bytes: int = PART_BYTES,
    parts_max: int = 10_000,
    abreast: int = ABREAST,
) -> None:
    """Store `chunks` by an upload in parts, as `ResumableStore.put_resumed`. Raises as that."""
    sending: set[asyncio.Task[None]] = set()

    async def drain(until: str) -> None:
        done, _ = await asyncio.wait(sending, return_when=until)
        sending.difference_update(done)
        for task in done:
            task.result()

    known = progress.upload
    try:
        if known is None or not await upload.resume(known):
            await upload.begin()
            await progress.keep(upload.name)
        count = 0
        async with aclosing(pieces(chunks, part_bytes)) as cut:
            async for data in cut:
                count += 1
                if count > parts_max:
                    raise Invalid(f"the stream is longer than {parts_max} parts of {part_bytes} bytes")
                if upload.passed(count, data):
                    continue
                await progress.pay(len(data))
                sending.add(asyncio.create_task(upload.part(count, data)))
                await asyncio.sleep(0)  # it begins: parts are counted into the whole's checksum in their order
                if len(sending) >= abreast:
                    await drain(asyncio.FIRST_COMPLETED)
        if sending:
            await drain(asyncio.ALL_COMPLETED)
        await progress.pay(0)
        await upload.complete(count)
    except BaseException as error:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        if _for_good(error):
            await abort_quietly(upload)
            await progress.keep(None)
        raise


def _for_good(error: BaseException) -> bool:
    """Whether going on would fail the same way; of anything but our own errors that is not known."""
    if isinstance(error, AlreadyExists):
        return True
    return isinstance(error, YunheError) and not isinstance(error, Unavailable | Conflict)
