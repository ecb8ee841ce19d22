"""What `apply` needs of a cloud's block-volume API: create, attach to instances, detach, take over by force, describe,
delete.

Control plane throughout: needed before a failover, never during one (design §5). What a host does with an attached
volume — open it, write, reserve, preempt — is `volumes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class AttachmentState(StrEnum):
    """Where an attachment stands. `busy`: a detach waits for the guest to let go."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume at an instance. `device`: what the cloud calls it there, "" where it does not say; the kernel's own name
    differs."""

    instance: str
    state: AttachmentState
    device: str = ""


@dataclass(frozen=True, slots=True)
class CloudVolume:
    """A volume as the cloud's API describes it.

    `id`: the cloud's own (vol-…, d-…; a resource name on Azure and GCP). `name`: the caller's, unique in the account's
    scope. `zones`: where it can be attached; one for a zonal volume, () where the cloud does not say.
    """

    id: str
    name: str
    kind: str
    """The cloud's class: gp3, io2, Premium_ZRS, hyperdisk-balanced-high-availability, cloud_regional_disk_auto …"""
    size_bytes: int
    zones: tuple[str, ...]
    share_max: int
    """Instances that may have it attached at once."""
    attachments: tuple[Attachment, ...] = ()
    ready: bool = True
    """False while the cloud is still creating or deleting it."""
    degraded: bool | None = None
    """Whether it acks with one replica only (GCP's degraded state); None: the cloud does not say."""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """What is asked for. None: the class's default."""

    name: str
    """1 to 63 lower-case letters, digits and hyphens, a letter first: what all four clouds take."""
    kind: str
    size_bytes: int
    """A multiple of 1 GiB."""
    zones: tuple[str, ...]
    """More than one asks for a zone-redundant volume."""
    share_max: int = 1
    """Instances that are to have it at once, at least: where a cloud knows only "shared or not", more than one gives
    the class's own maximum."""
    iops: int | None = None
    mib_s: int | None = None
    tags: tuple[tuple[str, str], ...] = ()


class VolumeApi(Protocol):
    """A cloud's block-volume API in one account and region. Obligations, by number:

    1. *Idempotent*: `create` by name (with the cloud's own token where it has one), `attach` and `detach` by pair,
       `delete` by id: repeating a call that had succeeded changes nothing and succeeds.
    2. *Waits*: a call returns when the cloud shows the change done, or raises `Unavailable` when its time is over; the
       change may then still happen, and repeating the call is how to learn.
    3. *Limits first*: what the cloud's documents forbid (a zone, a share count, a size, a class) is `Invalid` before
       anything is sent; what only the cloud knows is `Invalid` with its words.
    4. *An API error is no death*: nothing here says anything about whether an instance lives.
    5. *Quota*: an exceeded quota is `Full` with a hint that names the quota.
    6. *Never the data*: `detach(force=True)` is the only call that may interrupt a writer, and says so.

    Every method may raise `Unavailable` or `Invalid` (credentials refused included).
    """

    async def create(self, spec: VolumeSpec) -> CloudVolume:
        """Create, and wait until it can be attached.

        Raises:
            Invalid: beyond the cloud's documented limits, or a volume of that name has other properties.
            Full: a quota is exceeded.
        """
        ...

    async def attach(self, volume_id: str, instance: str) -> CloudVolume:
        """Attach, beside those that have it already, up to its share_max.

        Raises:
            NotFound: no such volume or instance.
            Invalid: the instance is in a zone that the volume does not reach, or cannot take it.
            Conflict: it is attached to as many instances as it may be.
        """
        ...

    async def detach(self, volume_id: str, instance: str, *, force: bool = False) -> CloudVolume:
        """Detach. `force` does not wait for the guest: its writes in flight may be lost or may still land.

        Raises:
            NotFound: no such volume.
            Invalid: `force`, and this cloud or class has none.
        """
        ...

    async def take_over(self, volume_id: str, victim: str, instance: str) -> CloudVolume:
        """Move the volume from `victim` to `instance` whatever `victim` does: forced detach and attach (AWS, Azure),
        or forced attach (GCP regional disks, Aliyun regional ESSD).

        Raises:
            NotFound, Invalid, Conflict: as `attach` and `detach`.
        """
        ...

    async def describe(self, volume_ids: Sequence[str] | None = None) -> Sequence[CloudVolume]:
        """Those volumes (ids that do not exist are left out), or all that this account and scope has."""
        ...

    async def delete(self, volume_id: str) -> None:
        """Delete an unattached volume; one that does not exist is passed over.

        Raises:
            Conflict: it is attached.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. Further calls are errors."""
        ...
