"""Volumes on the host's disk: for each a folder with a data file and a small metadata file that survives a crash
at any moment.

    <root>/<volume id>/data        the bytes
    <root>/<volume id>/meta.json   size, zones, share limit, attachments, reservation: replaced whole (write, fsync,
    rename, fsync of the folder)

Blocking, and called from threads, but for writes. Reservations persist, as those of real devices do with
persist-through-power-loss set.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from providers.base.aio import Writer, open_writer
from providers.base.errors import Corrupt, Full, Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.files import sync_folder
from providers.base.volumes import BLOCK_BYTES, Reservation, Volume
from providers.lab.volumes_reservations import UNRESERVED

_VOLUME_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
VOLUMES_MAX = 1024
"""Volumes of one daemon: each costs an open file."""
FILLED_BYTES = 256 << 20
"""So much of a volume gets its blocks when it is made: all that a WAL of the default size uses, in 0.2 s."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cloud's documents allow of its volume class for WALs; None: not published, so not limited here."""

    zones_max: int | None
    share_max: int | None


LIMITS = {
    # ESSD regional (cloud_regional_disk_auto): zones a region offers; multi-attach up to 16 instances.
    "aliyun": Limits(zones_max=None, share_max=16),
    # Premium SSD ZRS, P1 to P20: three zones, maxShares 3.
    "azure": Limits(zones_max=3, share_max=3),
    # Hyperdisk Balanced High Availability: two zones, eight VMs.
    "gcp": Limits(zones_max=2, share_max=8),
    # gp3: one zone, one instance.
    "aws": Limits(zones_max=1, share_max=1),
}
"""Sources: the capability files of `providers/<cloud>/`."""
UNLIMITED = Limits(None, None)


@dataclass(frozen=True, slots=True)
class Meta:
    """A volume's metadata, as it is on disk."""

    id: str
    size_bytes: int
    zones: tuple[str, ...]
    share_max: int
    attached_zones: tuple[str, ...] = ()
    reservation: Reservation = UNRESERVED

    def volume(self) -> Volume:
        return Volume(self.id, self.size_bytes, self.zones, self.attached_zones)


def new_meta(volume_id: str, size_bytes: int, zones: Sequence[str], share_max: int, limits: Limits) -> Meta:
    """A volume as asked for.

    Raises:
        Invalid: malformed, or beyond the cloud's limits.
    """
    if not _VOLUME_ID.fullmatch(volume_id):
        raise Invalid(f"{volume_id!r} is not a volume id", hint="letters, digits, - and _; at most 128")
    if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
        raise Invalid(f"a volume of {size_bytes} bytes is not possible", hint=f"use a multiple of {BLOCK_BYTES}")
    if not zones or len(set(zones)) != len(zones):
        raise Invalid(f"zones {', '.join(zones) or '(none)'} are not a list of different zones")
    if limits.zones_max is not None and len(zones) > limits.zones_max:
        raise Invalid(f"a volume here reaches at most {limits.zones_max} zone(s), not {len(zones)}")
    if share_max < 1 or (limits.share_max is not None and share_max > limits.share_max):
        raise Invalid(f"a volume here is shared by 1 to {limits.share_max or 'any number of'} hosts, not {share_max}")
    return Meta(volume_id, size_bytes, tuple(zones), share_max)


def attached(meta: Meta, zone: str) -> Meta:
    """With an attachment in `zone`.

    Raises:
        Invalid: the volume does not reach it, or is attached as often as it may be.
    """
    if zone not in meta.zones:
        raise Invalid(f"volume {meta.id} does not reach zone {zone}", hint=f"it reaches {', '.join(meta.zones)}")
    if zone in meta.attached_zones:
        return meta
    if len(meta.attached_zones) >= meta.share_max:
        raise Invalid(f"volume {meta.id} has its {meta.share_max} attachment(s) already", hint="detach one first")
    return replace(meta, attached_zones=(*meta.attached_zones, zone))


def detached(meta: Meta, zone: str) -> Meta:
    """Without an attachment in `zone`."""
    return replace(meta, attached_zones=tuple(z for z in meta.attached_zones if z != zone))


class VolumeFile:
    """One volume's files, its data file open. Used from the daemon's loop, but for `read` and `save`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.meta = _load(folder / "meta.json")
        self._data = os.open(folder / "data", os.O_RDONLY | os.O_CLOEXEC)
        self._writer: Writer | None = None
        self._broken = False

    @staticmethod
    def create(root: Path, meta: Meta) -> VolumeFile:
        """Make the files; a folder without metadata is what a crash left of an earlier attempt, and is made anew.

        Raises:
            Full, Unavailable: the host's disk refuses.
        """
        folder = root / meta.id
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            descriptor = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _fill(descriptor, meta.size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(root)
        except OSError as error:
            raise _translated(error, f"volume {meta.id} could not be made") from error
        _store(folder, meta)
        return VolumeFile(folder)

    def save(self, meta: Meta) -> None:
        """Make `meta` the durable truth; it is the visible one only once this has returned."""
        if meta != self.meta:
            _store(self._folder, meta)
            self.meta = meta

    def read(self, offset: int, length: int) -> bytes:
        """Bytes never written are zeros."""
        parts: list[bytes] = []
        while length > 0:
            try:
                part = os.pread(self._data, length, offset)
            except OSError as error:
                raise Unavailable(f"volume {self.meta.id} cannot be read: {error.strerror}") from error
            if not part:
                raise Unavailable(f"volume {self.meta.id} ends before its size", offset=offset)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: memoryview, done: Callable[[YunheError | None], None]) -> None:
        """Write and make durable; `done` is called on the loop. `data`: page-aligned, left alone until then.

        A failed write is final until the daemon starts anew: what the disk holds there is not known, and only a
        recovery looks at it.
        """
        if self._broken:
            done(Unavailable(f"volume {self.meta.id} lost a write and takes no more", hint="restart the volume daemon"))
            return
        if not data:
            done(None)  # there is nothing to hand to the kernel
            return
        if self._writer is None:
            try:
                self._writer = open_writer(self._folder / "data")
            except OSError as error:
                done(Unavailable(f"volume {self.meta.id} cannot be written: {error.strerror}"))
                return
        self._writer.submit(data, offset, lambda error: done(self._failure(error) if error else None))

    def _failure(self, code: int) -> YunheError:
        if code in (errno.ENOSPC, errno.EDQUOT):
            return Full(f"the host's disk under volume {self.meta.id} is full")
        self._broken = True
        return OutcomeUnknown(f"a write to volume {self.meta.id} failed: {os.strerror(code)}")

    def delete(self) -> None:
        """Metadata first, so that a crash leaves no volume with half its files. Nothing may be under way."""
        try:
            (self._folder / "meta.json").unlink()
            sync_folder(self._folder)
            shutil.rmtree(self._folder)
        except OSError as error:
            raise OutcomeUnknown(f"volume {self.meta.id} could not be deleted: {error.strerror}") from error

    def close(self) -> None:
        """Release the files; nothing may be under way."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._data >= 0:
            os.close(self._data)
            self._data = -1


def _fill(descriptor: int, size_bytes: int) -> None:
    """Give a new volume's beginning its blocks, as a provisioned cloud volume has them: a durable write to a hole also
    commits the file system's journal, and takes several times as long. The rest, and all of it on a disk that is
    filling up, is a hole."""
    os.ftruncate(descriptor, size_bytes)
    free = os.statvfs(descriptor)
    filled = min(size_bytes, FILLED_BYTES)
    if filled * 4 > free.f_bavail * free.f_frsize:
        return
    zeros = memoryview(bytes(min(filled, 4 << 20)))
    at = 0
    while at < filled:
        at += os.pwrite(descriptor, zeros[: filled - at], at)


def load_volumes(root: Path) -> dict[str, VolumeFile]:
    """All volumes under `root`, by id.

    Raises:
        Corrupt: a metadata file cannot be read.
    """
    return {path.parent.name: VolumeFile(path.parent) for path in sorted(root.glob("*/meta.json"))}


def find(volumes: dict[str, VolumeFile], volume_id: str) -> VolumeFile:
    """Raises:
    NotFound: no such volume.
    """
    if volume_id not in volumes:
        raise NotFound(f"no volume {volume_id}")
    return volumes[volume_id]


def _store(folder: Path, meta: Meta) -> None:
    plain = {
        "id": meta.id,
        "size_bytes": meta.size_bytes,
        "zones": meta.zones,
        "share_max": meta.share_max,
        "attached_zones": meta.attached_zones,
        "holder": meta.reservation.holder,
        "registered": sorted(meta.reservation.registered),
        "generation": meta.reservation.generation,
    }
    fresh = folder / "meta.new"
    try:
        with fresh.open("wb") as file:
            file.write(json.dumps(plain, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _translated(error, f"metadata of volume {meta.id} could not be written") from error
    try:
        fresh.replace(folder / "meta.json")
        sync_folder(folder)
    except OSError as error:
        raise OutcomeUnknown(f"metadata of volume {meta.id} may not be durable: {error.strerror}") from error


def _load(path: Path) -> Meta:
    try:
        plain = json.loads(path.read_bytes())
        reservation = Reservation(plain["holder"], frozenset(plain["registered"]), plain["generation"])
        return Meta(
            plain["id"],
            plain["size_bytes"],
            tuple(plain["zones"]),
            plain["share_max"],
            tuple(plain["attached_zones"]),
            reservation,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read") from error


def _translated(error: OSError, what: str) -> Full | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(f"{what}: the host's disk is full")
    return Unavailable(f"{what}: {error.strerror}")
