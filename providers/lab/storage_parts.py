"""The parts that an object's file consists of (layout: `storage.py`): encoded, decoded, read with their checksums.

Functions of bytes and descriptors; what an object is, and when it may be seen, is the storage's business.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import crc32c
from fastcrc import crc64

from providers.base.errors import Corrupt

BLOCK_BYTES = 1 << 20
"""Each block of a payload has its own checksum, so that a range read checks just what it touches."""

KEY_BYTES_MAX = 1024
"""S3's, GCS's and OSS's limit on a key in UTF-8; Azure's is 1,024 characters."""

FILE_NAME_BYTES_MAX = 240
"""Longer names are replaced by a digest: file systems end at 255."""

HEAD = struct.Struct("<4sQIIIQ16sH")
U32 = struct.Struct("<I")
MAGIC = b"YHO1"


@dataclass(frozen=True, slots=True)
class Part:
    payload: int
    crc32: int
    crc32c: int
    crc64: int
    md5: bytes
    key: str
    sums: tuple[int, ...]
    head_bytes: int


def file_name(key: str) -> str:
    """The key's file name: readable where it fits, else a digest (the key itself is in the file). `%~` is no
    percent-escape, so the two never meet."""
    name = quote(key, safe="")
    if name in (".", ".."):
        return name.replace(".", "%2E")
    if len(name) <= FILE_NAME_BYTES_MAX:
        return name
    return "%~" + hashlib.sha256(key.encode()).hexdigest()


def encode(data: bytes, before: Part) -> bytes:
    """The head of a part that holds `data` and follows `before`, whose key is empty unless this is the first part."""
    view = memoryview(data)
    sums = [crc32c.crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)]
    key = before.key.encode() if before.head_bytes == 0 else b""
    head = HEAD.pack(
        MAGIC,
        len(data),
        len(sums),
        zlib.crc32(data, before.crc32),
        crc32c.crc32c(data, before.crc32c),
        crc64.xz(data, before.crc64),
        before.md5,
        len(key),
    )
    head += key + struct.pack(f"<{len(sums)}I", *sums)
    return head + U32.pack(crc32c.crc32c(head))


def decode(head: bytes, path: Path) -> Part:
    if len(head) < HEAD.size:
        raise Corrupt(f"{path} ends inside a header")
    magic, payload, blocks, crc_32, crc_32c, crc_64, md5, key_bytes = HEAD.unpack_from(head)
    if magic != MAGIC or key_bytes > KEY_BYTES_MAX or blocks != -(-payload // BLOCK_BYTES):
        raise Corrupt(f"{path} has a damaged header")
    sums_at = HEAD.size + key_bytes
    check_at = sums_at + U32.size * blocks
    if len(head) >= check_at + U32.size and U32.unpack_from(head, check_at)[0] != crc32c.crc32c(head[:check_at]):
        raise Corrupt(f"{path} has a header that fails its checksum")
    sums = struct.unpack_from(f"<{blocks}I", head, sums_at) if len(head) >= check_at else ()
    key = head[HEAD.size : sums_at].decode(errors="replace")
    return Part(payload, crc_32, crc_32c, crc_64, md5, key, sums, check_at + U32.size)


def read_head(descriptor: int, place: int, path: Path) -> Part:
    raw = os.pread(descriptor, HEAD.size + KEY_BYTES_MAX + 64 * U32.size, place)
    part = decode(raw, path)
    if part.head_bytes > len(raw):
        if part.head_bytes > os.fstat(descriptor).st_size:
            raise Corrupt(f"{path} ends inside a header")
        raw = os.pread(descriptor, part.head_bytes, place)
        if len(raw) < part.head_bytes:
            raise Corrupt(f"{path} ends inside a header")
        part = decode(raw, path)
    return part


def read_part(descriptor: int, place: int, part: Part, start: int, end: int, path: Path) -> bytes:
    """The payload's bytes [start, end), each touched block checked."""
    end = min(end, part.payload)
    first = start // BLOCK_BYTES
    aligned = first * BLOCK_BYTES
    upto = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, part.payload)
    raw = read_all(descriptor, place + part.head_bytes + aligned, upto - aligned)
    if len(raw) != upto - aligned:
        raise Corrupt(f"{path} is shorter than its header says")
    view = memoryview(raw)
    for index in range(first, -(-upto // BLOCK_BYTES)):
        at = (index - first) * BLOCK_BYTES
        if crc32c.crc32c(view[at : at + BLOCK_BYTES]) != part.sums[index]:
            raise Corrupt(f"{path} has a block that fails its checksum", block=index)
    return raw if (start, end) == (aligned, upto) else bytes(view[start - aligned : end - aligned])


def read_all(descriptor: int, place: int, length: int) -> bytes:
    chunks = []
    while length > 0:
        chunk = os.pread(descriptor, length, place)
        if not chunk:
            break
        chunks.append(chunk)
        place += len(chunk)
        length -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def write_all(descriptor: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        place += written
        view = view[written:]
