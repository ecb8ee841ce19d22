"""How soon a WAL acks is measured, and a probe measures it where nothing is written."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.contract.assignment import WalMode
from tests.dataplane.wal.cell import MODES, Cell, append, fill, record
from tests.sim.virtualtime import run

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)


@every_mode
def test_what_is_written_is_measured_once(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        assert wal.ack_ms() is None
        await fill(wal, [1, 2, 3])
        taken = wal.ack_ms()
        assert taken is not None and 1 < taken < 40
        assert wal.ack_ms() is None
        await wal.close()

    run(main())


def test_a_slow_device_shows_and_so_does_one_that_hangs() -> None:
    async def main() -> None:
        cell = Cell(WalMode.REGIONAL_BLOCK)
        wal = await cell.open(cell.host("owner"))
        cell.disk.slow_ms = 300
        await fill(wal, [1])
        assert 300 <= (wal.ack_ms() or 0) < 350
        cell.disk.slow_ms = 900
        pending = append(wal, record(2))
        await asyncio.sleep(0.6)
        assert 500 < (wal.ack_ms() or 0) <= 600, "nothing is acked, and yet it says so"
        await pending
        await wal.close()

    run(main())


@every_mode
def test_a_probe_is_measured_and_recovered_as_nothing(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        for number in range(1, 6):
            wal.probe()
            wal.probe()  # one is under way
            await asyncio.sleep(0.2)
            assert wal.ack_ms() is not None and wal.last_acked == 2 * number - 1
            await fill(wal, [number])
            wal.ack_ms()
        wal.probe()
        await asyncio.sleep(0.2)
        assert await cell.recover() == [1, 2, 3, 4, 5]

    run(main())


@every_mode
def test_probes_never_fill_the_wal(mode: WalMode) -> None:
    async def main() -> None:
        cell = Cell(mode)
        wal = await cell.open(cell.host("owner"))
        for _ in range(100):
            wal.probe()
            await asyncio.sleep(0.1)
        assert wal.bytes_used <= (32 << 10) + 4_096
        await fill(wal, [1])
        await cell.upload(wal)
        before = wal.last_acked
        wal.probe()
        await asyncio.sleep(0.2)
        assert wal.last_acked == before + 1, "what was trimmed is room for probes again"
        await wal.close()

    run(main())
