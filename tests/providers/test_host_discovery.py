"""A cloud's volume id leads to one device, or to a refusal that says why; never to a guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.base.errors import Invalid, NotFound
from providers.base.host_contents import HEAD_BYTES, judge_contents
from providers.base.host_discovery import find_device, is_partition, list_links, partitions_of

LINKS = {
    # AWS, Nitro
    "by-id/nvme-Amazon_Elastic_Block_Store_vol05ece746e40ff492f": "/dev/nvme1n1",
    "by-id/nvme-Amazon_Elastic_Block_Store_vol05ece746e40ff492f_1": "/dev/nvme1n1",
    "by-id/nvme-Amazon_Elastic_Block_Store_vol05ece746e40ff492f-part1": "/dev/nvme1n1p1",
    "by-id/nvme-nvme.1d0f-766f6c-00000001": "/dev/nvme1n1",
    # GCP, NVMe and SCSI
    "by-id/google-wal-1": "/dev/nvme0n2",
    "by-id/google-wal-1-part1": "/dev/nvme0n2p1",
    "by-id/scsi-0Google_PersistentDisk_wal-2": "/dev/sdb",
    "by-id/google-wal-2": "/dev/sdb",
    "by-id/google-torn": "/dev/sdc",
    "by-id/scsi-0Google_PersistentDisk_torn": "/dev/sdd",
    # Azure, new images and old
    "azure/data/by-lun/3": "/dev/nvme0n5",
    "azure/scsi1/lun4": "/dev/sde",
    "azure/scsi1/lun13": "/dev/sdf",
    # Aliyun, NVMe and virtio
    "by-id/nvme-Alibaba_Cloud_Elastic_Block_Storage_2ze6szkj0e6s0hsl6w5d": "/dev/nvme2n1",
    "by-id/virtio-wz9cu3ctp6aj1iagco4h": "/dev/vdc",
    # A site of one's own
    "by-id/wwn-0x600a098038303053": "/dev/sdg",
}


@pytest.mark.parametrize(
    ("provider", "volume", "node"),
    [
        ("aws", "vol-05ece746e40ff492f", "/dev/nvme1n1"),
        ("gcp", "wal-1", "/dev/nvme0n2"),
        ("gcp", "wal-2", "/dev/sdb"),
        ("azure", "lun3", "/dev/nvme0n5"),
        ("azure", "wal-1@lun4", "/dev/sde"),
        ("aliyun", "d-2ze6szkj0e6s0hsl6w5d", "/dev/nvme2n1"),
        ("aliyun", "d-wz9cu3ctp6aj1iagco4h", "/dev/vdc"),
        ("private", "wwn-0x600a098038303053", "/dev/sdg"),
    ],
)
def test_each_clouds_id_is_found_by_the_links_of_its_images(provider: str, volume: str, node: str) -> None:
    assert find_device(provider, volume, LINKS) == node


@pytest.mark.parametrize(
    ("provider", "volume"),
    [
        ("aws", "vol-05ece746e40ff4920"),
        ("gcp", "wal"),
        ("azure", "lun1"),
        ("aliyun", "d-2ze6szkj0e6s0hsl6w5e"),
        ("private", "wwn-0x1"),
    ],
)
def test_volume_that_no_link_names_is_not_found_and_the_hint_names_the_link(provider: str, volume: str) -> None:
    with pytest.raises(NotFound) as missing:
        find_device(provider, volume, LINKS)
    assert "/dev/disk/" in (missing.value.hint or "")


@pytest.mark.parametrize(
    ("provider", "volume"),
    [
        ("aws", "05ece746e40ff492f"),
        ("aws", "vol-05ece746e40ff492f-part1"),
        ("aws", "vol-*"),
        ("gcp", "../wal-1"),
        ("gcp", "wal-1-part1"),
        ("gcp", "Wal"),
        ("azure", "wal-1"),
        ("azure", "lun03"),
        ("azure", "lun100"),
        ("aliyun", "vol-1"),
        ("private", "a/b"),
        ("private", "scsi-x-part2"),
        ("mars", "x"),
    ],
)
def test_what_is_no_volume_id_there_is_invalid(provider: str, volume: str) -> None:
    with pytest.raises(Invalid) as refused:
        find_device(provider, volume, LINKS)
    assert refused.value.hint


def test_links_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(Invalid, match="more than one device here: /dev/sdc, /dev/sdd"):
        find_device("gcp", "torn", LINKS)


def test_links_are_read_with_where_they_lead_and_dangling_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "by-id").mkdir()
    (tmp_path / "azure/data/by-lun").mkdir(parents=True)
    node = tmp_path / "sdb"
    node.touch()
    (tmp_path / "by-id/google-wal-1").symlink_to("../sdb")
    (tmp_path / "by-id/google-gone").symlink_to("../sdz")
    (tmp_path / "azure/data/by-lun/3").symlink_to(node)
    assert list_links(tmp_path) == {"by-id/google-wal-1": str(node), "azure/data/by-lun/3": str(node)}
    assert list_links(tmp_path / "nowhere") == {}


def test_partitions_are_told_from_whole_devices(tmp_path: Path) -> None:
    (tmp_path / "sdb/sdb1").mkdir(parents=True)
    (tmp_path / "sdb/sdb1/partition").write_text("1\n")
    (tmp_path / "sdb/queue").mkdir()
    (tmp_path / "sdb1").symlink_to("sdb/sdb1")
    assert partitions_of("/dev/sdb", tmp_path) == ("sdb1",)
    assert is_partition("/dev/sdb1", tmp_path) and not is_partition("/dev/sdb", tmp_path)
    assert partitions_of("/dev/sdc", tmp_path) == ()


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [
        (0, b"XFSB", "XFS"),
        (1080, b"\x53\xef", "ext"),
        (65600, b"_BHRfS_M", "btrfs"),
        (512, b"EFI PART", "GPT"),
        (512, b"LABELONE", "LVM"),
        (510, b"\x55\xaa", "partition table"),
        (HEAD_BYTES - 1, b"x", "not Yunhe's"),
    ],
)
def test_volume_with_anything_foreign_on_it_is_refused_by_its_name(at: int, magic: bytes, name: str) -> None:
    head = bytearray(HEAD_BYTES)
    judge_contents(bytes(head), "v", None)
    head[at : at + len(magic)] = magic
    for ours in (None, lambda head: False):
        with pytest.raises(Invalid, match=name):
            judge_contents(bytes(head), "v", ours)
    judge_contents(bytes(head), "v", lambda seen: seen == bytes(head))
