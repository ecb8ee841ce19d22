"""A request's body as the storage takes it: received whole, its checksums known, in memory when small and in a file of
the storage's own file system when large."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import crc32c
from fastcrc import crc64

from providers.base.errors import Invalid

READ_BYTES_MAX = 64 << 20
"""A body that is read into memory as a whole has at most so many bytes."""

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SignedChunk:
    """One chunk of an `aws-chunked` body as its sender signed it: the claimed signature, and the SHA-256 (hexadecimal)
    of what arrived."""

    signature: str
    sha256: str


class Payload:
    """Bytes that arrived. `trailers` (names in lower case) came after an `aws-chunked` body, whose framing is gone;
    `signed_chunks` are its chunks, where they carried signatures."""

    __slots__ = ("_data", "_sums", "signed_chunks", "size", "trailers")

    def __init__(
        self, data: bytes, *, trailers: Mapping[str, str] = _NONE, signed_chunks: Sequence[SignedChunk] = ()
    ) -> None:
        self._data = data
        self._sums: tuple[int, int, int] | None = None
        self.size = len(data)
        self.trailers = trailers
        self.signed_chunks = signed_chunks

    @property
    def sums(self) -> tuple[int, int, int]:
        """crc32, crc32c and crc64 (ECMA-182 as in xz and OSS) of all the bytes."""
        if self._sums is None:
            self._sums = (zlib.crc32(self._data), crc32c.crc32c(self._data), crc64.xz(self._data))
        return self._sums

    @property
    def crc32(self) -> int:
        return self.sums[0]

    @property
    def crc32c(self) -> int:
        return self.sums[1]

    @property
    def crc64(self) -> int:
        return self.sums[2]

    def md5(self) -> bytes:
        """Reads all the bytes once more, unless a Content-MD5 header made it known while they came in."""
        return hashlib.md5(self._data, usedforsecurity=False).digest()

    def sha256(self) -> bytes:
        """As `md5`, for x-amz-content-sha256 and x-amz-checksum-sha256."""
        return hashlib.sha256(self._data).digest()

    def sha1(self) -> bytes:
        """As `md5`, for x-amz-checksum-sha1."""
        return hashlib.sha1(self._data, usedforsecurity=False).digest()

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """The bytes [start, start + length): for small bodies, and to look into large ones.

        Raises:
            Invalid: more than READ_BYTES_MAX.
        """
        end = self.size if length is None else min(self.size, start + length)
        if end - start > READ_BYTES_MAX:
            raise Invalid(f"a body of {self.size} bytes is not read into memory")
        return self._data if (start, end) == (0, self.size) else self._data[start:end]

    def slice(self, start: int, length: int) -> Payload:
        """The bytes [start, start + length) as a payload of their own: the media in a `multipart/related` body."""
        return Payload(self._data[start : start + length])


EMPTY = Payload(b"")
