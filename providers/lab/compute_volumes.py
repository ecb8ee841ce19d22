"""The volume daemon behind a control server's disks: creating, attaching and detaching a disk creates, attaches and
detaches the daemon's volume of that id, in the machine's zone. A detach cuts the handles that are open there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound
from providers.base.registry import VolumesAddress
from providers.lab.compute_state import Disk
from providers.lab.volumes_client import LabBlockVolumes

T = TypeVar("T")


class DaemonVolumes:
    """`Backing` over the daemon at `address` (`unix:PATH` or `tcp:HOST:PORT`). Each call makes a loop and a connection
    of its own: they are few, and come from threads."""

    def __init__(self, address: str, clock: Clock) -> None:
        self._volumes = LabBlockVolumes(VolumesAddress("lab", "", address), clock=clock)

    def create(self, disk: Disk) -> None:
        # The daemon counts zones, the cloud instances.
        share_max = min(disk.spec.share_max, len(disk.spec.zones))
        size, zones = disk.spec.size_bytes, disk.spec.zones
        self._run(lambda volumes: volumes.create(disk.id, size_bytes=size, zones=zones, share_max=share_max))

    def attach(self, disk: Disk, zone: str) -> None:
        self._run(lambda volumes: volumes.attach(disk.id, zone))

    def detach(self, disk: Disk, zone: str) -> None:
        try:
            self._run(lambda volumes: volumes.detach(disk.id, zone))
        except NotFound:
            pass  # nothing is left to detach

    def is_open(self, disk: Disk, zone: str) -> bool:
        opened = self._run(lambda volumes: volumes.open_zones(disk.id))
        return zone in opened

    def delete(self, disk: Disk) -> None:
        try:
            self._run(lambda volumes: volumes.delete(disk.id))
        except Invalid:
            # A crash between the API's detach and the daemon's: the API's word is the truth.
            for zone in disk.spec.zones:
                self.detach(disk, zone)
            self._run(lambda volumes: volumes.delete(disk.id))

    def _run(self, ask: Callable[[LabBlockVolumes], Awaitable[T]]) -> T:
        async def main() -> T:
            return await ask(self._volumes)

        return asyncio.run(main())
