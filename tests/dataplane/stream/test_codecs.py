"""What is written comes back, other writers' forms are read, and what is damaged does no more than fail."""

from __future__ import annotations

import random
from collections.abc import Callable

import pyarrow as pa
import pytest

from dataplane.stream import codecs
from providers.base.errors import Corrupt
from tests.dataplane.stream.batches import LZ4, SNAPPY, ZSTD, keyed, packed, unpacked

PAIRS: dict[int, tuple[Callable[[bytes], bytes], Callable[[memoryview, int], memoryview | None]]] = {
    SNAPPY: (codecs.deflate_snappy, codecs.inflate_snappy),
    LZ4: (codecs.deflate_lz4, codecs.inflate_lz4),
    ZSTD: (codecs.deflate_zstd, codecs.inflate_zstd),
}
ROOM = 8 << 20
every_codec = pytest.mark.parametrize("codec", PAIRS)


def bodies() -> list[bytes]:
    rng = random.Random(1)
    sizes = (1, 17, 32 << 10, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 300_001)
    return [make(size) for size in sizes for make in (bytes, rng.randbytes)]


@every_codec
def test_what_is_written_comes_back(codec: int) -> None:
    deflate, inflate = PAIRS[codec]
    for body in bodies():
        found = inflate(memoryview(deflate(body)), ROOM)
        assert found is not None and bytes(found) == body


@every_codec
def test_other_writers_forms_are_read(codec: int) -> None:
    made = keyed((b"k", b"v" * 200_000), (b"l", random.Random(2).randbytes(100_000)))
    other = packed(made, codec)
    found = PAIRS[codec][1](memoryview(other)[61:], ROOM)
    assert found is not None and bytes(found) == made[61:]
    assert unpacked(other) == made


def test_an_lz4_frame_is_one_that_kafkas_reader_takes() -> None:
    frame = codecs.deflate_lz4(bytes(200_000))
    assert frame[:4] == b"\x04\x22\x4d\x18" and frame[4] & 0x20, "blocks are independent"
    assert not frame[4] & 0x1D, "no checksums, no size, no dictionary"
    assert frame[-4:] == bytes(4)
    # The library checks the header's checksum.
    assert pa.CompressedInputStream(pa.BufferReader(frame), "lz4").read() == bytes(200_000)
    with pytest.raises(Corrupt):
        codecs.inflate_lz4(memoryview(frame[:6] + b"\x83" + frame[7:]), ROOM)


@every_codec
def test_what_is_cut_anywhere_is_corrupt(codec: int) -> None:
    deflate, inflate = PAIRS[codec]
    body = random.Random(3).randbytes(40) * 30
    whole = deflate(body)
    for length in range(len(whole)):
        try:
            found = inflate(memoryview(whole)[:length], ROOM)
        except Corrupt:
            continue
        assert found is not None and body.startswith(bytes(found)), length
        assert codec == SNAPPY or bytes(found) == body, "only framing that says no end may be short"


@every_codec
def test_flipped_bits_are_corrupt_or_other_bytes_and_nothing_worse(codec: int) -> None:
    deflate, inflate = PAIRS[codec]
    whole = deflate(random.Random(4).randbytes(30) * 20)
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            try:
                found = inflate(memoryview(damaged), 1 << 20)
            except Corrupt:
                continue
            assert found is None or len(found) <= 1 << 20


@every_codec
def test_what_would_be_too_large_is_left_alone(codec: int) -> None:
    deflate, inflate = PAIRS[codec]
    bomb = memoryview(deflate(bytes(4 << 20)))
    assert inflate(bomb, (4 << 20) - 1) is None
    found = inflate(bomb, 4 << 20)
    assert found is not None and len(found) == 4 << 20
