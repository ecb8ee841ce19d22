"""What an emulated cloud's compute API knows: machines, disks, attachments, and the limits and durations of its lab.

    disk         CREATING ──► AVAILABLE ◄──► IN_USE            attachment   ATTACHING ──► ATTACHED
                    │             │                                              │            │
                    ▼             ▼                                              └──► DETACHING ◄──► BUSY
                  ERROR ────► DELETING ──► gone                                           │ (the guest holds it)
                                                                                          ▼
                                                                                         gone
IN_USE is not stored: a disk is in use while it has attachments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

GIB = 1 << 30


class DiskState(StrEnum):
    """See the diagram above."""

    CREATING = "creating"
    AVAILABLE = "available"
    IN_USE = "in-use"
    DELETING = "deleting"
    ERROR = "error"


class LinkState(StrEnum):
    """See the diagram above."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance. `id` is the cloud's: i-… on AWS and Aliyun, the name on Azure and GCP."""

    id: str
    name: str
    zone: str
    kind: str
    running: bool = True
    private_address: str = ""
    shares_volumes: bool = True
    """Whether its type takes a disk that others have too (Nitro, NVMe families)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """A dialect's own, as JSON; the core looks at none of it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A disk's attachment to a machine."""

    instance: str
    zone: str
    """The machine's, kept here since a machine may go before its disks do."""
    state: LinkState
    device: str = ""
    forced: bool = False
    """A detach that does not wait for the guest."""
    held: bool = False
    """A test says that the guest holds it: an ordinary detach stays BUSY meanwhile. What holds the volume daemon's
    device open counts too."""
    since_ms: int = 0
    """Wall clock, when the attachment was asked for."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """A dialect's own (LUN, device name …)."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """What a dialect asks for. `id`: unique among the lab's disks, letters, digits, - and _ (it is the volume daemon's
    id too)."""

    id: str
    name: str
    kind: str
    size_bytes: int
    zones: tuple[str, ...]
    share_max: int = 1
    iops: int | None = None
    mib_s: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """A dialect's own, as JSON; the core looks at none of it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as it is now. `status` is what to show; `state` leaves IN_USE out."""

    spec: DiskSpec
    state: DiskState
    created_ms: int
    """Wall clock."""
    links: tuple[Link, ...] = ()
    degraded: bool = False
    """Acks with one replica only (GCP); set by a test."""
    version: int = 1
    """Grows with each change: for ETags and fingerprints."""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def status(self) -> DiskState:
        return DiskState.IN_USE if self.state is DiskState.AVAILABLE and self.links else self.state

    def link(self, instance: str) -> Link | None:
        """Its attachment to that machine."""
        return next((link for link in self.links if link.instance == instance), None)

    def with_link(self, link: Link) -> Disk:
        """With that in the place of its machine's attachment."""
        return replace(self, links=tuple(link if other.instance == link.instance else other for other in self.links))

    def without(self, instance: str) -> Disk:
        """Without an attachment to that machine."""
        return replace(self, links=tuple(link for link in self.links if link.instance != instance))


class Backing(Protocol):
    """Real volumes behind the disks; every call may be repeated. Raises `Unavailable` for now, other kinds for good."""

    def create(self, disk: Disk) -> None: ...

    def attach(self, disk: Disk, zone: str) -> None: ...

    def detach(self, disk: Disk, zone: str) -> None:
        """Open handles in that zone are cut."""
        ...

    def is_open(self, disk: Disk, zone: str) -> bool:
        """Whether anybody in that zone holds it open."""
        ...

    def delete(self, disk: Disk) -> None: ...


@dataclass(frozen=True, slots=True)
class Durations:
    """How long transitions take, milliseconds. Real clouds take seconds; short here so that tests and drills do not
    wait for nothing, and longer where a drill asks for it."""

    create_ms: float = 20
    attach_ms: float = 20
    detach_ms: float = 20
    delete_ms: float = 20


@dataclass(frozen=True, slots=True)
class Quotas:
    """What the account may have."""

    disks_max: int = 1000
    gib_max: int = 100 * 1024
    disks_per_instance_max: int = 27
    """EC2's Nitro limit of attachments shared with network interfaces is 28; one is the root's."""


def disk_plain(disk: Disk) -> dict[str, Any]:
    """As JSON."""
    return asdict(disk)


def disk_of(plain: Mapping[str, Any]) -> Disk:
    """From `disk_plain`."""
    spec = DiskSpec(**{**plain["spec"], "zones": tuple(plain["spec"]["zones"])})
    links = tuple(Link(**{**link, "state": LinkState(link["state"])}) for link in plain["links"])
    return Disk(**{**plain, "spec": spec, "state": DiskState(plain["state"]), "links": links})
