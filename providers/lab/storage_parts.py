"""What an object is made of, as the index and the log's records hold it, and its bytes as a reader gets them: each
block checked before it is handed out."""

from __future__ import annotations

import base64
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import crc32c

from providers.base.errors import Corrupt
from providers.lab.storage_crc import Sums
from providers.lab.storage_files import BLOCK_BYTES, Extent
from providers.lab.storage_log import File

KEY_BYTES_MAX = 1024
"""S3's, GCS's and OSS's limit on a key in UTF-8; Azure's is 1,024 characters."""

PIECE_BYTES = 1 << 20
"""A reader gets pieces of up to so many bytes."""

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of an object without reading its bytes. Checksums cover the whole object; `etag` changes with every
    write."""

    size: int
    etag: str
    crc32: int
    crc32c: int
    crc64: int
    modified_ms: int
    md5: bytes | None = None
    """Of an object put in one piece, where it was small or somebody asked for it. None otherwise, and then `etag` is no
    MD5, which its dash tells, as in S3."""
    appendable: bool = False
    parts: int = 1
    """Pieces that it was put together from: the parts of its upload, or its put and its appends."""
    generation: int = 0
    """Grows with every write of the storage."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What the dialect put beside the bytes (content type, user metadata); of no meaning to the storage."""

    @staticmethod
    def of(
        size: int,
        sums: Sums,
        modified_ms: int,
        generation: int,
        *,
        md5: bytes | None = None,
        appendable: bool = False,
        parts: int = 1,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
    ) -> Meta:
        etag = f"{generation:016x}{sums.crc64:016x}-{parts}" if md5 is None else md5.hex()
        return Meta(
            size, etag, sums.crc32, sums.crc32c, sums.crc64, modified_ms, md5, appendable, parts, generation, attributes
        )

    @property
    def sums(self) -> Sums:
        return Sums(self.crc32, self.crc32c, self.crc64)

    def appended(self, size: int, sums: Sums, modified_ms: int, generation: int) -> Meta:
        """Of the object with `size` bytes more, whose checksums are `sums`."""
        joined = self.sums.join(sums, size)
        parts = self.parts + 1
        return replace(
            Meta.of(self.size + size, joined, modified_ms, generation, parts=parts, attributes=self.attributes),
            appendable=self.appendable,
        )


@dataclass(slots=True)
class Stored:
    """An object or a part in the index. `starts`: the object's offset at which each extent begins. `home`: the log
    segment of the newest record that says all of it, or its beginning; `log_bytes`: what of the log it keeps alive."""

    meta: Meta
    extents: list[Extent]
    starts: array[int]
    home: int
    log_bytes: int

    @staticmethod
    def of(meta: Meta, extents: Sequence[Extent], home: int, log_bytes: int) -> Stored:
        starts = array("Q")
        at = 0
        for extent in extents:
            starts.append(at)
            at += extent[2]
        return Stored(meta, list(extents), starts, home, log_bytes)

    def grown(self, meta: Meta, extent: Extent, log_bytes: int) -> Stored:
        """The object after an append. Shares the lists: who reads the older one does not look beyond its size."""
        self.extents.append(extent)
        self.starts.append(self.meta.size)
        return Stored(meta, self.extents, self.starts, self.home, self.log_bytes + log_bytes)

    @property
    def files(self) -> list[int]:
        """Numbers of the payload files that it refers to."""
        return [-extent[0] for extent in self.extents if extent[0] < 0]

    def within(self, start: int, end: int) -> list[tuple[int, Extent]]:
        """The extents that hold [start, end), each with the offset at which it begins."""
        if start >= end:
            return []
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, end - 1)
        return list(zip(self.starts[first:last], self.extents[first:last], strict=True))


def plain_meta(meta: Meta) -> list[Any]:
    """As the log holds it; back by `read_meta`."""
    md5 = None if meta.md5 is None else meta.md5.hex()
    sums = [meta.crc32, meta.crc32c, meta.crc64]
    rest = [meta.modified_ms, meta.generation, md5, int(meta.appendable), meta.parts, dict(meta.attributes)]
    return [meta.size, *sums, *rest]


def read_meta(plain: Sequence[Any]) -> Meta:
    size, crc_32, crc_32c, crc_64, modified_ms, generation, md5, appendable, parts, attributes = plain
    return Meta.of(
        size,
        Sums(crc_32, crc_32c, crc_64),
        modified_ms,
        generation,
        md5=None if md5 is None else bytes.fromhex(md5),
        appendable=bool(appendable),
        parts=parts,
        attributes=attributes or NO_ATTRIBUTES,
    )


def plain_extents(extents: Sequence[Extent]) -> list[list[Any]]:
    """As the log holds them; back by `read_extents`."""
    return [
        [file, at, size, sums[0] if len(sums) == 1 else base64.b85encode(sums.tobytes()).decode()]
        for file, at, size, sums in extents
    ]


def read_extents(plain: Sequence[Sequence[Any]]) -> list[Extent]:
    return [
        (file, at, size, array("I", [sums] if isinstance(sums, int) else base64.b85decode(sums)))
        for file, at, size, sums in plain
    ]


class ObjectContent:
    """The bytes [start, end) of an object as it was when this was made, whatever becomes of its name. Close it.
    `extents`: those that hold them."""

    __slots__ = ("_open", "_release", "_segments", "_skip", "extents", "size")

    def __init__(
        self,
        stored: Stored,
        start: int,
        end: int,
        segments: Mapping[int, File],
        open_file: Callable[[int], File],
        hold: Callable[[Sequence[int]], Callable[[], None]],
    ) -> None:
        """`hold` keeps payload files from being removed until what it returns is called."""
        self.size = max(end - start, 0)
        within = stored.within(start, end)
        self.extents = [extent for _, extent in within]
        self._skip = start - within[0][0] if within else 0
        self._segments = {extent[0]: segments[extent[0]] for extent in self.extents if extent[0] > 0}
        self._open = open_file
        files = [-extent[0] for extent in self.extents if extent[0] < 0]
        self._release: Callable[[], None] | None = hold(files) if files else None

    def pieces(self) -> Iterator[bytes]:
        """The bytes in order, up to PIECE_BYTES at a time. Blocks on file I/O.

        Raises:
            Corrupt: a block fails its checksum; it is not handed out.
        """
        left, skip = self.size, self._skip
        small: list[bytes] = []
        held = 0
        for extent in self.extents:
            at, until = skip, min(extent[2], skip + left)
            while at < until:
                piece = self._checked(extent, at, min(until, at + PIECE_BYTES - at % BLOCK_BYTES))
                at += len(piece)
                left -= len(piece)
                if held + len(piece) > PIECE_BYTES:
                    yield b"".join(small)
                    small, held = [], 0
                small.append(piece)
                held += len(piece)
            skip = 0
        if small:
            yield small[0] if len(small) == 1 else b"".join(small)

    def _checked(self, extent: Extent, start: int, end: int) -> bytes:
        number, place, size, sums = extent
        first = start // BLOCK_BYTES
        aligned = first * BLOCK_BYTES
        upto = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size)
        file = self._segments[number] if number > 0 else self._open(-number)
        raw = os.pread(file.descriptor, upto - aligned, place + aligned)
        if len(raw) != upto - aligned:
            raise Corrupt(f"{file.path} is shorter than it was")
        if upto - aligned <= BLOCK_BYTES:
            right = crc32c.crc32c(raw) == sums[first]
        else:
            view = memoryview(raw)
            right = all(
                crc32c.crc32c(view[at - aligned : at - aligned + BLOCK_BYTES]) == sums[at // BLOCK_BYTES]
                for at in range(aligned, upto, BLOCK_BYTES)
            )
        if not right:
            raise Corrupt(f"{file.path} has a block that fails its checksum", at=place + aligned)
        return raw if (start, end) == (aligned, upto) else raw[start - aligned : end - aligned]

    def close(self) -> None:
        """Let go of the payload files."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        self.close()
