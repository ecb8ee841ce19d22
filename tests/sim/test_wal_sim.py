"""Seeded simulation of every WAL mode: owners that freeze and crash, recoverers that overtake each other, a network
that loses, delays and repeats; and sides of a `block+express` WAL that go away and come back within an epoch.

The checker knows nothing of blocks. Each epoch's owner appends records 1, 2, 3 …; what the simulated ledger accepted of
an epoch has to be exactly 1..k, each once and in order, and every record whose future ever resolved, before or after,
has to be among them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.wal.base import WalIdentity, WalReader, WalRecord
from dataplane.wal.commit import CommitSettings, GroupCommit
from dataplane.wal.lanes import LaneSettings
from dataplane.wal.modes import SIDES, WalPlaces, WalSettings, open_readers, open_wal
from dataplane.wal.objects import ObjectSettings
from dataplane.wal.recover import recover
from dataplane.wal.rejoin import RejoinSettings
from dataplane.wal.sides import RetrySettings
from providers.base.errors import Full, OutcomeUnknown, Unavailable, YunheError
from tests.dataplane.wal.cell import append
from tests.sim.virtualtime import run
from tests.sim.wal_world import HOSTILE, Bucket, DeviceClient, Disk, Host, StoreClient, World

CLUSTER = "sim"
RETRY = RetrySettings(attempts_max=8, backoff_ms=20, backoff_max_ms=500)
SETTINGS = WalSettings(
    commit=CommitSettings(block_bytes=8 << 10, change_attempts_max=10, change_pause_ms=200, close_flush_ms=1000),
    object_block_bytes=8 << 10,
    object_linger_ms=5,
    ring=RETRY,
    objects=ObjectSettings(window_max=4, margin=10, walk_parallel=4, trim_batch=5, retry=RETRY, write_retry=RETRY),
    lanes=LaneSettings(lanes=2, parts_max=8, object_bytes_max=64 << 10, retry=RETRY),
    rejoin=RejoinSettings(first_ms=100, longest_ms=2000, steady_ms=3000, patience_ms=800),
)
WAL_BYTES = 160 << 10
EPOCHS = 3


@dataclass
class EpochTruth:
    """What really happened in one epoch, as seen from outside."""

    appended: int = 0
    acked: set[int] = field(default_factory=set)
    committed: list[int] = field(default_factory=list)
    fenced: bool = False
    recovered: bool = False
    floor: int = 1
    members: tuple[str, ...] = ()
    instances: dict[str, int] = field(default_factory=dict)
    returns: int = 0


class Ledger:
    """Decisions, one at a time, each accepted or not; reached through each host's network."""

    def __init__(self, world: World, members: tuple[str, ...]) -> None:
        self.world = world
        self.members = members
        self.epochs: dict[int, EpochTruth] = {}

    def epoch(self, epoch: int) -> EpochTruth:
        return self.epochs.setdefault(epoch, EpochTruth(members=self.members))

    def commit(self, epoch: int, records: Sequence[int], floor: int) -> bool:
        truth = self.epoch(epoch)
        if truth.fenced or floor <= truth.floor:
            return False
        truth.committed.extend(records)
        truth.floor = floor
        return True

    def change(self, epoch: int, members: Sequence[str], start: int, instance: int | None) -> bool:
        truth = self.epoch(epoch)
        if truth.fenced:
            return False
        if set(members) == set(truth.members):
            return instance is None or instance in truth.instances.values()
        if instance is None:
            assert set(members) < set(truth.members), "a side comes back only by name of its instance"
        else:
            [side] = set(members) - set(truth.members)
            assert instance > truth.instances.get(side, 0), "each return is another instance"
            assert start <= truth.floor, "proposed only once all below its beginning is in object storage"
            truth.instances[side] = instance
            truth.returns += 1
        truth.members = tuple(members)
        self.world.note(f"members of epoch {epoch}: {','.join(members)} {instance}")
        return True

    def finish(self, epoch: int, records: Sequence[int]) -> bool:
        truth = self.epoch(epoch)
        if truth.recovered:
            return False
        truth.recovered = True
        truth.committed.extend(records)
        self.world.note(f"epoch {epoch} recovered with {len(records)} records, {len(truth.acked)} acked")
        return True


class Owner:
    """One epoch's broker: appends, uploads what is acked, trims; never learns of its end except from the WAL."""

    def __init__(self, sim: Simulation, epoch: int) -> None:
        self.sim = sim
        self.epoch = epoch
        self.host = Host(sim.world, f"owner-{epoch}")
        self.truth = sim.ledger.epoch(epoch)
        self.block_of: dict[int, int] = {}
        self.uploaded = 0
        self.dead = asyncio.Event()
        self.wal: GroupCommit | None = None

    async def run(self) -> None:
        wal = await open_wal(
            self.sim.spec,
            WalIdentity(CLUSTER, 1, self.epoch),
            self.sim.places(self.host),
            clock=self.host,
            change=self.change,
            on_dead=lambda error: self.dead.set(),
            drained=self.sim.disk.quiet(),
            again=self.again if self.sim.returning else None,
            settings=SETTINGS,
        )
        self.wal = wal
        uploader = asyncio.create_task(self.upload(wal))
        try:
            await self.produce(wal)
        finally:
            uploader.cancel()
            await asyncio.gather(uploader, return_exceptions=True)
            await wal.close()

    async def again(self, side: str) -> WalPlaces:
        await self.host.running()
        return self.sim.places(self.host)

    async def produce(self, wal: GroupCommit) -> None:
        random = self.sim.world.random
        while not self.dead.is_set():
            for _ in range(random.choice((1, 1, 3, 10))):
                serial = self.truth.appended + 1
                payload = struct.pack("<Q", serial) + b"." * random.randrange(1500)
                try:
                    future = append(wal, WalRecord(serial % 3, self.epoch, serial, 1, payload))
                except Full:
                    break
                self.truth.appended = serial
                future.add_done_callback(lambda done, serial=serial: self.acked(done, serial))
            await self.host.sleep_ms(random.uniform(0, 30))

    def acked(self, future: asyncio.Future[int], serial: int) -> None:
        if not future.cancelled() and future.exception() is None:
            assert serial - 1 in self.truth.acked or serial == 1, "futures resolve in append order"
            self.truth.acked.add(serial)
            self.block_of[serial] = future.result()

    async def upload(self, wal: GroupCommit) -> None:
        """Commit what is acked, up to a whole block, and trim behind it."""
        while True:
            await self.host.sleep_ms(self.sim.world.random.uniform(50, 400))
            last = wal.last_acked
            records = sorted(
                serial for serial, block in self.block_of.items() if serial > self.uploaded and block <= last
            )
            if not records or "ledger" in self.host.cut_from:
                continue
            await asyncio.sleep(0.005)
            await self.host.running()
            if self.sim.ledger.commit(self.epoch, records, last + 1):
                self.uploaded = records[-1]
                await self.host.running()
                await wal.trim(last + 1)

    async def change(self, sides: Sequence[str], start: int, instance: int | None = None) -> bool:
        random = self.sim.world.random
        await self.host.sleep_ms(random.uniform(1, 20))
        if "ledger" in self.host.cut_from or random.random() < 0.2:
            raise Unavailable("the ledger cannot be reached")
        accepted = self.sim.ledger.change(self.epoch, sides, start, instance)
        await self.host.sleep_ms(random.uniform(1, 20))
        if random.random() < 0.2:
            raise OutcomeUnknown("the ledger's answer was lost")
        return accepted


class Simulation:
    def __init__(self, seed: int, mode: WalMode, returning: bool = False) -> None:
        """`returning`: sides go away and come back while their owner goes on."""
        self.returning = returning
        self.world = World(seed, HOSTILE)
        self.mode = mode
        self.spec = WalSpec(mode, bytes_max=WAL_BYTES)
        self.disk = Disk(self.world, "volume", WAL_BYTES, preempt_aborts=self.world.random.random() < 0.5)
        self.express = Bucket("express", appends=True)
        self.bucket = Bucket("bucket")
        self.ledger = Ledger(self.world, SIDES[mode])

    def places(self, host: Host) -> WalPlaces:
        return WalPlaces(DeviceClient(host, self.disk), StoreClient(host, self.express), StoreClient(host, self.bucket))

    async def run(self) -> None:
        random = self.world.random
        owners: list[asyncio.Task[None]] = []
        for epoch in range(1, EPOCHS + 1):
            owner = Owner(self, epoch)
            task = asyncio.create_task(owner.run())
            owners.append(task)
            await (self.flap(owner) if self.returning else asyncio.sleep(random.uniform(0.2, 6)))
            await self.torment(owner, task)
            truth = self.ledger.epoch(epoch)
            truth.fenced = True
            self.world.note(f"epoch {epoch} fenced at floor {truth.floor}")
            await self.recover(epoch)
            owner.host.cut_from.clear()
            await asyncio.sleep(random.uniform(0, 2))
            owner.host.thaw()  # with luck, only now
            while self.mode is not WalMode.OBJECT and not self.disk.preempt_aborts and not self.disk.quiet():  # noqa: ASYNC110 -- an operator waits for the drain like this, too
                await asyncio.sleep(1)
        await asyncio.sleep(60)
        for task in owners:
            task.cancel()  # one whose WAL is full learns of its end only from the ledger
        for result in await asyncio.gather(*owners, return_exceptions=True):
            assert result is None or isinstance(result, (YunheError, asyncio.CancelledError)), result

    async def flap(self, owner: Owner) -> None:
        """One side or the other, or the ledger, is out of the owner's reach now and then, or the owner stands still."""
        random = self.world.random
        for _ in range(random.randrange(1, 8)):
            await asyncio.sleep(random.uniform(0.05, 4))
            place = random.choice(("volume", "volume", "express", "express", "ledger"))
            self.world.note(f"{owner.host.name}: {place} away")
            owner.host.cut_from.add(place)
            await asyncio.sleep(random.uniform(0, 12))
            owner.host.cut_from.discard(place)
            if random.random() < 0.1:
                owner.host.freeze()
                await asyncio.sleep(random.uniform(0, 2))
                owner.host.thaw()

    async def torment(self, owner: Owner, task: asyncio.Task[None]) -> None:
        """What befalls the owner before it is declared dead: nothing, a freeze, a cut from some places, a crash, or
        several."""
        random = self.world.random
        place = random.choice(("volume", "express", "bucket", "ledger"))
        what = random.choice(("nothing", "freeze", "cut", "cut and freeze", "crash"))
        self.world.note(f"{owner.host.name}: {what} {place}")
        if "cut" in what:
            owner.host.cut_from.add(place)
            await asyncio.sleep(random.uniform(0, 8))
        if "freeze" in what:
            owner.host.freeze()
        if what == "crash":
            owner.host.freeze()
            self.disk.tear(WalIdentity(CLUSTER, 1, owner.epoch).key)
            task.cancel()
        await asyncio.sleep(random.uniform(0, 0.05))

    async def recover(self, epoch: int) -> None:
        """Survivors recover, some crash half-way, until one has it accepted; then those still at it are left to
        finish."""
        random = self.world.random
        recoverers: list[asyncio.Task[None]] = []
        for node in range(2, 30):
            if self.ledger.epoch(epoch).recovered:
                break
            recoverers.append(asyncio.create_task(self.recover_once(epoch, node)))
            if random.random() < 0.4:
                await asyncio.sleep(random.uniform(0, 0.1))
                recoverers[-1].cancel()
            elif random.random() < 0.5:
                await asyncio.wait(recoverers[-1:], timeout=random.uniform(0.1, 20))
            else:
                await asyncio.wait(recoverers[-1:])
        else:
            raise AssertionError(f"epoch {epoch} was not recovered by 28 survivors")
        for result in await asyncio.gather(*recoverers, return_exceptions=True):
            assert result is None or isinstance(result, (YunheError, asyncio.CancelledError)), result

    async def recover_once(self, epoch: int, node: int) -> None:
        host = Host(self.world, f"recoverer-{node}-of-{epoch}")
        truth = self.ledger.epoch(epoch)
        floor, members, instances = truth.floor, truth.members, dict(truth.instances)
        victim = WalIdentity(CLUSTER, 1, epoch)
        places = self.places(host)
        if len(members) == 2 and self.world.random.random() < 0.5:
            places = replace(places, device=None)  # a survivor that does not reach the volume
        readers: dict[str, WalReader] = open_readers(
            self.spec,
            victim,
            places,
            own_key=victim.recovery_key(node, 1),
            floor=floor,
            instances=instances,
            clock=host,
            settings=SETTINGS,
        )
        recovered = await recover(readers, members, floor)
        records = [struct.unpack("<Q", r.payload[:8])[0] for block in recovered.blocks for r in block.records]
        await host.sleep_ms(self.world.random.uniform(0, 50))
        if self.ledger.finish(epoch, records):
            for reader in readers.values():
                await reader.release()


def check(ledger: Ledger) -> None:
    """The promises, judged by serial numbers alone."""
    for epoch, truth in ledger.epochs.items():
        assert truth.committed == list(range(1, len(truth.committed) + 1)), f"epoch {epoch}: not each once, in order"
        assert len(truth.committed) <= truth.appended, f"epoch {epoch}: records that nobody appended"
        lost = truth.acked - set(truth.committed)
        assert not lost, f"epoch {epoch}: acked and lost: {sorted(lost)[:5]} of {len(truth.acked)}"


def simulate(seed: int, mode: WalMode, returning: bool = False) -> tuple[str, Ledger]:
    """Run one history; returns the digest of its trace."""

    async def main() -> tuple[str, Ledger]:
        simulation = Simulation(seed, mode, returning)
        try:
            await simulation.run()
            check(simulation.ledger)
        except BaseException:
            print(f"seed {seed} mode {mode.value}")
            print("\n".join(simulation.world.trace[-40:]))
            raise
        return hashlib.sha256("\n".join(simulation.world.trace).encode()).hexdigest(), simulation.ledger

    return run(main())


SEED = int(os.environ.get("YUNHE_SIM_SEED", "1"))
RUNS = int(os.environ.get("YUNHE_SIM_RUNS", "30"))
MODES = (WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS, WalMode.OBJECT)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_every_acked_append_is_recovered_once_and_in_order(mode: WalMode) -> None:
    acked = 0
    for seed in range(SEED, SEED + RUNS):
        print(f"seed {seed} mode {mode.value}")
        _, ledger = simulate(seed, mode)
        acked += sum(len(truth.acked) for truth in ledger.epochs.values())
    assert acked > 100 * RUNS, "the simulation has to get something done"


def test_sides_come_back_within_an_epoch_and_every_acked_append_is_recovered() -> None:
    acked = returns = 0
    for seed in range(SEED, SEED + 3 * RUNS):
        print(f"seed {seed} returning")
        _, ledger = simulate(seed, WalMode.BLOCK_EXPRESS, returning=True)
        acked += sum(len(truth.acked) for truth in ledger.epochs.values())
        returns += sum(truth.returns for truth in ledger.epochs.values())
    assert acked > 300 * RUNS and returns > RUNS, f"the simulation has to get something done: {acked} {returns}"


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_same_seed_gives_the_same_trace(mode: WalMode) -> None:
    assert simulate(SEED, mode)[0] == simulate(SEED, mode)[0]
