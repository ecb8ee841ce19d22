"""What the WAL's tests stand on: one volume, one express bucket and one bucket of the simulated world, opened in any
mode."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.wal.base import WalIdentity, WalReader, WalRecord
from dataplane.wal.codec import block_length, encode_block, record_bytes
from dataplane.wal.commit import CommitSettings, GroupCommit
from dataplane.wal.lanes import LaneSettings
from dataplane.wal.modes import SIDES, WalPlaces, WalSettings, open_readers, open_wal
from dataplane.wal.objects import ObjectSettings
from dataplane.wal.recover import recover
from dataplane.wal.rejoin import RejoinSettings
from dataplane.wal.sides import RetrySettings
from providers.base.errors import YunheError
from tests.sim.wal_world import CALM, Bucket, DeviceClient, Disk, Faults, Host, StoreClient, World

MODES = (WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS, WalMode.OBJECT)
RETRY = RetrySettings(attempts_max=4, backoff_ms=10, backoff_max_ms=50)
SETTINGS = WalSettings(
    commit=CommitSettings(change_attempts_max=5, change_pause_ms=50),
    object_linger_ms=5,
    ring=RETRY,
    objects=ObjectSettings(window_max=4, margin=20, retry=RETRY, write_retry=RETRY),
    lanes=LaneSettings(retry=RETRY),
    rejoin=RejoinSettings(first_ms=200, longest_ms=3200, patience_ms=400),
)


class Cell:
    def __init__(
        self,
        mode: WalMode,
        *,
        bytes_max: int = 256 << 10,
        preempt_aborts: bool = True,
        faults: Faults = CALM,
        settings: WalSettings = SETTINGS,
    ) -> None:
        self.world = World(1, faults)
        self.spec = WalSpec(mode, bytes_max=bytes_max)
        self.disk = Disk(self.world, "volume", bytes_max, preempt_aborts=preempt_aborts)
        self.express = Bucket("express", appends=True)
        self.bucket = Bucket("bucket")
        self.members: Sequence[str] = SIDES[mode]
        self.instances: dict[str, int] = {}
        self.floor = 1
        self.settings = settings
        self.deaths: list[YunheError] = []

    def host(self, name: str) -> Host:
        return Host(self.world, name)

    def places(self, host: Host) -> WalPlaces:
        return WalPlaces(DeviceClient(host, self.disk), StoreClient(host, self.express), StoreClient(host, self.bucket))

    async def accept(self, sides: Sequence[str], start: int, instance: int | None = None) -> bool:
        if instance is not None:
            [side] = set(sides) - set(self.members)
            assert instance > self.instances.get(side, 0) and start <= self.floor
            self.instances[side] = instance
        self.members = tuple(sides)
        return True

    async def upload(self, wal: GroupCommit) -> None:
        """All that is acked is in object storage now, the ledger says."""
        self.floor = wal.last_acked + 1
        await wal.trim(self.floor)

    async def open(
        self,
        host: Host,
        epoch: int = 1,
        *,
        change: Callable[[Sequence[str], int], Awaitable[bool]] | None = None,
        drained: bool = False,
        returning: bool = False,
    ) -> GroupCommit:
        """`returning`: a lost side is tried again."""

        async def again(side: str) -> WalPlaces:
            return self.places(host)

        return await open_wal(
            self.spec,
            identity(epoch),
            self.places(host),
            clock=host,
            change=change or self.accept,  # type: ignore[arg-type]
            on_dead=self.deaths.append,
            drained=drained,
            again=again if returning else None,
            settings=self.settings,
        )

    def readers(self, host: Host, epoch: int = 1, floor: int = 1, *, node: int = 2) -> dict[str, WalReader]:
        return open_readers(
            self.spec,
            identity(epoch),
            self.places(host),
            own_key=identity(epoch).recovery_key(node, 1),
            floor=floor,
            instances=self.instances,
            clock=host,
            settings=self.settings,
        )

    async def recover(
        self, epoch: int = 1, floor: int = 1, *, node: int = 2, sides: Sequence[str] | None = None
    ) -> list[int]:
        """Serial numbers of what a survivor finds."""
        readers = self.readers(self.host(f"survivor-{node}"), epoch, floor, node=node)
        recovered = await recover(readers, sides or self.members, floor)
        assert [block.number for block in recovered.blocks] == list(range(floor, floor + len(recovered.blocks)))
        return [serial(record) for block in recovered.blocks for record in block.records]


def identity(epoch: int) -> WalIdentity:
    return WalIdentity("c", 1, epoch)


def record(number: int, size: int = 200) -> WalRecord:
    return WalRecord(number % 3, 1, number, 1, struct.pack("<Q", number).ljust(size, b"."))


def serial(found: WalRecord) -> int:
    [number] = struct.unpack_from("<Q", found.payload)
    assert found == record(number, len(found.payload))
    return int(number)


def encoded(of: WalIdentity, number: int, records: Sequence[WalRecord]) -> bytes:
    """A block's bytes."""
    block = bytearray(block_length(sum(map(record_bytes, records))))
    encode_block(memoryview(block), of, number, records, unacked=0)
    return bytes(block)


def append(wal: GroupCommit, record: WalRecord) -> asyncio.Future[int]:
    """Submit; the future resolves to the number of the block that holds the record once it is acked, or fails."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def done(number: int, error: YunheError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(number)
        else:
            future.set_exception(error)
            future.exception()  # seen, whether or not the test awaits this append

    wal.submit(record, done)
    return future


async def fill(wal: GroupCommit, numbers: Sequence[int], size: int = 200) -> list[int]:
    """Append one by one, each in a block of its own, and return the blocks' numbers."""
    return [await append(wal, record(number, size)) for number in numbers]


async def until(condition: Callable[[], bool]) -> None:
    """Let virtual time pass until `condition` holds."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0.0001)
    raise AssertionError("it never came to hold")


def with_lanes(**changes: int) -> WalSettings:
    return replace(SETTINGS, lanes=replace(SETTINGS.lanes, **changes))  # type: ignore[arg-type]
