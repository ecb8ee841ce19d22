"""Settings of the group commit (`commit.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommitSettings:
    """Settings of the group commit."""

    bytes_max: int = 256 << 20
    """Bytes of blocks at or above the floor at which appends are pushed back."""
    block_bytes: int = 1 << 20
    """A block is sealed when it has reached this; at most an eighth of `bytes_max` is used. Larger gains nothing on a
    volume; object storage, paid by the request, wants 8 MiB."""
    wide_bytes: int = 32 << 10
    """Queued bytes from which more than two blocks are under way at once."""
    queue_bytes_max: int = 32 << 20
    """Unacked bytes at which appends are pushed back: a second of a fast volume."""
    linger_ms: float = 0
    """How long a block waits for company. 0 on volumes and lanes, where the write in flight is wait enough; on object
    storage 20 ms save most of the requests."""
    full_attempts_max: int = 60
    """Writes of one block that find no room on a side (the host's disk) before the side counts as lost."""
    full_pause_ms: float = 500
    """Pause between them."""
    change_attempts_max: int = 30
    """How often a membership change of unknown outcome is put to the ledger again before the WAL gives up, unacked."""
    change_pause_ms: float = 500
    """Pause between them."""
    close_flush_ms: float = 5000
    """How long `close` waits for queued appends to become durable."""
