"""`BlockVolumes` of a real host: the cloud's volumes that are attached to it. The control half (create, attach …) is
the cloud's API (`volume_api.py`) and is done beforehand, since it is down in just the outages that matter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from providers.base.errors import Invalid
from providers.base.host_contents import Ours, check_contents
from providers.base.host_device import DeviceSettings, HostBlockDevice, open_device
from providers.base.host_discovery import find_device, is_partition, links_of, list_links, partitions_of
from providers.base.ready_volumes import ReadyVolumes
from providers.base.volumes import BlockDevice

ABORTS: Mapping[str, bool] = {"aws": True, "aliyun": True}
"""Clouds whose volumes end a victim's writes when preempted: NVMe's preempt-and-abort. Azure's and GCP's lists of
commands lack it (`facts`: clouds.md 2b, protocols.md 2); of a private site's devices nothing is known."""

Open = Callable[[str, str, bool], Awaitable[HostBlockDevice]]
"""(node, volume id, aborts): opens the device."""


class HostBlockVolumes(ReadyVolumes):
    """One cloud's volumes on this host. `devices`: their ids here, by name (`registry.VolumesAddress`); `ours`: see
    `registry.open_volumes`."""

    def __init__(
        self,
        provider: str,
        *,
        devices: Mapping[str, str] | None = None,
        ours: Ours | None = None,
        settings: DeviceSettings | None = None,
        links: Callable[[], Mapping[str, str]] = list_links,
        opener: Open | None = None,
    ) -> None:
        self._provider = provider
        self._devices = dict(devices or {})
        self._ours = ours
        self._settings = settings or DeviceSettings()
        self._links = links
        self._open = opener or self._open_node

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        """Open an attached volume. `zone` is this host's and is not looked at.

        Raises:
            NotFound: it is not attached here.
            Unavailable: it is mounted, or another process of this host has it.
            Invalid: a malformed id, a volume with partitions or with something on it that is not ours, one that cannot
                be fenced, or no permission.
        """
        here = self._devices.get(volume_id, volume_id)
        links_of(self._provider, here)
        node = find_device(self._provider, here, await asyncio.to_thread(self._links))
        if is_partition(node):
            raise Invalid(f"volume {volume_id} ({node}) is a partition", hint="name the whole volume")
        if parts := partitions_of(node):
            raise Invalid(
                f"volume {volume_id} ({node}) has partitions: {', '.join(parts)}",
                hint="give the broker an empty volume",
            )
        device = await self._open(node, volume_id, ABORTS.get(self._provider, False))
        try:
            await check_contents(device, volume_id, self._ours)
            await device.check_fence()
        except BaseException:
            await device.close()
            raise
        return device

    async def _open_node(self, node: str, volume_id: str, aborts: bool) -> HostBlockDevice:
        return await open_device(node, volume_id, aborts=aborts, settings=self._settings)

    async def close(self) -> None:
        """Nothing to release: handles are closed by whoever opened them."""

    def _elsewhere(self, done: str) -> Invalid:
        return Invalid(
            f"volumes of {self._provider} cannot be {done} from a host's devices",
            hint="the cloud's volume API does that beforehand (`registry.open_volume_api`)",
        )
