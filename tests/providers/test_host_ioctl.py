"""The kernel's bytes: numbers as the C compiler makes them of the kernel's headers, structures as others send them, and
what each result means."""

from __future__ import annotations

import asyncio
import errno
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from providers.base import host_ioctl as wire
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.base.fence import Fence
from providers.base.host_reservations import Bus, HostReservations, KernelReservations
from tests.conformance.volumes_kernel import Disk, ModelKernel

KEY, VICTIM = 0x1122334455667788, 0xABC

HEADERS = """
#include <stdio.h>
#include <stddef.h>
#include <linux/pr.h>
#include <linux/nvme_ioctl.h>
#include <linux/fs.h>
#include <scsi/sg.h>
#define SHOW(name) printf(#name " %lu\\n", (unsigned long)(name))
int main(void) {
  SHOW(IOC_PR_REGISTER); SHOW(IOC_PR_RESERVE); SHOW(IOC_PR_RELEASE); SHOW(IOC_PR_PREEMPT);
  SHOW(IOC_PR_PREEMPT_ABORT); SHOW(IOC_PR_CLEAR); SHOW(NVME_IOCTL_ID); SHOW(NVME_IOCTL_IO_CMD);
  SHOW(BLKGETSIZE64); SHOW(BLKSSZGET); SHOW(SG_IO);
#ifdef IOC_PR_READ_KEYS
  SHOW(IOC_PR_READ_KEYS); SHOW(IOC_PR_READ_RESERVATION);
#endif
  printf("sg %zu %zu %zu %zu\\n", sizeof(struct sg_io_hdr), offsetof(struct sg_io_hdr, status),
         offsetof(struct sg_io_hdr, sb_len_wr), offsetof(struct sg_io_hdr, host_status));
  printf("nvme %zu %zu %zu\\n", sizeof(struct nvme_passthru_cmd), offsetof(struct nvme_passthru_cmd, addr),
         offsetof(struct nvme_passthru_cmd, cdw10));
  printf("preempt %zu %zu %zu\\n", offsetof(struct pr_preempt, old_key), offsetof(struct pr_preempt, new_key),
         offsetof(struct pr_preempt, type));
  return 0;
}
"""


def test_numbers_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/pr.h").exists():
        pytest.skip("no C compiler, or no kernel headers")
    (tmp_path / "h.c").write_text(HEADERS)
    subprocess.run([compiler, str(tmp_path / "h.c"), "-o", str(tmp_path / "h")], check=True, timeout=60)
    out = subprocess.run([str(tmp_path / "h")], check=True, capture_output=True, text=True, timeout=10).stdout
    for line in out.splitlines():
        name, *values = line.split()
        if name == "sg":
            assert values == ["88", "64", "67", "68"]
        elif name == "nvme":
            assert values == ["72", "24", "40"]
        elif name == "preempt":
            assert values == ["0", "8", "16"]
        else:
            assert getattr(wire, name) == int(values[0]), name
    # Of Linux 6.19 (include/uapi/linux/pr.h); the headers here may be older.
    assert (wire.IOC_PR_READ_KEYS, wire.IOC_PR_READ_RESERVATION) == (0xC01070CE, 0x801070CF)


def test_commands_put_the_senders_key_and_the_victims_where_the_drivers_expect_them() -> None:
    # sd.c and pr.c send old_key as the sender's own key, new_key as the one acted upon.
    assert wire.preempt(KEY, VICTIM) == struct.pack("=QQII", KEY, VICTIM, 1, 0)
    assert wire.reserve(KEY) == struct.pack("=QII", KEY, 1, 0)
    assert wire.register(KEY, replace=False) == struct.pack("=QQII", 0, KEY, 1, 0)
    assert wire.register(KEY, replace=True) == struct.pack("=QQII", 1, KEY, 1, 0)
    assert wire.clear(KEY) == struct.pack("=QII", KEY, 0, 0)


@pytest.mark.parametrize("extended", [False, True])
def test_reservation_report_is_asked_for_as_nvme_cli_does(extended: bool) -> None:
    command = wire.reservation_report(1, 0x1000, extended=extended, timeout_ms=0)
    # nvme-cli 2.3, `nvme resv-report -n 1 [-e]`, recorded at its ioctl: opcode 0e, 4096 bytes, cdw10 3ff, cdw11 EDS.
    assert (command[0], struct.unpack_from("<I", command, 4)[0]) == (0x0E, 1)
    assert struct.unpack_from("<Q", command, 24)[0] == 0x1000
    assert struct.unpack_from("<III", command, 36) == (4096, 0x3FF, int(extended))


def test_report_is_read_as_documented() -> None:
    # Alibaba Cloud's page on NVMe reservations shows `nvme resv-report -c 1`: gen 3, rtype 1, regctl 1, ptpls 1,
    # cntlid ffff, rcsts 1, rkey 4745d0c5cd9a2fa4, hostid 4297c540000d….
    head = struct.pack("<IB H xx B", 3, 1, 1, 1)
    entry = struct.pack("<HB5xQ", 0xFFFF, 1, 0x4745D0C5CD9A2FA4) + bytes.fromhex("4297c540000d") + bytes(42)
    report = wire.parse_report(head.ljust(64, b"\0") + entry, extended=True)
    assert report == wire.Report(3, 1, 0x4745D0C5CD9A2FA4, (0x4745D0C5CD9A2FA4,))
    short = struct.pack("<HB5xQQ", 1, 0, 77, KEY) + struct.pack("<HB5xQQ", 2, 1, 78, VICTIM)
    report = wire.parse_report(struct.pack("<IBH", 9, 1, 2).ljust(24, b"\0") + short, extended=False)
    assert report == wire.Report(9, 1, VICTIM, (KEY, VICTIM))
    assert wire.parse_report(bytes(4096), extended=True) == wire.Report(0, 0, None, ())
    with pytest.raises(Unavailable):
        wire.parse_report(struct.pack("<IBH", 9, 1, 200).ljust(4096, b"\0"), extended=True)


@pytest.mark.parametrize("result", [0x18, 0x83, 0x4083, 0x6083])
def test_conflicts_of_every_kernel_are_conflicts(result: int) -> None:
    """PR_STS_RESERVATION_CONFLICT since Linux 6.3; SCSI's status, and NVMe's with the more and do-not-retry bits,
    before."""
    assert wire.is_conflict(result)


@pytest.mark.parametrize("result", [0x2, 0xE0000, 0xF0000, 0x10000, 0x8000002, 0x4002])
def test_other_failures_are_no_conflict(result: int) -> None:
    assert not wire.is_conflict(result)


def reservations(bus: Bus, disk: Disk | None = None, *, modern: bool = True) -> tuple[ModelKernel, KernelReservations]:
    disk = disk or Disk(1 << 20, bus)
    kernel = ModelKernel(disk, f"host-{len(disk.opened)}", modern=modern)
    return kernel, KernelReservations(kernel.ioctl, bus, "volume v", aborts=True, timeout_ms=1000)


def test_device_without_reservations_is_invalid_and_says_what_to_do() -> None:
    _, plain = reservations(Bus.OTHER)
    for call in (plain.read, lambda: plain.register(KEY)):
        with pytest.raises(Invalid) as refused:
            call()
        assert "cannot be fenced" in str(refused.value) and refused.value.hint


def test_reading_without_the_right_to_is_invalid_with_the_capability_in_the_hint() -> None:
    kernel, old = reservations(Bus.SCSI, modern=False)
    kernel.forbidden.add(wire.SG_IO)
    with pytest.raises(Invalid) as refused:
        old.read()
    assert "CAP_SYS_RAWIO" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, Unavailable), (errno.ENODEV, NotFound), (errno.ENXIO, NotFound), (errno.EPERM, Invalid)],
)
def test_failing_ioctls_are_the_contracts_kinds(code: int, kind: type[Exception]) -> None:
    def failing(request: int, argument: bytearray) -> int:
        raise OSError(code, "failed")

    with pytest.raises(kind):
        KernelReservations(failing, Bus.NVME, "volume v", aborts=True, timeout_ms=1).reserve(KEY)


@pytest.mark.parametrize("modern", [True, False])
def test_unit_attention_is_met_once_and_the_command_repeated(modern: bool) -> None:
    disk = Disk(1 << 20, Bus.SCSI)
    kernel, one = reservations(Bus.SCSI, disk, modern=modern)
    assert one.register(KEY) and one.reserve(KEY)
    _, other = reservations(Bus.SCSI, disk, modern=modern)
    assert other.register(VICTIM) and other.preempt(VICTIM, KEY)
    assert disk.attentions == {kernel.host}
    before = len(kernel.calls)
    assert one.reserve(KEY) is False  # a conflict, behind the attention
    assert len(kernel.calls) == before + 2
    assert one.read().holder == VICTIM


def test_command_that_fails_twice_is_unavailable() -> None:
    calls = []

    def failing(request: int, argument: bytearray) -> int:
        calls.append(request)
        return 0x2

    with pytest.raises(Unavailable):
        KernelReservations(failing, Bus.SCSI, "volume v", aborts=False, timeout_ms=1).reserve(KEY)
    assert calls == [wire.IOC_PR_RESERVE] * 2


def test_host_registered_from_an_earlier_life_registers_anew() -> None:
    disk = Disk(1 << 20, Bus.NVME)
    kernel, earlier = reservations(Bus.NVME, disk)
    assert earlier.register(KEY) and earlier.reserve(KEY)
    later = KernelReservations(kernel.ioctl, Bus.NVME, "volume v", aborts=True, timeout_ms=1000)
    assert later.register(VICTIM)
    state = later.read()
    assert (state.holder, state.keys) == (VICTIM, (VICTIM,))


def test_preempt_and_abort_is_used_only_where_it_is_known_to_work() -> None:
    for aborts, request in ((True, wire.IOC_PR_PREEMPT_ABORT), (False, wire.IOC_PR_PREEMPT)):
        disk = Disk(1 << 20, Bus.SCSI)
        _, one = reservations(Bus.SCSI, disk)
        one.register(VICTIM)
        one.reserve(VICTIM)
        kernel = ModelKernel(disk, "other", modern=True)
        other = KernelReservations(kernel.ioctl, Bus.SCSI, "volume v", aborts=aborts, timeout_ms=1000)
        other.register(KEY)
        other.preempt(KEY, VICTIM)
        assert kernel.calls[-1] == (request, bytes(struct.pack("=QQII", KEY, VICTIM, 1, 0)))
        other.release(KEY)


def test_reservation_that_lets_every_registrant_write_is_no_fence() -> None:
    async def main() -> None:
        for kind in (3, 4, 5, 6):
            disk = Disk(1 << 20, Bus.NVME)
            kernel, one = reservations(Bus.NVME, disk)
            one.register(KEY)
            kernel.ioctl(wire.IOC_PR_RESERVE, bytearray(struct.pack("=QII", KEY, kind, 0)))
            with ThreadPoolExecutor(1) as executor:
                fence = Fence(HostReservations(one, executor, "volume v", 1000), "v")
                with pytest.raises(Invalid, match="does not fence"):
                    await fence.state()

    asyncio.run(main())
