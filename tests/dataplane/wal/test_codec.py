"""The block format: whole or not a block."""

from __future__ import annotations

import random

import pytest

from dataplane.wal.base import Block, WalIdentity, WalRecord
from dataplane.wal.codec import Kind, Miss, decode_block, encode_mark, is_mark, mark_value
from providers.base.errors import Corrupt
from tests.dataplane.wal.cell import encoded

IDENTITY = WalIdentity("c", 7, 3)


def records(count: int, seed: int = 1) -> tuple[WalRecord, ...]:
    rng = random.Random(seed)
    return tuple(
        WalRecord(rng.getrandbits(63), rng.getrandbits(20), rng.getrandbits(50), i + 1, rng.randbytes(i * 7))
        for i in range(count)
    )


@pytest.mark.parametrize("count", [1, 2, 50])
def test_block_decodes_to_what_was_encoded(count: int) -> None:
    block = encoded(IDENTITY, 12, records(count))
    assert decode_block(block, IDENTITY, 12) == Block(12, records(count))
    assert decode_block(memoryview(block + b"\0" * 300), IDENTITY, 12) == Block(12, records(count))


def test_any_flipped_bit_is_detected() -> None:
    whole = encoded(IDENTITY, 12, records(4))
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_block(bytes(damaged), IDENTITY, 12) in (Miss.ABSENT, Miss.TORN), bit


def test_block_cut_short_is_torn() -> None:
    whole = encoded(IDENTITY, 12, records(4))
    for length in range(len(whole)):
        assert decode_block(whole[:length], IDENTITY, 12) in (Miss.ABSENT, Miss.TORN)


def test_half_old_half_new_block_is_torn() -> None:
    old, new = (encoded(IDENTITY, number, records(40, seed=number)) for number in (5, 12))
    for sector in range(512, min(len(old), len(new)), 512):
        mixed = new[:sector] + old[sector:]
        assert mixed == new or isinstance(decode_block(mixed, IDENTITY, 12), Miss)


def test_block_of_another_log_is_foreign() -> None:
    block = encoded(IDENTITY, 12, records(2))
    for identity, number in ((WalIdentity("c", 7, 4), 12), (WalIdentity("c", 8, 3), 12), (IDENTITY, 13)):
        assert decode_block(block, identity, number) is Miss.FOREIGN


def test_mark_is_not_a_block_and_names_its_writer() -> None:
    mark = encode_mark(Kind.TOMBSTONE, IDENTITY, 12, 99)
    assert decode_block(mark, IDENTITY, 12) is Miss.FOREIGN
    assert is_mark(mark, Kind.TOMBSTONE, IDENTITY) and not is_mark(mark, Kind.SEAL, IDENTITY)
    assert mark_value(mark) == 99


def test_newer_format_is_refused_and_not_cut_as_a_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.wal.codec.FORMAT_VERSION", 2)
    newer = encoded(IDENTITY, 12, records(2))
    monkeypatch.undo()
    with pytest.raises(Corrupt, match="format version 2"):
        decode_block(newer, IDENTITY, 12)
