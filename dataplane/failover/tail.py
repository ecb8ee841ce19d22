"""The last blocks of a dead WAL, kept by the first who read them.

    block    … n-3   n-2   n-1    n          n was made when `unacked` blocks below it were not acked:
             acked  ├──── the tail ────┤     all others were, and are on every side of the membership

Of a block in the tail nobody can tell whether it was acked: it counts as written, and its offsets are in the ends that
`broker-closed` states. But it may be on one side only, or in the memory of a volume that has lost power when the next
recoverer reads. So the tail lies in object storage before the ends are stated; with it, any side gives the whole again.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.wal.base import Block, WalIdentity
from dataplane.wal.codec import Header, Miss, block_length, decode_block, encode_block, record_bytes, verify
from providers.base.errors import Corrupt


def tail_of(blocks: Sequence[Block]) -> Sequence[Block]:
    """Those of the consecutive `blocks` that are not known to have been acked; none where there are none."""
    if not blocks:
        return ()
    last = blocks[-1]
    return [block for block in blocks if block.number >= last.number - last.unacked]


def encode_tail(identity: WalIdentity, blocks: Sequence[Block]) -> bytes:
    """The object's bytes: the blocks as a WAL holds them, one after the other."""
    lengths = [block_length(sum(map(record_bytes, block.records))) for block in blocks]
    data = memoryview(bytearray(sum(lengths)))
    at = 0
    for block, length in zip(blocks, lengths, strict=True):
        encode_block(data[at : at + length], identity, block.number, block.records, unacked=block.unacked)
        at += length
    return bytes(data)


def decode_tail(identity: WalIdentity, data: bytes) -> list[Block]:
    """The inverse of `encode_tail`.

    Raises:
        Corrupt: not these blocks, or not whole.
    """
    view = memoryview(data)
    blocks: list[Block] = []
    while len(view):
        header = verify(view)
        block = decode_block(view, identity, header.number) if isinstance(header, Header) else header
        if isinstance(block, Miss) or not isinstance(header, Header):
            raise Corrupt(f"the last blocks of node {identity.node_id}, epoch {identity.epoch} are damaged: {block}")
        blocks.append(block)
        view = view[header.length :]
    return blocks


def completed(blocks: Sequence[Block], tail: Sequence[Block]) -> list[Block]:
    """What was read from a side, with those of the tail behind it that the side lacks. A hole between the two stays
    one: whoever selects from it finds that an acked record is missing."""
    last = blocks[-1].number if blocks else 0
    return [*blocks, *(block for block in tail if block.number > last)]
