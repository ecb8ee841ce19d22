"""SCSI bytes, against those that sg3-utils 1.46 sends (recorded at its SG_IO calls) and the standards' tables."""

from __future__ import annotations

import pytest

from providers.base import scsi
from providers.base.errors import Unavailable
from providers.base.scsi import HeldReservation, PrIn, PrOut, Sense, Status, Verdict

KEY = 0x1122334455667788


@pytest.mark.parametrize(
    ("ours", "sg3_utils"),
    [
        (scsi.persistent_reserve_in(PrIn.READ_KEYS), "5e000000000000200000"),
        (scsi.persistent_reserve_in(PrIn.READ_RESERVATION), "5e010000000000200000"),
        (scsi.persistent_reserve_in(PrIn.REPORT_CAPABILITIES), "5e020000000000200000"),
        (scsi.read_capacity_16(), "9e100000000000000000000000200000"),
        (scsi.synchronize_cache_16(), "91000000000000000000000000000000"),
        (scsi.test_unit_ready(), "000000000000"),
        (scsi.report_luns(0x2000), "a00000000000000020000000"),
        (scsi.inquiry(0x80), "12018000fc00"),
        (scsi.inquiry(None, 36), "120000002400"),
        (scsi.mode_sense_6(8), "1a080800fc00"),
        # From SBC-3: tables 63 (READ (16)) and 101 (WRITE (16)).
        (scsi.read_16(0x0102030405060708, 0x11), "88000102030405060708000000110000"),
        (scsi.write_16(0x0102030405060708, 0x11, fua=True), "8a080102030405060708000000110000"),
        (scsi.write_16(8, 1, fua=False), "8a000000000000000008000000010000"),
    ],
)
def test_commands_that_ask_read_and_write_are_the_bytes_of_others(ours: bytes, sg3_utils: str) -> None:
    assert ours.hex() == sg3_utils


@pytest.mark.parametrize(
    ("action", "keys", "persist", "command", "parameters"),
    [
        (PrOut.REGISTER_AND_IGNORE_EXISTING_KEY, (0, KEY), False, "5f06", "00" * 8 + "1122334455667788" + "00" * 8),
        (
            PrOut.REGISTER_AND_IGNORE_EXISTING_KEY,
            (0, KEY),
            True,
            "5f06",
            "00" * 8 + "1122334455667788" + "0000000001000000",
        ),
        (PrOut.RESERVE, (KEY, 0), False, "5f0101", "1122334455667788" + "00" * 16),
        (PrOut.RELEASE, (KEY, 0), False, "5f0201", "1122334455667788" + "00" * 16),
        (PrOut.CLEAR, (KEY, 0), False, "5f03", "1122334455667788" + "00" * 16),
        (PrOut.PREEMPT, (KEY, 0xABC), False, "5f0401", "1122334455667788" + "0000000000000abc" + "00" * 8),
        (PrOut.PREEMPT_AND_ABORT, (KEY, 0xABC), False, "5f0501", "1122334455667788" + "0000000000000abc" + "00" * 8),
    ],
)
def test_reservation_commands_are_the_bytes_of_sg_persist(
    action: PrOut, keys: tuple[int, int], persist: bool, command: str, parameters: str
) -> None:
    ours = scsi.persistent_reserve_out(action, key=keys[0], action_key=keys[1], persist=persist)
    assert ours[0].hex() == command.ljust(10, "0") + "0000001800"
    assert ours[1].hex() == parameters


def test_replies_are_read_as_the_standard_lays_them_out() -> None:
    # SPC-4, tables 203 and 205: generation, additional length, then keys or the one reservation.
    assert scsi.parse_keys(bytes.fromhex("00000007 00000010 0000000000000001 ffffffffffffffff" + "00" * 40)) == (
        7,
        (1, (1 << 64) - 1),
    )
    assert scsi.parse_keys(bytes(8)) == (0, ())
    held = bytes.fromhex("00000002 00000010 1122334455667788 00000000 00 01 0000")
    assert scsi.parse_reservation(held) == HeldReservation(2, KEY, 1)
    assert scsi.parse_reservation(bytes.fromhex("0000000200000000") + bytes(100)) == HeldReservation(2, None, 0)
    assert scsi.parse_capacity(bytes.fromhex("00000000000007ff 00000200") + bytes(20)) == (2048, 512)
    assert scsi.parse_persists(bytes.fromhex("0008 01 80 ea01 0000"))
    assert not scsi.parse_persists(bytes.fromhex("0008 00 80 ea01 0000"))
    assert scsi.parse_luns(bytes.fromhex("00000010 00000000 0001000000000000 4123000000000000")) == (1, 0x123)
    assert scsi.parse_serial(b"\0\x80\0\x06 wal-1") == "wal-1"
    assert scsi.parse_caching(bytes.fromhex("17001000 0812 04" + "00" * 17)) == (True, True)
    assert scsi.parse_caching(bytes.fromhex("17000000 0812 00" + "00" * 17)) == (False, False)
    # One designator of the unit (NAA), one of the port (relative port, passed over), one text.
    page = (
        bytes.fromhex("0083 001e" + "01030008" + "600a098038303053" + "01140004" + "00000001" + "02010006") + b"wal-1 "
    )
    assert scsi.parse_designators(page) == ("600a098038303053", "wal-1")
    assert scsi.parse_transfer_blocks_max(bytes(8) + bytes.fromhex("00002000")) == 0x2000
    assert scsi.parse_transfer_blocks_max(bytes(64)) is None and scsi.parse_transfer_blocks_max(b"") is None


@pytest.mark.parametrize("cut", [0, 4, 7])
def test_cut_replies_are_no_answer_rather_than_a_wrong_one(cut: int) -> None:
    for parse in (scsi.parse_keys, scsi.parse_reservation, scsi.parse_capacity):
        with pytest.raises(Unavailable):
            parse(bytes(cut))
    with pytest.raises(Unavailable):  # more keys than bytes
        scsi.parse_keys(bytes.fromhex("00000001 00000010 0000000000000001"))
    with pytest.raises(Unavailable):
        scsi.parse_reservation(bytes.fromhex("00000001 00000010 0000000000000001"))


@pytest.mark.parametrize(
    ("status", "sense", "verdict"),
    [
        (0, "", Verdict.GOOD),
        (0x18, "", Verdict.CONFLICT),
        (8, "", Verdict.BUSY),
        (0x28, "", Verdict.BUSY),
        (0x40, "", Verdict.FAILED),
        (2, "70000600000000" + "0a00000000" + "2a03", Verdict.UNREGISTERED),
        (2, "70000600000000" + "0a00000000" + "2a05", Verdict.UNREGISTERED),
        (2, "70000600000000" + "0a00000000" + "2a04", Verdict.ATTENTION),
        (2, "70000600000000" + "0a00000000" + "2900", Verdict.ATTENTION),
        (2, "7206290000000000", Verdict.ATTENTION),
        (2, "72062a0500000000", Verdict.UNREGISTERED),
        (2, "7205240000000000", Verdict.UNSUPPORTED),
        (2, "7205200000000000", Verdict.UNSUPPORTED),
        (2, "7205250000000000", Verdict.GONE),
        (2, "7207270700000000", Verdict.NO_ROOM),
        (2, "7207270000000000", Verdict.READ_ONLY),
        (2, "7203110000000000", Verdict.FAILED),
        (2, "720b000000000000", Verdict.FAILED),
        (2, "7202040100000000", Verdict.BUSY),
        (2, "", Verdict.FAILED),
    ],
)
def test_each_end_of_a_command_means_one_thing(status: int, sense: str, verdict: Verdict) -> None:
    assert scsi.judge(status, scsi.parse_sense(bytes.fromhex(sense))) is verdict


def test_sense_of_either_format_is_the_same_three_numbers() -> None:
    fixed = bytes.fromhex("f0000600000000" + "0a00000000" + "2a05" + "00000000")
    assert scsi.parse_sense(fixed) == scsi.parse_sense(bytes.fromhex("72062a0500000000")) == Sense(6, 0x2A, 5)
    assert scsi.parse_sense(b"") == scsi.parse_sense(b"\x70\0\6") == Sense()
    assert Status.RESERVATION_CONFLICT == 0x18
