"""Uploads that are gone on with, over every store that can: what `providers.base.resumed.ResumableStore` promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from providers.base.errors import AlreadyExists, Corrupt, NotFound, Unavailable
from providers.base.objects import ObjectStore
from providers.base.resumed import ResumableStore


class Kept:
    """A `Progress` in memory that remembers what was sent."""

    def __init__(self, upload: str | None = None) -> None:
        self.upload = upload
        self.sent: list[int] = []

    async def keep(self, upload: str | None) -> None:
        self.upload = upload

    async def pay(self, count: int) -> None:
        if count:
            self.sent.append(count)


class Asking(Kept):
    """Sends nothing."""

    async def pay(self, count: int) -> None:
        if count:
            raise Unavailable("a part is missing")


async def part_of(data: bytes, end: int, then: Exception | None = None) -> AsyncIterator[bytes]:
    for at in range(0, end, 500_000):
        yield data[at : min(at + 500_000, end)]
    if then is not None:
        raise then


async def interrupted(store: ResumableStore, key: str, data: bytes, end: int, kept: Kept, why: Exception) -> None:
    """Send the first `end` bytes, and fail once the store has all of them."""

    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in part_of(data, end):
            yield chunk
        for _ in range(50):
            try:
                await store.put_resumed(key, part_of(data, end, Unavailable("all are there")), Asking(kept.upload))
            except Unavailable as error:
                if "all are there" in str(error):
                    break
            await asyncio.sleep(0.1)
        raise why

    with pytest.raises(type(why)):
        await store.put_resumed(key, chunks(), kept, if_absent=True)


def test_of_an_upload_that_was_interrupted_only_the_rest_is_sent(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        if not isinstance(store, ResumableStore):
            pytest.skip("this store's uploads begin anew")
        key, part = prefix + "k", store.resumes_from
        data = os.urandom(2 * part + 77)
        kept = Kept()
        await interrupted(store, key, data, 2 * part, kept, Unavailable("the link"))
        assert kept.upload is not None and kept.sent == [part, part]
        with pytest.raises(NotFound):
            await store.get(key)
        # Other bytes than those that are there are sent, whatever anybody remembers.
        other = bytes(part) + data[part:]
        again = Kept(kept.upload)
        await interrupted(store, key, other, 2 * part, again, Unavailable("the link"))
        assert again.sent == [part]
        last = Kept(kept.upload)
        await store.put_resumed(key, part_of(other, len(other)), last, if_absent=True)
        assert last.sent == [77] and last.upload == kept.upload
        assert await store.get(key) == other
        taken = Kept(kept.upload)  # it is over: another is begun, and finds the name taken
        with pytest.raises(AlreadyExists):
            await store.put_resumed(key, part_of(data, len(data)), taken, if_absent=True)
        assert taken.sent == [part, part, 77] and taken.upload is None
        assert await store.get(key) == other and await store.collect_uploads(prefix, 0) == 0

    run(body)


def test_an_upload_that_fails_for_good_is_removed_and_one_that_is_gone_begins_anew(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        if not isinstance(store, ResumableStore):
            pytest.skip("this store's uploads begin anew")
        key, part = prefix + "k", store.resumes_from
        data = os.urandom(part + 5)
        kept = Kept()
        await interrupted(store, key, data, part, kept, Corrupt("the flash"))
        assert kept.upload is None and await store.collect_uploads(prefix, 0) == 0
        await interrupted(store, key, data, part, kept, Unavailable("the link"))
        assert kept.upload is not None and await store.collect_uploads(prefix, 0) == 1
        again = Kept(kept.upload)
        await store.put_resumed(key, part_of(data, len(data)), again)
        assert again.sent == [part, 5] and await store.get(key) == data

    run(body)
