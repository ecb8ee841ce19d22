"""A request's body as the storage takes it: received whole, its checksums known, in memory when small and in a file of
the storage's own file system when large."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from providers.base.errors import Invalid
from providers.lab.storage_crc import Sums
from providers.lab.storage_files import BLOCK_BYTES, DataFiles, Spool, SpoolPart

INLINE_BYTES_MAX = BLOCK_BYTES
"""Payloads up to here are in memory; larger ones are spools."""

READ_BYTES_MAX = 64 << 20
"""A body that is read into memory as a whole has at most so many bytes."""

PIECE_BYTES = 1 << 20

NO_TRAILERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SignedChunk:
    """One chunk of an `aws-chunked` body as its sender signed it: the claimed signature, and the SHA-256 (hexadecimal)
    of what arrived."""

    signature: str
    sha256: str


class Payload:
    """Bytes that arrived. `trailers` (names in lower case) came after an `aws-chunked` body, whose framing is gone;
    `signed_chunks` are its chunks, where they carried signatures.

    A large payload holds a file: `close` it when the request is over, whatever became of it.
    """

    __slots__ = ("_data", "_digests", "_sums", "signed_chunks", "size", "spool", "trailers")

    def __init__(
        self,
        data: bytes | Spool | SpoolPart,
        *,
        trailers: Mapping[str, str] = NO_TRAILERS,
        signed_chunks: Sequence[SignedChunk] = (),
    ) -> None:
        """A spool is finished here, which syncs it.

        Raises:
            Full
        """
        self.spool = None if isinstance(data, bytes) else data
        self._data = data if isinstance(data, bytes) else b""
        self._digests: dict[str, bytes] = {} if self.spool is None else self.spool.finish()
        self._sums: Sums | None = None if self.spool is None else self.spool.sums
        self.size = len(data) if isinstance(data, bytes) else data.size
        self.trailers = trailers
        self.signed_chunks = signed_chunks

    @property
    def sums(self) -> Sums:
        if self._sums is None:
            self._sums = Sums.of(self._data)
        return self._sums

    @property
    def crc32(self) -> int:
        return self.sums.crc32

    @property
    def crc32c(self) -> int:
        return self.sums.crc32c

    @property
    def crc64(self) -> int:
        """ECMA-182's, as in xz and OSS."""
        return self.sums.crc64

    def md5(self) -> bytes:
        """Reads all the bytes once more, unless a Content-MD5 header made it known while they came in."""
        return self._digest("md5")

    def sha256(self) -> bytes:
        """As `md5`, for x-amz-content-sha256 and x-amz-checksum-sha256."""
        return self._digest("sha256")

    def sha1(self) -> bytes:
        """As `md5`, for x-amz-checksum-sha1."""
        return self._digest("sha1")

    def known_md5(self) -> bytes | None:
        """The MD5 if it costs little: of a small payload, or where it was asked for."""
        return self._digests.get("md5") if self.spool is not None else self._digest("md5")

    def _digest(self, name: str) -> bytes:
        found = self._digests.get(name)
        if found is None:
            digest = hashlib.new(name, usedforsecurity=False)
            for piece in self.pieces():
                digest.update(piece)
            found = self._digests[name] = digest.digest()
        return found

    def pieces(self) -> Iterator[bytes]:
        """All the bytes in order."""
        if self.spool is None:
            yield self._data
            return
        for at in range(0, self.size, PIECE_BYTES):
            yield self.spool.read(at, min(PIECE_BYTES, self.size - at))

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """The bytes [start, start + length): for small bodies, and to look into large ones.

        Raises:
            Invalid: more than READ_BYTES_MAX.
        """
        end = self.size if length is None else min(self.size, start + length)
        if end - start > READ_BYTES_MAX:
            raise Invalid(f"{end - start} bytes of a body are not read into memory")
        if self.spool is not None:
            return self.spool.read(start, end - start)
        return self._data if (start, end) == (0, self.size) else self._data[start:end]

    def slice(self, start: int, length: int) -> Payload:
        """The bytes [start, start + length) as a payload of their own, to be closed too: the media in a
        `multipart/related` body. A large one shares this one's file.
        """
        length = max(min(length, self.size - start), 0)
        if self.spool is None or length <= INLINE_BYTES_MAX:
            return Payload(self.read(start, length))
        return Payload(SpoolPart(self.spool, start, length))

    def in_file(self, files: DataFiles) -> Payload:
        """This payload with its bytes in a file of its own, to be closed too.

        Raises:
            Full
        """
        if self.spool is not None:
            return self
        spool = Spool(files, self.size)
        try:
            spool.write(self._data)
            return Payload(spool)
        except BaseException:
            spool.abandon()
            raise

    def close(self) -> None:
        """Let go of the file: what was stored of it stays."""
        if self.spool is not None:
            self.spool.abandon()


EMPTY = Payload(b"")
