"""From a cloud's volume id to the device node on this host, by the links that the cloud's images make. Pure, but for
`list_links`.

| cloud | volume id | link |
|---|---|---|
| aws | `vol-0123…` | `by-id/nvme-Amazon_Elastic_Block_Store_vol0123…` [1] |
| gcp | the attachment's device name | `by-id/google-NAME`, `by-id/scsi-0Google_PersistentDisk_NAME` [2] |
| azure | `lunN`, or `NAME@lunN` | `azure/data/by-lun/N` [3], older images `azure/scsi1/lunN` [4] |
| aliyun | `d-SERIAL` | `by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_SERIAL` [5], `by-id/virtio-SERIAL` [6] |
| private | the link's own name below `by-id` | |

Azure's guest sees no disk name: the LUN is what the attachment was made with, so attach a volume under one LUN
everywhere. A volume that no link names is not looked for by size, order or kernel name: those change at a reboot.

[1] docs.aws.amazon.com/ebs/latest/userguide/nvme-ebs-volumes.html; aws-ebs-csi-driver, pkg/driver/mount_linux.go
[2] cloud.google.com/compute/docs/disks/disk-symlinks
[3] learn.microsoft.com/azure/virtual-machines/linux/azure-virtual-machine-utilities (azure-vm-utils)
[4] learn.microsoft.com/troubleshoot/azure/virtual-machines/linux/troubleshoot-device-names-problems
[5] alibabacloud.com/help/ack … multi-attach-and-reservation; alibaba-cloud-csi-driver, pkg/disk/device_manager.go
[6] alibabacloud.com/help/ecs/user-guide/query-the-serial-number-of-a-disk
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from providers.base.errors import Invalid, NotFound

FOLDERS = ("by-id", "azure/data/by-lun", "azure/scsi1")
"""Below /dev/disk."""


def links_of(provider: str, volume_id: str) -> tuple[str, ...]:
    """The links, below /dev/disk, that may name the volume; any of them that exist name the same device.

    Raises:
        Invalid: not such a provider's volume id.
    """
    make, pattern, example = _CLOUDS.get(provider, (None, "", ""))
    if make is None:
        raise Invalid(f"unknown provider {provider!r}", hint=f"one of: {', '.join(_CLOUDS)}")
    match = re.fullmatch(pattern, volume_id)
    if match is None:
        raise Invalid(f"{volume_id!r} is no volume of {provider} as a host sees it", hint=f"such as {example}")
    return tuple(make(match[1]))


def find_device(provider: str, volume_id: str, links: Mapping[str, str]) -> str:
    """The device node. `links`: every link below /dev/disk, and where it leads (`list_links`).

    Raises:
        Invalid: not such a provider's volume id, or its links lead to different devices.
        NotFound: no link names it.
    """
    wanted = links_of(provider, volume_id)
    found = {links[link] for link in wanted if link in links}
    if not found:
        raise NotFound(
            f"volume {volume_id} is not attached to this host",
            hint=f"attach it; expected one of {', '.join('/dev/disk/' + link for link in wanted)}",
        )
    if len(found) > 1:
        raise Invalid(
            f"volume {volume_id} is more than one device here: {', '.join(sorted(found))}",
            hint="its links contradict each other: `udevadm trigger`, or detach what does not belong",
        )
    return found.pop()


def list_links(root: Path = Path("/dev/disk")) -> dict[str, str]:
    """What `find_device` looks at. A link that leads nowhere is left out."""
    links = {}
    for folder in FOLDERS:
        try:
            names = sorted((root / folder).iterdir())
        except OSError:
            continue
        for link in names:
            try:
                links[f"{folder}/{link.name}"] = str(link.resolve(strict=True))
            except OSError:
                continue
    return links


def partitions_of(node: str, sys: Path = Path("/sys/class/block")) -> tuple[str, ...]:
    """The partitions that the kernel has found on a device."""
    folder = sys / node.rsplit("/", 1)[-1]
    return tuple(sorted(child.parent.name for child in folder.glob("*/partition")))


def is_partition(node: str, sys: Path = Path("/sys/class/block")) -> bool:
    return (sys / node.rsplit("/", 1)[-1] / "partition").exists()


def _aws(serial: str) -> Sequence[str]:
    # Since systemd 254, a second link has the namespace behind it.
    name = f"by-id/nvme-Amazon_Elastic_Block_Store_vol{serial}"
    return (name, f"{name}_1")


def _gcp(name: str) -> Sequence[str]:
    return (f"by-id/google-{name}", f"by-id/scsi-0Google_PersistentDisk_{name}")


def _azure(lun: str) -> Sequence[str]:
    return (f"azure/data/by-lun/{lun}", f"azure/scsi1/lun{lun}")


def _aliyun(serial: str) -> Sequence[str]:
    nvme = f"by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_{serial}"
    return (nvme, f"{nvme}_1", f"by-id/virtio-{serial}")


def _private(name: str) -> Sequence[str]:
    return (f"by-id/{name}",)


_NOT_A_PARTITION = r"(?!.*-part\d+$)"
_CLOUDS: dict[str, tuple[Callable[[str], Sequence[str]], str, str]] = {
    "aliyun": (_aliyun, r"d-([a-z0-9]{8,40})", "d-2ze6szkj0e6s0hsl6w5d"),
    "azure": (_azure, r"(?:[A-Za-z0-9][\w.-]{0,79}@)?lun(0|[1-9]\d?)", "lun3 or wal-1@lun3"),
    "gcp": (_gcp, _NOT_A_PARTITION + r"([a-z]([-a-z0-9]{0,61}[a-z0-9])?)", "wal-1, the attachment's device name"),
    "aws": (_aws, r"vol-([0-9a-f]{8}|[0-9a-f]{17})", "vol-0123456789abcdef0"),
    "private": (_private, _NOT_A_PARTITION + r"([A-Za-z0-9][\w.:+@=-]{0,254})", "wwn-0x600a098038303053"),
}
