"""What the data plane needs of a block volume: reads, durable writes and a fence that is real.

The fence is the device's persistent reservation (NVMe or SCSI type "write exclusive"; in the lab, the volume daemon's).
Attaching and detaching are the cloud's control API and are done beforehand (`BlockVolumes` in the lab, `volume_api.py`
for real); everything in `BlockDevice` is data plane. Implementations: `host_device.py` (this host's devices),
`iscsi_device.py`, `lab/volumes_client.py`, `memory/volumes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from providers.base.errors import YunheError

BLOCK_BYTES = 4096
"""Writes are aligned to this and a multiple of it: the logical block of every cloud's volumes in O_DIRECT use."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The device's reservation state, as PR IN reports it. `holder` is the 64-bit key that may write, None when
    unreserved.
    """

    holder: int | None
    registered: frozenset[int]
    generation: int


class BlockDevice(Protocol):
    """An attached volume, opened under at most one registration key. Obligations, by number:

    1. *Durable on return*: when `write` returns, the bytes survive the loss of this machine (and of its zone, on a
       regional volume).
    2. *The fence is enforced by the device*: while another key holds the reservation, `write` raises `Fenced` and
       changes nothing that the
       holder could mistake for its own. A real device takes anybody's writes once *nobody* holds it, except from a
       handle that has met the loss of its registration: so whoever takes a volume over keeps its reservation.
    3. *Preempt names its victim*: `preempt(victim)` removes just that key; if the victim is no longer registered or
       does not hold the reservation,
       it raises `Conflict` and changes nothing.
    4. *Drain*: with `preempt_aborts` true, no write of the victim lands after `preempt` has returned. With it false,
       writes in flight may still land,
       and the caller keeps the rules of design §5.
    5. Reads need no reservation. A read of bytes never written returns zeros.
    6. A write torn by a crash leaves any mix of old and new bytes *within that write*, nothing outside it.

    Every method ends within a time that the device bounds, and may raise `Unavailable` (path to the device lost; for
    `write`, `OutcomeUnknown`) or `NotFound` (volume gone, e.g. its zone).
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def preempt_aborts(self) -> bool: ...

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length). Any alignment."""
        ...

    async def allocate(self, size: int) -> memoryview:
        """Writable memory, page-aligned, from which `write` takes bytes without copying them. Only the first call may
        get memory that is special; from any other memory `write` copies.
        """
        ...

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write durably. `offset` and `len(data)` are multiples of BLOCK_BYTES. `data` is left alone until this
        returns; when it raises, memory of `allocate` is left alone for good: the write may still be under way.

        Raises:
            Fenced: another key holds the reservation, or this one's registration is gone.
            Full: the space behind the volume has run out (the lab's host disk); nothing is acked.
        """
        ...

    async def register(self, key: int) -> None:
        """Register `key` (64 bit, non-zero) for this attachment, replacing its earlier one."""
        ...

    async def reserve(self) -> None:
        """Take the reservation under the registered key. Idempotent for its holder.

        Raises:
            Conflict: another key holds it.
        """
        ...

    async def preempt(self, victim: int) -> None:
        """Take the reservation from `victim` and remove its registration.

        Raises:
            Conflict: `victim` is not the holder. If this attachment's own key already holds it, nothing is raised:
            preempting is idempotent.
        """
        ...

    async def release(self) -> None:
        """Give the reservation up, if held; the registration stays."""
        ...

    async def reservation(self) -> Reservation:
        """Read the reservation state, by a request issued now."""
        ...

    async def close(self) -> None:
        """Detach this handle. Its queued writes are dropped or completed before this returns."""
        ...


Written = Callable[[YunheError | None], None]
"""The end of a write: None, or why it failed."""


@runtime_checkable
class StartedWrites(Protocol):
    """A `BlockDevice` whose writes need no task: a WAL makes thousands a second."""

    def start_write(self, offset: int, data: memoryview, done: Written) -> None:
        """`write`, whose end `done` is told: once, on the loop, after this has returned.

        Raises:
            YunheError: as `write`; nothing was begun, and `done` hears nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as the cloud describes it. `zones`: where it may be attached; one zone for a zonal volume."""

    id: str
    size_bytes: int
    zones: tuple[str, ...]
    attached_zones: tuple[str, ...]


class BlockVolumes(Protocol):
    """The cloud's volume API (control plane; needed before, never during, a failover), and the way to open its volumes.
    Where volumes are real (a host's, an array's), only `open` is there: the rest is `Invalid` with a hint."""

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        """Create, idempotent by id. More than one zone asks for a zone-redundant volume.

        Raises:
            Invalid: beyond the cloud's documented limits; the same id with another size or zones.
        """
        ...

    async def attach(self, volume_id: str, zone: str) -> Volume:
        """Attach for hosts in `zone`, idempotent.

        Raises:
            Invalid: the volume does not reach that zone, or `share_max` attachments exist.
        """
        ...

    async def detach(self, volume_id: str, zone: str) -> Volume: ...

    async def describe(self) -> Sequence[Volume]: ...

    async def delete(self, volume_id: str) -> None: ...

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        """Open an attached volume from a host in `zone` (data plane).

        Raises:
            NotFound: no such volume, or not attached in that zone.
        """
        ...

    async def close(self) -> None: ...
