"""Appends, over every store that has them: S3 Express, OSS and Azure's append blobs, and the refusal of all others."""

from __future__ import annotations

import asyncio

import pytest

from providers.base.errors import AlreadyExists, Conflict, Invalid, NotFound, OutcomeUnknown, WrongOffset
from providers.base.objects import ObjectStore
from tests.conformance.stores import Subject, changes_of


@pytest.mark.needs("appends")
def test_append_adds_at_exactly_the_end(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        key = prefix + "k"
        await store.create_appendable(key)
        await store.append(key, 0, b"0123")
        await store.append(key, 4, b"456")
        for wrong in (0, 4, 6, 8):
            with pytest.raises(WrongOffset):
                await store.append(key, wrong, b"no")
        await store.append(key, 7, b"789")
        assert await store.get(key) == b"0123456789"
        assert await store.get(key, start=3, length=5) == b"34567"
        assert (await store.head(key)).size == 10

    run(body)


@pytest.mark.needs("appends")
def test_append_never_creates(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for offset in (0, 5):
            with pytest.raises(NotFound):
                await store.append(prefix + "k", offset, b"x")
        with pytest.raises(NotFound):
            await store.get(prefix + "k")

    run(body)


@pytest.mark.needs("appends")
def test_of_concurrent_appends_at_one_offset_one_succeeds(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        key = prefix + "k"
        await store.create_appendable(key)
        await store.append(key, 0, b"head")
        results = await asyncio.gather(
            *(store.append(key, 4, f"{i}".encode() * 9) for i in range(8)), return_exceptions=True
        )
        winners = [i for i, result in enumerate(results) if result is None]
        assert len(winners) == 1
        assert all(result is None or isinstance(result, Conflict) for result in results)
        assert await store.get(key) == b"head" + f"{winners[0]}".encode() * 9

    run(body)


@pytest.mark.needs("no-appends")
def test_a_store_that_cannot_append_says_so(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"x")
        with pytest.raises(Invalid):
            await store.append(prefix + "k", 1, b"y")
        with pytest.raises(Invalid):
            await store.create_appendable(prefix + "new")
        assert await store.get(prefix + "k") == b"x"

    run(body)


@pytest.mark.needs("appends")
@pytest.mark.needs("faults")
def test_append_is_sent_once_when_its_answer_is_lost(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.create_appendable(prefix + "k")
        await store.append(prefix + "k", 0, b"head")
        if subject.server is not None:
            before = len(changes_of(subject, prefix))
        subject.lose_answers()
        with pytest.raises(OutcomeUnknown):
            await store.append(prefix + "k", 4, b"-tail")
        subject.heal()
        if subject.server is not None:
            assert len(changes_of(subject, prefix)) - before == 1
        assert await store.get(prefix + "k") == b"head-tail"

    run(body)


@pytest.mark.needs("appends")
def test_of_concurrent_first_appends_one_succeeds(run) -> None:
    """Who creates is not told apart on every cloud while the object is empty; who appends first is."""

    async def body(store: ObjectStore, prefix: str) -> None:
        key = prefix + "k"

        async def first(data: bytes) -> None:
            try:
                await store.create_appendable(key)
            except AlreadyExists:
                pass
            await store.append(key, 0, data)

        results = await asyncio.gather(*(first(f"{i}".encode() * 9) for i in range(8)), return_exceptions=True)
        winners = [i for i, result in enumerate(results) if result is None]
        assert len(winners) == 1, results
        assert all(result is None or isinstance(result, Conflict) for result in results), results
        assert await store.get(key) == f"{winners[0]}".encode() * 9

    run(body)


@pytest.mark.needs("appends")
def test_create_appendable_never_replaces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.create_appendable(prefix + "k")
        assert (await store.head(prefix + "k")).size == 0
        await store.append(prefix + "k", 0, b"first")
        await store.put(prefix + "other", b"whole", if_absent=True)
        for name, data in (("k", b"first"), ("other", b"whole")):
            with pytest.raises(AlreadyExists):
                await store.create_appendable(prefix + name)
            assert await store.get(prefix + name) == data

    run(body)


@pytest.mark.needs("express")
def test_express_appends_to_what_was_put(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"head", if_absent=True)
        await store.append(prefix + "k", 4, b"-tail")
        assert await store.get(prefix + "k") == b"head-tail"

    run(body)


@pytest.mark.needs("appends")
@pytest.mark.needs("no-express")
def test_an_object_that_was_put_takes_no_appends(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"head", if_absent=True)
        with pytest.raises(Invalid):
            await store.append(prefix + "k", 4, b"-tail")
        assert await store.get(prefix + "k") == b"head"

    run(body)
