"""What a control dialect is given, and the machines a lab starts with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from providers.base.clock import Clock, Rng
from providers.lab.compute import Compute
from providers.lab.compute_state import Machine
from providers.lab.wire import Reply, Request
from providers.lab.zones_dns import DnsZones

MACHINE_TYPES = {
    "aliyun": "ecs.g7.xlarge",
    "aws": "m7g.xlarge",
    "azure": "Standard_D4s_v5",
    "gcp": "n2-standard-4",
    "private": "host",
}
"""The reference machine of each cloud (facts: 4 vCPU, 16 GiB)."""

_ID_PREFIX = {"aliyun": "i-", "aws": "i-"}
"""Where a machine's id is the cloud's own; elsewhere it is the name."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """One emulated cloud's control API, behind its dialect."""

    region: str
    zones: tuple[str, ...]
    compute: Compute
    dns: DnsZones
    credentials: Mapping[str, Any]
    """The credentials file's content: the only ones that are let in."""
    clock: Clock
    rng: Rng
    page_max: int = 1000
    """Rows in one page of a listing at most. Real clouds give 100 to 1,000; a test sets it low, and paging shows."""
    endpoint: str = ""
    """The server's own base URL, as clients reach it: for links in answers."""


class ControlDialect(Protocol):
    """One cloud's control protocols (compute and DNS) over the cores."""

    def __init__(self, plane: ControlPlane) -> None: ...

    def answer(self, request: Request) -> Reply:
        """Check the signature, act, answer. Blocks on file I/O; never raises for what a client can cause."""
        ...

    def error(self, status: int, code: str, message: str) -> Reply:
        """An error in this cloud's own shape: for injected faults and for what the server itself refuses."""
        ...

    def verb(self, request: Request) -> str:
        """The API's name of what is asked for (AttachVolume, disks.insert …), "" when there is none. Fault rules match
        it, since some clouds send every call to one path."""
        ...


def machine_id(provider: str, region: str, name: str) -> str:
    """The same for the same name: a lab that is made anew has the machines it had."""
    digest = hashlib.sha256(f"{provider}/{region}/{name}".encode()).hexdigest()
    return _ID_PREFIX[provider] + digest[:17] if provider in _ID_PREFIX else name


def seed_machines(provider: str, region: str, zones: Sequence[str], per_zone: int) -> list[Machine]:
    """`per_zone` machines in each zone, named `vm-<zone>-<number>`; the first of all has 10.0.0.4."""
    machines = []
    for at, zone in enumerate(zones):
        for number in range(1, per_zone + 1):
            name = f"vm-{zone}-{number}"
            address = f"10.0.{at}.{3 + number}"
            found = Machine(machine_id(provider, region, name), name, zone, MACHINE_TYPES[provider], True, address)
            machines.append(found)
    return machines
