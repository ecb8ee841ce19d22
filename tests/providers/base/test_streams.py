"""Streams cut into parts and fetched in ranges: no byte is lost, moved or held for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.base.errors import Invalid, OutcomeUnknown, Unavailable
from providers.base.streams import fetch_stream, pieces, store_stream


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Upload:
    """`PartUpload` that remembers."""

    def __init__(self, fail_at: str = "", error: Exception | None = None) -> None:
        self.fail_at = fail_at
        self.error = error or Unavailable("no")
        self.events: list[str] = []
        self.stored: dict[int, bytes] = {}
        self.under_way = self.most_under_way = 0

    def _step(self, event: str) -> None:
        self.events.append(event)
        if event == self.fail_at:
            raise self.error

    async def begin(self) -> None:
        self._step("begin")

    async def part(self, number: int, data: bytes) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self._step(f"part {number}")
        self.stored[number] = data

    async def complete(self, count: int) -> None:
        self._step("complete")
        assert set(self.stored) == set(range(1, count + 1))

    async def abort(self) -> None:
        self._step("abort")


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20))
def test_pieces_are_the_same_bytes_and_full_but_for_the_last(chunks: list[bytes], size: int) -> None:
    async def main() -> list[bytes]:
        return [piece async for piece in pieces(of(*chunks), size)]

    cut = asyncio.run(main())
    assert b"".join(cut) == b"".join(chunks)
    assert all(len(piece) == size for piece in cut[:-1])
    assert all(0 < len(piece) <= size for piece in cut[-1:])


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(1, 4))
def test_short_streams_are_put_and_long_ones_go_in_parts(data: bytes, part_bytes: int, abreast: int) -> None:
    upload, put = Upload(), []

    async def single(piece: bytes) -> None:
        put.append(piece)

    async def main() -> None:
        chunks = of(*(data[at : at + 7] for at in range(0, len(data), 7)))
        await store_stream(chunks, single, lambda: upload, part_bytes=part_bytes, parts_max=1_000, abreast=abreast)

    asyncio.run(main())
    if len(data) <= part_bytes:
        assert (put, upload.events) == ([data], [])
    else:
        assert put == []
        assert b"".join(upload.stored[number] for number in sorted(upload.stored)) == data
        assert upload.events[0] == "begin" and upload.events[-1] == "complete"
        assert upload.most_under_way <= abreast


@pytest.mark.parametrize("fail_at", ["begin", "part 2", "complete"])
def test_failed_uploads_are_aborted(fail_at: str) -> None:
    upload = Upload(fail_at)

    async def main() -> None:
        async def single(_: bytes) -> None:
            raise AssertionError

        await store_stream(of(b"x" * 50), single, lambda: upload, part_bytes=10)

    with pytest.raises(Unavailable):
        asyncio.run(main())
    assert upload.events[-1] == "abort"
    assert "complete" not in upload.events or fail_at == "complete"


def test_a_completion_without_answer_keeps_its_parts() -> None:
    upload = Upload("complete", OutcomeUnknown("lost"))

    async def main() -> None:
        async def single(_: bytes) -> None:
            raise AssertionError

        await store_stream(of(b"x" * 50), single, lambda: upload, part_bytes=10)

    with pytest.raises(OutcomeUnknown):
        asyncio.run(main())
    assert "abort" not in upload.events


def test_streams_that_are_too_long_are_refused() -> None:
    upload = Upload()

    async def main() -> None:
        async def single(_: bytes) -> None:
            raise AssertionError

        await store_stream(of(b"x" * 50), single, lambda: upload, part_bytes=10, parts_max=4)

    with pytest.raises(Invalid):
        asyncio.run(main())
    assert upload.events[-1] == "abort"


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 30), st.integers(1, 5))
def test_fetched_ranges_come_in_order_and_few_ahead(start: int, length: int, piece: int, abreast: int) -> None:
    data = bytes(range(200))
    under_way = most = 0

    async def fetch(at: int, size: int) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(at % 3):
            await asyncio.sleep(0)
        under_way -= 1
        return data[at : at + size]

    async def main() -> bytes:
        stream = fetch_stream(fetch, start, start + length, piece_bytes=piece, abreast=abreast)
        return b"".join([found async for found in stream])

    assert asyncio.run(main()) == data[start : start + length]
    assert most <= abreast


def test_a_short_answer_is_an_error_and_never_a_shorter_stream() -> None:
    async def fetch(at: int, size: int) -> bytes:
        return bytes(size if at == 0 else size - 1)

    async def main() -> None:
        async for _ in fetch_stream(fetch, 0, 20, piece_bytes=10):
            pass

    with pytest.raises(Unavailable):
        asyncio.run(main())
