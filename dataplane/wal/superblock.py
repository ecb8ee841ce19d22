"""The ring's superblock: whose ring it is, how large, and from which block on it has to be whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from dataplane.wal.base import WalIdentity
from providers.base.errors import Corrupt
from providers.base.volumes import BLOCK_BYTES

SUPERBLOCKS = 2
"""Written in turn, so that a torn write leaves the one before."""
DATA_START = SUPERBLOCKS * BLOCK_BYTES
INSTANCES_MAX = (1 << 16) - 1
_VERSION = 1
_MAGIC = b"YWS1"
_LEAD = struct.Struct("<4sI")
_REST = struct.Struct("<HHIIQQQQ")


@dataclass(frozen=True, slots=True)
class Superblock:
    """`floor_at`: where block `floor` is or will be, relative to the data area (or at its start, if it did not fit
    there). `capacity`: bytes of the data area."""

    node_id: int
    epoch: int
    sequence: int
    floor: int
    floor_at: int
    capacity: int
    instance: int = 0
    """Of the side, within the epoch. At most `INSTANCES_MAX`."""

    def encode(self) -> bytes:
        """One device block."""
        rest = _REST.pack(
            _VERSION, self.instance, self.node_id, self.epoch, self.sequence, self.floor, self.floor_at, self.capacity
        )
        return (_LEAD.pack(_MAGIC, crc32c(rest)) + rest).ljust(BLOCK_BYTES, b"\0")

    def belongs_to(self, identity: WalIdentity) -> bool:
        owner = (identity.node_id, identity.epoch, identity.instance)
        return (self.node_id, self.epoch, self.instance) == owner


def holds_ring(head: bytes) -> bool:
    """Whether a volume's first bytes are a ring's, of any cluster, epoch and version: what a broker may write over once
    it has fenced it. A torn first superblock still begins with the mark, or leaves the second whole."""
    return any(head[at : at + len(_MAGIC)] == _MAGIC for at in range(0, DATA_START, BLOCK_BYTES))


def read_superblocks(data: bytes) -> tuple[Superblock, ...]:
    """The whole ones among the volume's first `DATA_START` bytes.

    Raises:
        Corrupt: a whole one of a version that this code does not know.
    """
    found = []
    for slot in range(SUPERBLOCKS):
        magic, checksum = _LEAD.unpack_from(data, slot * BLOCK_BYTES)
        at = slot * BLOCK_BYTES + _LEAD.size
        if magic != _MAGIC or crc32c(data[at : at + _REST.size]) != checksum:
            continue
        version, instance, node_id, epoch, sequence, floor, floor_at, capacity = _REST.unpack_from(data, at)
        if version != _VERSION:
            raise Corrupt(
                f"the volume's ring has format version {version}, and this code knows {_VERSION}", version=version
            )
        found.append(Superblock(node_id, epoch, sequence, floor, floor_at, capacity, instance))
    return tuple(found)
