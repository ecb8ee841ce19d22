"""Real device nodes for the fencing suite: YUNHE_FENCED_NODES names several, separated by spaces, that show one and the
same unit of 1 MiB to as many initiators. What is on it is lost.

One machine with Linux's own SCSI target (tcm_loop: one loopback port an initiator) gives such nodes; so does an array
that maps a unit to several ports of this host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from providers.base import host_ioctl
from providers.base.host_device import LinuxKernel, open_device
from providers.base.volumes import BLOCK_BYTES, BlockDevice, Volume

VARIABLE = "YUNHE_FENCED_NODES"
ABORTS = "YUNHE_FENCED_NODES_ABORT"
"""`no` where the device's preempt does not end its victim's commands."""
_KEY = 0xC1EA


def named() -> bool:
    return bool(os.environ.get(VARIABLE))


def aborts() -> bool:
    return os.environ.get(ABORTS) != "no"


class DeviceVolumes:
    """`BlockVolumes` for the suite: each handle is opened at the next node."""

    def __init__(self) -> None:
        self._nodes = os.environ[VARIABLE].split()
        self._opened: list[BlockDevice] = []

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        """Empty the unit, and free it of whatever an earlier test left."""
        kernel = _opened(self._nodes[0])
        try:
            # NVMe wants a change of key named as one, where an earlier test has left this host registered; and kernels
            # before 6.9 fail a command that meets a unit attention.
            _insist(kernel, host_ioctl.IOC_PR_REGISTER, *(host_ioctl.register(_KEY, replace=r) for r in (False, True)))
            _insist(kernel, host_ioctl.IOC_PR_CLEAR, host_ioctl.clear(_KEY))
            assert kernel.size_bytes() == size_bytes, f"the unit has to have {size_bytes} bytes"
        finally:
            kernel.close()
        device = await open_device(self._nodes[0], volume_id, aborts=False)
        await device.write(0, bytes(size_bytes))
        await device.close()
        return Volume(volume_id, size_bytes, tuple(zones), ())

    async def attach(self, volume_id: str, zone: str) -> Volume:
        return Volume(volume_id, 256 * BLOCK_BYTES, (zone,), (zone,))

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        node = self._nodes[len(self._opened)]
        self._opened.append(await open_device(node, volume_id, aborts=aborts()))
        return self._opened[-1]

    async def close_all(self) -> None:
        """What a test that failed has left open."""
        for device in self._opened:
            await device.close()


def _insist(kernel: LinuxKernel, request: int, *arguments: bytearray) -> None:
    for _ in range(4):
        if any(kernel.ioctl(request, bytearray(argument)) == 0 for argument in arguments):
            return
    raise AssertionError(f"{request:#x} is refused")


def _opened(node: str) -> LinuxKernel:
    return LinuxKernel(Path(node))
