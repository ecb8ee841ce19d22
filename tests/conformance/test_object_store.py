"""Every obligation of `providers.base.objects.ObjectStore`, over every implementation: in memory, and each cloud's real
SDK against the lab's server process."""

from __future__ import annotations

import asyncio
import os

import pytest

from providers.base.errors import (
    AlreadyExists,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from providers.base.objects import ObjectStore
from tests.conformance.stores import Subject, changes_of

# -- obligation 1, 4, 5: what was put is what is read, by anybody


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 1, 9 << 20])
def test_bytes_read_are_exactly_those_stored(run, size: int) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(size)
        await store.put(prefix + "k", data, if_absent=True)
        assert await store.get(prefix + "k") == data
        assert (await store.head(prefix + "k")).size == size

    run(body)


def test_put_without_condition_replaces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"a longer first one")
        await store.put(prefix + "k", b"second")
        assert await store.get(prefix + "k") == b"second"

    run(body)


def test_put_is_seen_by_others_at_once(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        other = subject.open()
        try:
            with pytest.raises(NotFound):
                await other.get(prefix + "k")
            await store.put(prefix + "k", b"x", if_absent=True)
            assert await other.get(prefix + "k") == b"x"
            assert (await other.head(prefix + "k")).size == 1
            assert [row.key for row in await other.list(prefix)] == [prefix + "k"]
        finally:
            await other.close()

    run(body)


def test_range_is_cut_at_the_end_and_empty_past_it(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom((1 << 20) + 100)
        await store.put(prefix + "k", data)
        for start, length in [(0, 1), (5, 10), ((1 << 20) - 3, 50), (len(data) - 4, 100), (7, None), (0, len(data))]:
            expected = data[start:] if length is None else data[start : start + length]
            assert await store.get(prefix + "k", start=start, length=length) == expected
        for start, length in [(len(data), None), (len(data), 5), (len(data) + 9, 5), (3, 0)]:
            assert await store.get(prefix + "k", start=start, length=length) == b""
        await store.put(prefix + "empty", b"")
        assert await store.get(prefix + "empty", start=0, length=10) == b""

    run(body)


def test_absent_object_is_not_found_whatever_is_asked(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for ask in (
            store.get(prefix + "no"),
            store.get(prefix + "no", start=5, length=5),
            store.get(prefix + "no", length=0),
            store.head(prefix + "no"),
        ):
            with pytest.raises(NotFound):
                await ask

    run(body)


def test_keys_with_unusual_characters_are_kept_apart(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        names = ["a b", "a+b", "a%20b", "a&b=c", "a?b", "a#b", "a'b", "a~b", "a(1)", "d/e", "d", "d:e,f;g@h", "x" * 300]
        for name in names:
            await store.put(prefix + name, name.encode(), if_absent=True)
        for name in names:
            assert await store.get(prefix + name) == name.encode()
        assert {row.key for row in await store.list(prefix)} == {prefix + name for name in names}

    run(body)


def test_bad_keys_are_refused(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for bad in ("", "/lead", "ü", "x" * 1025):
            with pytest.raises(Invalid):
                await store.put(bad, b"")
            with pytest.raises(Invalid):
                await store.get(bad)

    run(body)


# -- obligation 2: create-if-absent


def test_create_if_absent_never_replaces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"first", if_absent=True)
        with pytest.raises(AlreadyExists):
            await store.put(prefix + "k", b"second", if_absent=True)
        assert await store.get(prefix + "k") == b"first"
        await store.delete([prefix + "k"])
        await store.put(prefix + "k", b"third", if_absent=True)
        assert await store.get(prefix + "k") == b"third"

    run(body)


def test_of_concurrent_creators_exactly_one_succeeds_and_its_bytes_stay(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for round_ in range(5):
            key = f"{prefix}{round_}"
            results = await asyncio.gather(
                *(store.put(key, f"writer {i}".encode() * 500, if_absent=True) for i in range(8)),
                return_exceptions=True,
            )
            winners = [i for i, result in enumerate(results) if result is None]
            assert len(winners) == 1, results
            assert all(result is None or isinstance(result, AlreadyExists) for result in results), results
            assert await store.get(key) == f"writer {winners[0]}".encode() * 500

    run(body)


# -- obligation 3: no silent retry


@pytest.mark.needs("faults")
def test_lost_answer_of_a_create_is_unknown_and_read_back_shows_it(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "before", b"")  # signed in: what comes next is the request itself
        subject.lose_answers()
        with pytest.raises(OutcomeUnknown):
            await store.put(prefix + "k", b"mine", if_absent=True)
        subject.heal()
        assert await store.get(prefix + "k") == b"mine"

    run(body)


@pytest.mark.parametrize(
    "fault",
    [
        {"drop_answer": True},
        {"unavailable": True},
        {"error_status": 500, "error_code": "InternalError"},
        {"error_status": 503, "error_code": "SlowDown"},
        {"error_status": 429, "error_code": "rateLimitExceeded"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
@pytest.mark.needs("server")
def test_conditional_put_is_sent_once_whatever_happens(subject: Subject, run, fault: dict[str, object]) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        assert subject.server is not None
        await store.put(prefix + "before", b"")  # signed in: what comes next is the request itself
        before = len(changes_of(subject, prefix))
        subject.server.set_faults(fault)
        with pytest.raises(OutcomeUnknown):
            await store.put(prefix + "k", b"x", if_absent=True)
        subject.heal()
        sent = len(changes_of(subject, prefix)) - before
        assert sent == 1

    run(body)


@pytest.mark.needs("server")
def test_reads_are_repeated_and_bounded(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        assert subject.server is not None
        await store.put(prefix + "k", b"x")
        subject.server.set_faults({"method": "GET", "unavailable": True, "times": 1})
        assert await store.get(prefix + "k") == b"x"
        subject.server.set_faults({"method": "GET", "error_status": 503, "error_code": "ServerBusy"})
        with pytest.raises(Unavailable):
            await store.get(prefix + "k")
        asked = [row for row in subject.server.requests() if row[0] == "GET" and row[2] == 503]
        assert len(asked) == 3  # once, and retry_max repeats

    run(body)


@pytest.mark.needs("server")
def test_a_server_that_is_not_there_is_unavailable_and_nothing_was_changed(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        assert subject.server is not None
        await store.put(prefix + "before", b"x")
        assert subject.server.stop() == 0
        try:
            with pytest.raises(Unavailable):
                await store.put(prefix + "k", b"x", if_absent=True)
            with pytest.raises(Unavailable):
                await store.get(prefix + "before")
        finally:
            subject.server.start()
        assert await store.get(prefix + "before") == b"x"
        with pytest.raises(NotFound):
            await store.get(prefix + "k")

    run(body)


# -- obligation 7: listing


def test_list_is_complete_and_in_order(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        names = [f"{prefix}l/{i:04}" for i in range(25)]
        await asyncio.gather(*(store.put(name, b"x" * i) for i, name in enumerate(names)))
        await store.put(prefix + "m", b"")
        listed = await store.list(prefix + "l/")
        assert sorted((row.key, row.size) for row in listed) == [(name, i) for i, name in enumerate(names)]
        if not subject.kind.express:
            assert [row.key for row in listed] == names
            assert [row.key for row in await store.list(prefix + "l/00")] == names
            assert [row.key for row in await store.list(prefix + "l/0005")] == names[5:6]
        assert await store.list(prefix + "nothing/") == []

    run(body)


def test_list_pages_without_gap_or_repeat(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        names = [f"{prefix}{i:04}" for i in range(23)]
        await asyncio.gather(*(store.put(name, b"") for name in names))
        walked: list[str] = []
        while True:
            page = await store.list(prefix, start_after=walked[-1] if walked else "", limit=5)
            walked.extend(row.key for row in page)
            if len(page) < 5:
                break
        assert sorted(walked) == names
        if not subject.kind.express:
            after = await store.list(prefix, start_after=f"{prefix}0019x", limit=2)
            assert [row.key for row in after] == names[20:22]

    run(body)


@pytest.mark.needs("express")
def test_express_lists_only_whole_folders(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        with pytest.raises(Invalid):
            await store.list(prefix + "half")

    run(body)


# -- delete


def test_delete_removes_those_named_and_passes_over_the_absent(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for name in "abc":
            await store.put(prefix + name, b"x")
        await store.delete([prefix + "a", prefix + "never", prefix + "c"])
        assert [row.key for row in await store.list(prefix)] == [prefix + "b"]
        await store.delete([prefix + "a"])
        await store.delete([])
        with pytest.raises(NotFound):
            await store.get(prefix + "a")

    run(body)


# -- opening and closing


def test_a_closed_store_refuses(subject: Subject) -> None:
    async def main() -> None:
        store = subject.open()
        await store.close()
        with pytest.raises(Invalid):
            await store.get("k")

    asyncio.run(main())
