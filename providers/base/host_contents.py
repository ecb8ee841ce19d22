"""May this volume be written over? Only if it is empty or holds what its user calls its own."""

from __future__ import annotations

from collections.abc import Callable

from providers.base.errors import Invalid
from providers.base.volumes import BlockDevice

HEAD_BYTES = 128 << 10
"""What is looked at: partition tables, LVM labels, LUKS headers and the superblocks of ext4, XFS and btrfs all begin
below it (btrfs, the last, at 64 KiB)."""

Ours = Callable[[bytes], bool]
"""Whether a volume's first HEAD_BYTES are the caller's own."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"XFSB", "an XFS file system"),
    (1080, b"\x53\xef", "an ext file system"),
    (65536 + 64, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (512, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
)
"""Offset, bytes, name. For the message only: whatever is not ours and not empty is refused, known or not."""


def judge_contents(head: bytes, volume_id: str, ours: Ours | None) -> None:
    """`head`: the first HEAD_BYTES, or all of a smaller volume.

    Raises:
        Invalid: it is neither empty nor `ours`.
    """
    if not any(head) or (ours is not None and ours(head)):
        return
    for at, magic, name in _SIGNATURES:
        if head[at : at + len(magic)] == magic:
            what = name
            break
    else:
        what = "data that is not Yunhe's"
    raise Invalid(
        f"volume {volume_id} holds {what}",
        hint="give the broker an empty volume; if this one may be lost, zero its first 128 KiB",
    )


async def check_contents(device: BlockDevice, volume_id: str, ours: Ours | None) -> None:
    """Raises:
    Invalid: the volume is neither empty nor `ours`.
    """
    judge_contents(await device.read(0, min(HEAD_BYTES, device.size_bytes)), volume_id, ours)
