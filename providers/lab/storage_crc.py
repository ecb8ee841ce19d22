"""Checksums of joined bytes from the checksums of the pieces, so that parts and appends are never read again.

A CRC is the remainder of a polynomial over GF(2). Appending n bytes multiplies what came before by x^(8n), so
`crc(a + b) = crc(a) * x^(8 * len(b)) + crc(b)` modulo the generator; the usual complements before and after cancel out.
Numbers are reflected: the highest power is the lowest bit.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import crc32c
from fastcrc import crc64

CRC32, CRC32C, CRC64 = (0xEDB88320, 32), (0x82F63B78, 32), (0xC96C5795D7870F42, 64)
"""Generator (reflected) and width: zlib's, Castagnoli's, and ECMA-182's as in xz and OSS."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The three checksums that the clouds speak of, of the same bytes."""

    crc32: int = 0
    crc32c: int = 0
    crc64: int = 0

    @staticmethod
    def of(data: bytes | bytearray | memoryview, before: Sums | None = None) -> Sums:
        """Of `data`, or of what `before` stands for followed by `data`."""
        if before is None:
            return Sums(zlib.crc32(data), crc32c.crc32c(data), crc64.xz(data))
        return Sums(
            zlib.crc32(data, before.crc32),
            crc32c.crc32c(data, before.crc32c),
            crc64.xz(data, before.crc64),
        )

    def join(self, after: Sums, size: int) -> Sums:
        """Of these bytes followed by the `size` bytes of `after`."""
        return Sums(
            combine(CRC32, self.crc32, after.crc32, size),
            combine(CRC32C, self.crc32c, after.crc32c, size),
            combine(CRC64, self.crc64, after.crc64, size),
        )


def combine(kind: tuple[int, int], first: int, second: int, size: int) -> int:
    """The CRC of two pieces joined, the second of `size` bytes."""
    shifted = 0
    for table in _shift(kind, size):
        shifted ^= table[first & 0xFF]
        first >>= 8
    return shifted ^ second


@functools.lru_cache(maxsize=256)
def _shift(kind: tuple[int, int], size: int) -> tuple[tuple[int, ...], ...]:
    """Tables, one for each byte of a CRC, that multiply it by x^(8 * size). Cached, for parts mostly have one size."""
    generator, width = kind
    factor = _power(kind, 8 * size)
    # columns[i] = factor * the polynomial of bit i alone; the top bit stands for x^0.
    columns = [0] * width
    for bit in range(width - 1, -1, -1):
        columns[bit] = factor
        factor = (factor >> 1) ^ (generator if factor & 1 else 0)
    tables = []
    for byte in range(width // 8):
        table = [0]
        for column in columns[8 * byte : 8 * byte + 8]:
            table += [entry ^ column for entry in table]
        tables.append(tuple(table))
    return tuple(tables)


@functools.lru_cache(maxsize=1024)
def _power(kind: tuple[int, int], exponent: int) -> int:
    """x^exponent modulo the generator, by squaring."""
    if exponent == 0:
        return 1 << (kind[1] - 1)
    half = _power(kind, exponent // 2)
    square = _times(kind, half, half)
    if exponent % 2:
        square = (square >> 1) ^ (kind[0] if square & 1 else 0)
    return square


def _times(kind: tuple[int, int], a: int, b: int) -> int:
    generator, width = kind
    product = 0
    for bit in range(width - 1, -1, -1):
        if b >> bit & 1:
            product ^= a
        a = (a >> 1) ^ (generator if a & 1 else 0)
    return product
