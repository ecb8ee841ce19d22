"""A `block+express` broker whose volume fails under traffic goes on alone on the other side, takes the volume back when
it is well, and loses nothing when it is killed then."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from controlplane.drill.checker import judge
from controlplane.drill.probe import Ack, Probe, by_partition, create_topic, leaders, read_back
from dataplane.ledger.cell import CellMachine
from dataplane.ledger.entry import Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.state import WalState
from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import open_store
from providers.lab.launcher import CloudAddress, Lab
from providers.lab.volumes_client import LabBlockVolumes
from tests.running_lab import RunningLab

CLOUD, PARTITIONS = "aws", 4
CLOCK = SystemClock()


async def wal_of(address: CloudAddress, node: int) -> WalState:
    """As an onlooker folds it from the bucket."""
    rng = SystemRng()
    store = open_store(address.bucket, clock=CLOCK, rng=rng)
    try:
        ledger = Ledger(store, CLOUD, CellMachine(), Writer("onlooker", rng.token()), clock=CLOCK, rng=rng)
        await ledger.open()
        return ledger.state.brokers[node].wal
    finally:
        await store.close()


def until_members(address: CloudAddress, node: int, sides: list[str], timeout_s: float) -> WalState:
    deadline = time.monotonic() + timeout_s
    while (wal := asyncio.run(wal_of(address, node))).sides != sides:
        assert time.monotonic() < deadline, f"the membership is {wal.sides}, not {sides}"
        time.sleep(0.2)
    return wal


def test_a_broker_takes_its_failed_volume_back_under_traffic_and_nothing_is_lost(lab: RunningLab) -> None:
    cloud = lab.cloud(CLOUD)
    address = Lab(lab.state_dir, clock=CLOCK, rng=SystemRng()).address(CLOUD)
    assert address is not None and address.volumes is not None
    volumes = LabBlockVolumes(address.volumes, clock=CLOCK)
    topic = "grown-back"
    create_topic(cloud["bootstrapServers"], topic, PARTITIONS)
    node = leaders(cloud["bootstrapServers"], topic)[0]
    volume = f"{CLOUD}-b-{node}-wal"
    probe = Probe(cloud["bootstrapServers"], topic, PARTITIONS, clock=CLOCK)
    probe.start()

    def flows(after_ms: float) -> bool:
        def acked(acks: list[Ack]) -> bool:
            return all(sum(a.partition == p and a.at_ms > after_ms for a in acks) > 20 for p in range(PARTITIONS))

        return probe.wait_for(acked, 60_000)

    try:
        assert flows(0)
        until_members(address, node, ["volume", "express"], 5)
        asyncio.run(volumes.set_fault("errors", volume, 1))
        until_members(address, node, ["express"], 60)
        assert flows(CLOCK.monotonic_ms())
        asyncio.run(volumes.set_fault("errors", volume, 0))
        wal = until_members(address, node, ["volume", "express"], 90)
        assert wal.instances["volume"] > 0, "another instance of it, within the same epoch"
        assert flows(CLOCK.monotonic_ms())
        victim = next(b for b in lab.cloud(CLOUD)["brokers"] if b["id"] == node)
        os.kill(victim["pid"], signal.SIGKILL)
        killed_ms = CLOCK.monotonic_ms()
        assert flows(killed_ms + 500)
    finally:
        asyncio.run(volumes.set_fault("errors", volume, 0))
        acks = probe.stop()
    judged = judge(by_partition(acks, PARTITIONS), read_back(lab.bootstrap(CLOUD), topic, PARTITIONS, CLOCK))
    assert judged.clean, judged
    assert probe.failed == 0, probe.errors
