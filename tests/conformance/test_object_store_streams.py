"""Streams and copies, over every store: what `providers.base.objects.ObjectStore` promises by its numbers 8 and 9."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict

import pytest

from providers.base.errors import AlreadyExists, Conflict, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.base.streams import PART_BYTES
from tests.conformance.stores import Subject, changes_of

CHUNK_BYTES = 1_000_003
"""Chunks meet parts' bounds nowhere."""

LONG_BYTES = 2 * PART_BYTES + 12_345
"""Three parts, for every adapter."""

DAY_MS = 86_400_000


async def chunks_of(data: bytes, size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


async def reached(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Return when `event` is set; raise what `task` raises if it ends before."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    assert event.is_set()


# -- writing


@pytest.mark.parametrize("size", [0, 1, 4096, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, LONG_BYTES])
def test_stream_of_any_length_is_stored_whole(run, size: int) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(size)
        await store.put_stream(prefix + "k", chunks_of(data))
        assert (await store.head(prefix + "k")).size == size
        assert await store.get(prefix + "k") == data
        if size:
            assert await store.get(prefix + "k", start=size // 2, length=1000) == data[size // 2 : size // 2 + 1000]

    run(body)


def test_stream_shows_nothing_before_its_end(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(LONG_BYTES)

        async def watched() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(data):
                yield chunk
            with pytest.raises(NotFound):
                await store.get(prefix + "k")
            assert await store.list(prefix) == []

        await store.put_stream(prefix + "k", watched(), if_absent=True)
        assert hashlib.sha256(await store.get(prefix + "k")).digest() == hashlib.sha256(data).digest()

    run(body)


@pytest.mark.parametrize("size", [1000, LONG_BYTES])
def test_stream_that_fails_leaves_nothing(run, size: int) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        async def failing() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(bytes(size)):
                yield chunk
            raise LookupError("the source has failed")

        with pytest.raises(LookupError):
            await store.put_stream(prefix + "k", failing())
        with pytest.raises(NotFound):
            await store.get(prefix + "k")
        assert await store.list(prefix) == []
        assert await store.collect_uploads(prefix, 0) == 0

    run(body)


def test_stream_that_is_cancelled_leaves_nothing(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        stuck = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(bytes(LONG_BYTES)):
                yield chunk
            stuck.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put_stream(prefix + "k", endless()))
        await reached(stuck, task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(NotFound):
            await store.get(prefix + "k")
        assert await store.list(prefix) == []
        # A part that was on its way when the upload was aborted may keep it alive for a moment.
        assert await store.collect_uploads(prefix, 0) <= 1
        assert await store.collect_uploads(prefix, 0) == 0

    run(body)


@pytest.mark.parametrize("size", [1000, LONG_BYTES])
def test_stream_create_if_absent_never_replaces(run, size: int) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(size)
        await store.put_stream(prefix + "k", chunks_of(data), if_absent=True)
        with pytest.raises(AlreadyExists):
            await store.put_stream(prefix + "k", chunks_of(bytes(size)), if_absent=True)
        with pytest.raises(AlreadyExists):
            await store.put(prefix + "k", b"short", if_absent=True)
        assert await store.get(prefix + "k") == data
        assert await store.collect_uploads(prefix, 0) == 0

    run(body)


def test_of_concurrent_stream_creators_exactly_one_succeeds(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        bodies = [bytes([i]) * (PART_BYTES + 1) for i in range(4)]
        results = await asyncio.gather(
            *(store.put_stream(prefix + "k", chunks_of(data), if_absent=True) for data in bodies),
            return_exceptions=True,
        )
        winners = [i for i, result in enumerate(results) if result is None]
        assert len(winners) == 1, results
        assert all(result is None or isinstance(result, AlreadyExists) for result in results), results
        assert await store.get(prefix + "k") == bodies[winners[0]]

    run(body)


def test_stream_without_condition_replaces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"before")
        data = os.urandom(LONG_BYTES)
        await store.put_stream(prefix + "k", chunks_of(data))
        assert await store.get(prefix + "k") == data
        await store.put(prefix + "k", b"after")
        assert await store.get(prefix + "k") == b"after"

    run(body)


@pytest.mark.needs("faults")
def test_lost_answer_of_a_stream_is_unknown_and_read_back_shows_it(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        # Whole parts, so that none is left to be sent when the stream ends. In memory every answer is lost from then
        # on, that of a part under way too: there the stream is one request.
        data = os.urandom(3 * PART_BYTES if subject.server is not None else 1_000)

        async def lost_at_the_end() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(data, PART_BYTES):
                yield chunk
            if subject.server is None:
                subject.lose_answers()
            else:
                # Of each cloud the request that makes the object visible: S3's and OSS's completion, Azure's block
                # list, the last chunk to GCS's session.
                ends = (("POST", "uploadId="), ("PUT", "comp=blocklist"), ("PUT", "upload_id="))
                subject.server.set_faults(
                    *({"method": method, "contains": end, "drop_answer": True} for method, end in ends)
                )

        with pytest.raises(OutcomeUnknown):
            await store.put_stream(prefix + "k", lost_at_the_end(), if_absent=True)
        subject.heal()
        assert await store.get(prefix + "k") == data

    run(body)


@pytest.mark.needs("server")
def test_stream_is_stored_though_parts_meet_passing_failures(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        assert subject.server is not None
        data = os.urandom(LONG_BYTES)

        async def troubled() -> AsyncIterator[bytes]:
            for i, at in enumerate(range(0, len(data), PART_BYTES)):
                if i == 1:
                    # The first part is on its way or about to be: one answer of the server is an error.
                    subject.server.set_faults({"error_status": 503, "error_code": "SlowDown", "times": 1})
                yield data[at : at + PART_BYTES]

        await store.put_stream(prefix + "k", troubled())
        assert await store.get(prefix + "k") == data

    run(body)


# -- reading


def test_streamed_read_gives_exactly_the_range(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(LONG_BYTES)
        await store.put(prefix + "k", data)
        await store.put(prefix + "empty", b"")
        size = len(data)
        for start, length in [(0, None), (5, None), (PART_BYTES - 1, PART_BYTES + 2), (size - 3, 100), (0, 1)]:
            expected = data[start:] if length is None else data[start : start + length]
            assert await joined(store.get_stream(prefix + "k", start=start, length=length)) == expected
        for start, length in [(size, None), (size + 9, 5), (3, 0)]:
            assert await joined(store.get_stream(prefix + "k", start=start, length=length)) == b""
        assert await joined(store.get_stream(prefix + "empty")) == b""

    run(body)


def test_streamed_read_comes_in_pieces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", bytes(LONG_BYTES))
        sizes = [len(piece) async for piece in store.get_stream(prefix + "k")]
        assert sum(sizes) == LONG_BYTES
        assert max(sizes) <= PART_BYTES

    run(body)


def test_streamed_read_of_an_absent_object_is_not_found(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        for start, length in [(0, None), (5, 5), (0, 0)]:
            with pytest.raises(NotFound):
                await joined(store.get_stream(prefix + "no", start=start, length=length))

    run(body)


def test_streamed_read_is_of_one_version(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        # Long enough that no reader has fetched all of it ahead.
        old = bytes(8 * PART_BYTES)
        await store.put_stream(prefix + "k", chunks_of(old, PART_BYTES))
        got = b""
        async with aclosing(store.get_stream(prefix + "k")) as stream:
            got += await anext(stream)
            await store.put_stream(prefix + "k", chunks_of(b"\x01" * len(old), PART_BYTES))
            with pytest.raises(Conflict):
                async for piece in stream:
                    got += piece
        assert got == old[: len(got)]

    run(body)


def test_streamed_read_is_closed_early_without_harm(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(LONG_BYTES)
        await store.put(prefix + "k", data)
        for _ in range(3):
            async with aclosing(store.get_stream(prefix + "k")) as stream:
                first = await anext(stream)
                assert first == data[: len(first)]
        assert await joined(store.get_stream(prefix + "k")) == data

    run(body)


# -- copying


@pytest.mark.parametrize("size", [0, 4096, LONG_BYTES])
def test_copy_gives_the_same_bytes_under_another_key(run, size: int) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        data = os.urandom(size)
        await store.put_stream(prefix + "from a+b", chunks_of(data))
        await store.copy(prefix + "from a+b", prefix + "to")
        assert await store.get(prefix + "to") == data
        await store.delete([prefix + "from a+b"])
        assert await store.get(prefix + "to") == data
        await store.put(prefix + "other", b"other")
        await store.copy(prefix + "other", prefix + "to")
        assert await store.get(prefix + "to") == b"other"

    run(body)


def test_copy_of_an_absent_object_is_not_found(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        with pytest.raises(NotFound):
            await store.copy(prefix + "no", prefix + "to")
        with pytest.raises(NotFound):
            await store.copy(prefix + "no", prefix + "to", if_absent=True)
        assert await store.list(prefix) == []

    run(body)


def test_copy_if_absent_never_replaces(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "from", b"new")
        await store.copy(prefix + "from", prefix + "to", if_absent=True)
        await store.put(prefix + "from", b"newer")
        with pytest.raises(AlreadyExists):
            await store.copy(prefix + "from", prefix + "to", if_absent=True)
        assert await store.get(prefix + "to") == b"new"

    run(body)


@pytest.mark.needs("server")
def test_lost_answer_of_a_conditional_copy_is_never_sent_again(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        assert subject.server is not None
        await store.put(prefix + "from", b"x")
        before = len(changes_of(subject, prefix))
        subject.server.set_faults({"method": "PUT", "drop_answer": True}, {"method": "POST", "drop_answer": True})
        with pytest.raises(Unavailable) as caught:
            await store.copy(prefix + "from", prefix + "to", if_absent=True)
        subject.heal()
        if isinstance(caught.value, OutcomeUnknown):
            assert len(changes_of(subject, prefix)) - before == 1
            assert await store.get(prefix + "to") == b"x"
        else:
            # A copy that takes several requests has lost its first one, which makes nothing: nothing was changed.
            with pytest.raises(NotFound):
                await store.get(prefix + "to")

    run(body)


# -- what a killed process leaves


def start_victim(subject: Subject, key: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.conformance.stream_victim", json.dumps(asdict(subject.address)), key]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def test_collecting_finds_nothing_where_streams_ended(run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put_stream(prefix + "k", chunks_of(bytes(LONG_BYTES)))
        assert await store.collect_uploads(prefix, 0) == 0
        assert (await store.head(prefix + "k")).size == LONG_BYTES

    run(body)


async def kill_in_a_stream(subject: Subject, key: str) -> None:
    victim = start_victim(subject, key)
    try:
        assert victim.stdout is not None
        assert await asyncio.to_thread(victim.stdout.readline) == b"parts are sent\n"
    finally:
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        if victim.stdout is not None:
            victim.stdout.close()


@pytest.mark.needs("wire")
def test_process_killed_in_a_stream_leaves_nothing_visible(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "bystander", b"x")
        await kill_in_a_stream(subject, prefix + "k")
        with pytest.raises(NotFound):
            await store.get(prefix + "k")
        with pytest.raises(NotFound):
            await store.head(prefix + "k")
        assert [row.key for row in await store.list(prefix)] == [prefix + "bystander"]
        await store.collect_uploads(prefix, 0)
        assert [row.key for row in await store.list(prefix)] == [prefix + "bystander"]
        await store.put_stream(prefix + "k", chunks_of(b"again" * 1000), if_absent=True)
        assert await store.get(prefix + "k") == b"again" * 1000

    run(body)


@pytest.mark.needs("wire")
def test_parts_of_a_killed_process_are_collected(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        await store.put(prefix + "k", b"before")
        await kill_in_a_stream(subject, prefix + "k")
        assert await store.collect_uploads(prefix, DAY_MS) == 0
        assert await store.collect_uploads(prefix + "elsewhere/", 0) == 0
        assert await store.collect_uploads(prefix, 0) == 1
        assert await store.collect_uploads(prefix, 0) == 0
        assert await store.get(prefix + "k") == b"before"

    run(body)


@pytest.mark.needs("no-wire")
def test_upload_left_over_is_collected_by_age(subject: Subject, run) -> None:
    async def body(store: ObjectStore, prefix: str) -> None:
        sent = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            async for chunk in chunks_of(bytes(LONG_BYTES)):
                yield chunk
            sent.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.put_stream(prefix + "k", endless()))
        await reached(sent, task)
        assert await store.list(prefix) == []
        assert await store.collect_uploads(prefix, DAY_MS) == 0
        assert await store.collect_uploads(prefix, 0) == 1
        task.cancel()
        with pytest.raises((asyncio.CancelledError, YunheError)):
            await task
        assert subject.bucket.uploads == {}

    run(body)
