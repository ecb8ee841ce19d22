"""The contract of a WAL.

A WAL is the log of one broker epoch: blocks numbered 1, 2, 3 …, each holding the records of one group commit, each
durable as a whole or not at all. The same block bytes
go to every *side* of the WAL: one side in the modes `regional-block`, `zonal-block` (a ring on a volume) and `object`;
two in `block+express` (a ring and
append lanes). Which sides count is the *membership*, decided by the ledger.

      records ──► group commit ──► block n ──┬─► side "volume"  (ring)  ─┐ durable in every side
                                             └─► side "express" (lanes) ─┴► of the membership ──► acks, in order of n
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from dataplane.wal.latency import AckLatency
from providers.base.errors import YunheError


class WalRecord(NamedTuple):
    """One append of one stream: a Kafka record batch, opaque. Covers [base_offset, base_offset + offsets).

    A tuple, for a broker makes tens of thousands a second.
    """

    stream: int
    stream_epoch: int
    base_offset: int
    offsets: int
    """How many offsets it covers."""
    payload: bytes | memoryview
    """Not changed until the append is over."""


Done = Callable[[int, YunheError | None], None]
"""The end of an append: the number of the block that holds it once it is acked, or 0 and why it never will be."""


Started = Callable[[bool], None]
"""The end of a block's write that was started: whether it is kept."""


@dataclass(frozen=True, slots=True)
class WalIdentity:
    """Whose log it is. A restarted broker has a higher epoch, and so another log."""

    cluster: str
    node_id: int
    epoch: int
    instance: int = 0
    """Which one of a side: 0 at the epoch's beginning, another each time that a lost side comes back, empty. Blocks of
    two instances have different numbers, so that theirs need not name it."""

    @property
    def key(self) -> int:
        """The reservation key under which this epoch, and this instance, writes. One cell's volumes hold one cluster's
        WALs, so that the cluster need not be in it.
        """
        return self.node_id << 48 | self.epoch << 24 | self.instance

    @property
    def prefix(self) -> str:
        """Where its objects are."""
        instance = f".{self.instance}" if self.instance else ""
        return f"{self.cluster}/wal/{self.node_id}/{self.epoch}{instance}"

    def supersedes(self, key: int) -> bool:
        """Whether a volume held under `key` is this log's to take: from an epoch before, or its recovery, or from an
        earlier instance in this epoch."""
        earlier = self.key >> 24 == key >> 24 and key < self.key
        return key_rank(key) < key_rank(self.key) or earlier

    def recovery_key(self, recoverer_node: int, recoverer_epoch: int) -> int:
        """The key under which a broker recovers *this* epoch. It names the victim's epoch, so that it can never be
        mistaken for the key of an earlier recovery by the same broker.
        """
        return 1 << 63 | recoverer_node << 48 | self.epoch << 24 | recoverer_epoch


def key_rank(key: int) -> int:
    """Order of the claims on one broker's volume: epoch 1 < recovery of 1 < epoch 2 < recovery of 2 …

    Key layout, 64 bits: recovery 1 | node 15 | epoch of the WAL 24 | epoch of the recoverer, or instance, 24. A claim
    may preempt a holder of lower rank, and a recovery another recovery of the same rank (both read the same log; the
    ledger takes the first). Whoever meets a higher rank has been overtaken and is fenced.
    """
    return (key >> 24 & 0xFFFFFF) * 2 + (key >> 63)


@dataclass(frozen=True, slots=True)
class Block:
    """A decoded block."""

    number: int
    records: tuple[WalRecord, ...]
    unacked: int = 0
    """How many of the blocks just below were not acked when this one was made: all others were."""


class Side(Protocol):
    """One place where blocks are kept. Each write vouches for itself: when it returns, the block is durable there *and*
    this
    epoch was not fenced at a moment after the block became durable (design §5, rule (a) of block volumes; ack order for
    objects and lanes).

    `alone` is set by whoever writes: giving this side up would end the WAL.

    `start`, and `write` where that returns False, is called with consecutive numbers, from 1 (or from what `begin` was
    told); calls may overlap, and may complete out of order.
    """

    alone: bool

    @property
    def name(self) -> str:
        """`volume`, `express` or `object`: what the ledger's membership calls it."""
        ...

    @property
    def window_max(self) -> int:
        """How many writes may be in flight."""
        ...

    def room_bytes(self) -> int | None:
        """How many bytes of further blocks fit before something is trimmed; None: no bound of its own."""
        ...

    async def open(self) -> None:
        """Make the side ready for this epoch's first block. The epochs before must have been fenced and recovered.

        Raises:
            Fenced: somebody has already taken this epoch over.
        """
        ...

    def begin(self, number: int) -> None:
        """The first block will be `number`. Called before the first write, of a side that comes back; a `trim` to
        `number` follows, and once it has returned, a reader whose floor is at or above `number` finds its way."""
        ...

    async def allocate(self, size: int) -> memoryview | None:
        """Memory from which `write` takes blocks without a copy; None where that saves nothing."""
        ...

    def start(self, number: int, block: memoryview, done: Started) -> bool:
        """`write` without a task, where nothing has to be waited for first; False: nothing was begun. `done` is told,
        after this has returned, that the block is kept and its memory free, as when `write` returns True; or False:
        `write` has to be called, and goes on from there."""
        ...

    async def write(self, number: int, block: memoryview) -> bool:
        """Keep the block; its length is a multiple of BLOCK_BYTES. Returns whether its memory is free again: False when
        an attempt of unknown outcome may still read it. If this raises it is not.

        Raises:
            Fenced: taken over; terminal.
            Unavailable: this side cannot do it within its time-out: the membership has to change, or the broker to
            stop. The block's outcome is
                unknown, and the writer never skips it: the same bytes under the same number are the only retry.
            Full: no room (host disk); nothing was overwritten.
        """
        ...

    async def trim(self, floor: int) -> None:
        """Blocks below number `floor` are in object storage according to an accepted ledger entry; their space may be
        reused.
        """
        ...

    async def close(self) -> None: ...


class Wal(Protocol):
    """A broker's WAL. Obligations, by number (design §5):

    1. An append is acked only when durable in every side of the current membership.
    2. Every append of a lower epoch that is acked at any time, even after `fence(epoch)` has returned, is in what
       recovery committed; nothing else of that epoch is ever
       acked, whatever the old owner does: paused for an hour between its check and its write, partitioned from
       everything but the volume, or restarted from its journal.
    3. `recover()` returns every acked append, in order, each once; a torn tail is cut at the first bad checksum, and an
       acked append never lies behind it.
    4. Space is reused only behind a floor that the ledger says is in object storage.
    5. A full WAL pushes back; it never overwrites and never acks.
    """

    def submit(self, record: WalRecord, done: Done) -> None:
        """Queue a record; `done` is called once, on the loop, in the order of the appends.

        It is told `Fenced` or `Unavailable` when the WAL is dead: all later appends fail the same way, and the broker
        stops.

        Raises:
            Full: un-uploaded bytes have reached the bound, or the queue its own; nothing was queued.
        """
        ...

    @property
    def last_acked(self) -> int:
        """Number of the newest block all of whose appends are acked; 0 at first. All blocks up to it are durable."""
        ...

    @property
    def unacked_bytes(self) -> int: ...

    @property
    def bytes_used(self) -> int:
        """Bytes of blocks at or above the floor."""
        ...

    @property
    def latency(self) -> AckLatency:
        """From the sealing of blocks to their acks."""
        ...

    @property
    def written_bytes(self) -> int:
        """Of all blocks so far, each counted once, on however many sides it is."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """Sides that every ack waits for."""
        ...

    def ack_ms(self) -> float | None:
        """Milliseconds from the sealing of a block to its ack: the median since the last call, or the age of the oldest
        unacked block if that is more. None: nothing was written."""
        ...

    def probe(self) -> None:
        """Write a block of no records if nothing else is under way, so that `ack_ms` has something to say. Does nothing
        when much of the WAL is used."""
        ...

    async def trim(self, floor: int) -> None:
        """The ledger says that everything in blocks below `floor` is in object storage."""
        ...

    async def close(self) -> None:
        """Flush what is queued (bounded), then release every side."""
        ...


class MembershipChange(Protocol):
    """How the WAL asks for acks on other sides: the broker appends the change to the ledger and returns whether it was
    *accepted*.
    """

    async def __call__(self, sides: Sequence[str], start: int, instance: int | None = None) -> bool:
        """Propose that blocks from number `start` on count as durable on `sides` alone. `instance`: the one side among
        them that is not in the membership now comes back as this instance, which begins at `start`.

        Returns whether the ledger's membership is `sides` now, by this call or an earlier one of unknown outcome; False
        when it was refused (this epoch is fenced). Raises `Unavailable` while the outcome is not known: no ack may be
        given that needs it. Once it has returned, no earlier proposal can be accepted any more.
        """
        ...


class WalReader(Protocol):
    """The recoverer's end of one side of a fenced epoch's WAL. `fence` before `read`; both may be repeated, by any
    survivor.
    """

    @property
    def name(self) -> str: ...

    async def fence(self) -> None:
        """After this returns, obligation 2 holds for this side. The ledger must already say `BrokerFenced`.

        Raises:
            Unavailable: this side cannot be reached; nothing is concluded from that.
            Fenced: the *recoverer* itself has been overtaken.
        """
        ...

    def read(self, floor: int) -> AsyncIterator[Block]:
        """Blocks from number `floor` on, consecutive, up to the first that is absent or torn.

        Raises:
            Corrupt: a block that the ledger's floor says must be there is damaged.
            Unavailable: cannot be read now.
        """
        ...

    async def release(self) -> None:
        """The ledger holds the recovery: delete what is garbage now, and close. What fences the victim stays."""
        ...

    async def close(self) -> None:
        """Close handles and leave everything as it is: the recovery did not get into the ledger, and is to be tried
        again.
        """
        ...
