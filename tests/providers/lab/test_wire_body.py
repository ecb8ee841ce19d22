"""Framing of request bodies: what botocore and AWS's documentation send is taken off, wherever the pieces are cut."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum

from providers.lab.storage_files import BLOCK_BYTES, DataFiles
from providers.lab.storage_payload import Payload
from providers.lab.wire_body import Body, Chunks, Spooling
from providers.lab.wire_http import Malformed

MAX = 1 << 30


def receive(tmp_path: Path, framed: bytes, step: int, expected: int | None, *, outer: bool = False) -> Payload:
    """What a body holds when `framed` arrives in pieces of `step` bytes. `outer`: HTTP's own chunks are around it."""

    async def main() -> Payload:
        (tmp_path / "data").mkdir(exist_ok=True)
        with ThreadPoolExecutor(2) as threads:
            body = Body(Spooling(DataFiles(tmp_path / "data"), threads), expected, MAX, ())
            moved = asyncio.Event()
            body.moved = moved.set
            chunks = Chunks(body, signed=True, keeps_trailers=True)
            if outer:
                chunks = Chunks(chunks)
            at = 0
            while at < len(framed) and not chunks.over:
                moved.clear()
                taken = chunks.feed(memoryview(framed)[at : at + step])
                at += taken
                if taken == 0:
                    await asyncio.wait_for(moved.wait(), 10)
            assert at == len(framed) and chunks.over
            body.end()
            while body.payload is None:
                moved.clear()
                await asyncio.wait_for(moved.wait(), 10)
            return body.payload

    return asyncio.run(main())


def as_chunks(data: bytes, size: int) -> bytes:
    """HTTP's own chunked coding."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%X\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [0, 1, 70_000, BLOCK_BYTES, BLOCK_BYTES + 1, 5_000_000])
@pytest.mark.parametrize("step", [7, 1_009, 100_000])
@pytest.mark.parametrize("outer", [False, True])
def test_body_as_botocore_frames_it(size: int, step: int, outer: bool, tmp_path: Path) -> None:
    if size > 1_000_000 and step < 1_000:
        pytest.skip("the same with larger steps takes less time")
    data = os.urandom(size)
    wrapped = AwsChunkedWrapper(io.BytesIO(data), checksum_cls=Crc32Checksum, checksum_name="x-amz-checksum-crc32")
    framed = wrapped.read()
    payload = receive(tmp_path, as_chunks(framed, 4096) if outer else framed, step, size, outer=outer)
    assert payload.size == size and payload.crc32 == zlib.crc32(data)
    assert b"".join(payload.pieces()) == data
    sent = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert payload.trailers == {"x-amz-checksum-crc32": sent}


def test_signed_chunks_of_awss_own_example_are_told(tmp_path: Path) -> None:
    """Amazon S3 API reference, "Signature calculations: transferring a payload in multiple chunks", the example."""
    signatures = (
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    )
    pieces = (b"a" * 65_536, b"a" * 1_024, b"")
    framed = b"".join(
        b"%x;chunk-signature=%s\r\n%s\r\n" % (len(piece), signature.encode(), piece)
        for piece, signature in zip(pieces, signatures, strict=True)
    )
    payload = receive(tmp_path, framed, 500, 66_560)
    assert payload.read() == b"a" * 66_560
    assert [chunk.signature for chunk in payload.signed_chunks] == list(signatures)
    assert [chunk.sha256 for chunk in payload.signed_chunks] == [hashlib.sha256(piece).hexdigest() for piece in pieces]


@pytest.mark.parametrize(
    "framed",
    [
        b"5\r\nabcdefg\r\n0\r\n\r\n",
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"5 5\r\nabcde\r\n0\r\n\r\n",
        b"\r\n",
        b"5\nabcde\n0\n\n",
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"1\r\na\r\n0\r\nno trailer\r\n\r\n",
        b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 100 + b"\r\n",
        b"1;" + b"x" * 10_000,
    ],
)
def test_malformed_framing_is_refused(framed: bytes, tmp_path: Path) -> None:
    for step in (1, 3, 1_000):
        with pytest.raises((Malformed, AssertionError)) as caught:
            receive(tmp_path, framed, step, None)
        assert caught.type is Malformed, (framed, step)


def test_body_longer_or_shorter_than_its_head_says_is_refused(tmp_path: Path) -> None:
    for expected in (4, 6, BLOCK_BYTES + 5):
        with pytest.raises(Malformed):
            receive(tmp_path, b"5\r\nabcde\r\n0\r\n\r\n", 3, expected)
