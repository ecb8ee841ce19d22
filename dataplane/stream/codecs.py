"""Kafka's codecs that the standard library lacks: lz4, snappy and zstd, by pyarrow, which is loaded when the first such
batch is looked into and not before: it costs a broker 50 MB.

What is written is what Kafka's own producer writes, for its readers take nothing else: an LZ4 frame of independent
blocks without checksums, snappy in xerial's framing, a plain zstd frame.
"""

from __future__ import annotations

import asyncio
import importlib
import struct
import sys
from typing import Any

from providers.base.errors import Corrupt

PIECE_BYTES = 1 << 20
"""What is inflated at once: a bomb is noticed before it is in memory."""

_XERIAL = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_XERIAL_MAGIC_BYTES = 8
_XERIAL_BLOCK_BYTES = 32 << 10
_LZ4_HEADER = bytes.fromhex("04224d18 60 40 82")
"""Magic, version 1 with independent blocks, blocks of 64 KiB at most, checksum of these two bytes."""
_LZ4_BLOCK_BYTES = 64 << 10
_LZ4_STORED = 1 << 31
_UINT32, _INT32 = struct.Struct("<I"), struct.Struct(">i")


async def load() -> None:
    """Make the codecs ready. The first time takes a second of a thread's."""
    if "pyarrow" not in sys.modules:
        await asyncio.to_thread(importlib.import_module, "pyarrow")


def _arrow() -> Any:
    return importlib.import_module("pyarrow")


def inflate_lz4(body: memoryview, bytes_max: int) -> memoryview | None:
    """As `inflate_zstd`, of an LZ4 frame."""
    return _inflate_stream("lz4", body, bytes_max)


def inflate_zstd(body: memoryview, bytes_max: int) -> memoryview | None:
    """What was compressed; None when it is more than `bytes_max`.

    Raises:
        Corrupt: it cannot be inflated.
    """
    return _inflate_stream("zstd", body, bytes_max)


def _inflate_stream(codec: str, body: memoryview, bytes_max: int) -> memoryview | None:
    arrow = _arrow()
    pieces: list[bytes] = []
    held = 0
    try:
        stream = arrow.CompressedInputStream(arrow.BufferReader(body), codec)
        while piece := stream.read(PIECE_BYTES):
            held += len(piece)
            if held > bytes_max:
                return None
            pieces.append(piece)
    except (OSError, ValueError) as error:
        raise Corrupt(f"a batch cannot be inflated: {error}") from error
    if not pieces:
        raise Corrupt("a batch's compressed records are cut short")
    return memoryview(b"".join(pieces))


def inflate_snappy(body: memoryview, bytes_max: int) -> memoryview | None:
    """As `inflate_zstd`, of xerial's framing or of one raw block: librdkafka sends those."""
    if bytes(body[:_XERIAL_MAGIC_BYTES]) != _XERIAL[:_XERIAL_MAGIC_BYTES]:
        raw = _unsnap(body, bytes_max)
        return memoryview(raw) if raw is not None else None
    pieces: list[bytes] = []
    at = len(_XERIAL)
    while at < len(body):
        if at + _INT32.size > len(body):
            raise Corrupt("a batch's compressed records are cut short")
        [size] = _INT32.unpack_from(body, at)
        at += _INT32.size
        if not 0 < size <= len(body) - at:
            raise Corrupt("a batch's compressed records are cut short")
        raw = _unsnap(body[at : at + size], bytes_max)
        if raw is None:
            return None
        bytes_max -= len(raw)
        pieces.append(raw)
        at += size
    return memoryview(b"".join(pieces))


def _unsnap(block: memoryview, bytes_max: int) -> bytes | None:
    # A block begins with its size as an unsigned varint of 32 bits.
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
    else:
        raise Corrupt("a batch's compressed records are cut short")
    if size > bytes_max:
        return None
    try:
        raw: bytes = _arrow().Codec("snappy").decompress(block, decompressed_size=size, asbytes=True)
    except (OSError, ValueError) as error:
        raise Corrupt(f"a batch cannot be inflated: {error}") from error
    return raw


def deflate_zstd(body: bytes) -> bytes:
    """One frame."""
    return _deflate("zstd", body)


def deflate_snappy(body: bytes) -> bytes:
    """In xerial's framing."""
    parts = [_XERIAL]
    for at in range(0, len(body), _XERIAL_BLOCK_BYTES):
        block = _deflate("snappy", body[at : at + _XERIAL_BLOCK_BYTES])
        parts += [_INT32.pack(len(block)), block]
    return b"".join(parts)


def deflate_lz4(body: bytes) -> bytes:
    """One frame. By hand: the library's frames have blocks that depend on each other, which Kafka's reader refuses."""
    parts = [_LZ4_HEADER]
    for at in range(0, len(body), _LZ4_BLOCK_BYTES):
        block = body[at : at + _LZ4_BLOCK_BYTES]
        packed = _deflate("lz4_raw", block)
        if len(packed) < len(block):
            parts += [_UINT32.pack(len(packed)), packed]
        else:
            parts += [_UINT32.pack(len(block) | _LZ4_STORED), block]
    return b"".join([*parts, _UINT32.pack(0)])


def _deflate(codec: str, body: bytes) -> bytes:
    packed: bytes = _arrow().Codec(codec).compress(body, asbytes=True)
    return packed
