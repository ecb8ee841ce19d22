"""The lab as a tool: real processes, the clouds' real SDKs, outages that hit what they should and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError
from providers.base.registry import open_instances, open_store, open_volume_api, open_volumes
from providers.base.volumes import BLOCK_BYTES
from providers.lab.outages import OUTAGES, outage_faults
from providers.lab.processes import ProcessTable, stop
from providers.lab.running import DEFAULT_CLOUDS, RunningCloud, RunningLab, lab, parse_cloud

AWS = "aws-use1=aws:us-east-1:use1-az4,use1-az5"
ALIYUN = "aliyun-hz=aliyun:cn-hangzhou:cn-hangzhou-h,cn-hangzhou-i"


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningCloud]]:
    root = tmp_path_factory.mktemp("lab")
    with lab(AWS, ALIYUN, state_dir=root) as started:
        yield started
    assert ProcessTable(root).everything() == []


@pytest.fixture
def aws(clouds: dict[str, RunningCloud]) -> Iterator[RunningCloud]:
    yield clouds["aws-use1"]
    clouds["aws-use1"].clear()


@pytest.fixture
def aliyun(clouds: dict[str, RunningCloud]) -> Iterator[RunningCloud]:
    yield clouds["aliyun-hz"]
    clouds["aliyun-hz"].clear()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    asyncio.run(main())


async def answers(ask: Awaitable[object]) -> bool:
    """Whether it succeeds; False when it is unavailable."""
    try:
        await ask
    except Unavailable:
        return False
    return True


def test_a_zones_loss_takes_its_express_bucket_and_volumes_and_nothing_else(aws: RunningCloud) -> None:
    async def body() -> None:
        clock, rng, address = SystemClock(), SystemRng(), aws.address
        zones = address.zones
        stores = {zone: open_store(address.express[zone], clock=clock, rng=rng) for zone in zones}
        regional = open_store(address.bucket, clock=clock, rng=rng)
        assert address.volumes is not None
        volumes = open_volumes(address.volumes, clock=clock)
        devices = {}
        for number, zone in enumerate(zones):
            await volumes.create(f"v{number}", size_bytes=4 * BLOCK_BYTES, zones=(zone,), share_max=1)
            await volumes.attach(f"v{number}", zone)
            devices[zone] = await volumes.open(f"v{number}", zone)
            await stores[zone].put("k/1", b"x")
        await regional.put("k/1", b"x")
        aws.fault("zone-loss", zone=zones[0], for_s=60)
        lost, kept = zones
        try:
            assert not await answers(stores[lost].get("k/1"))
            assert not await answers(devices[lost].read(0, BLOCK_BYTES))
            assert not await answers(volumes.open("v0", lost))
            assert await answers(stores[kept].get("k/1"))
            assert await answers(stores[kept].put("k/2", b"y"))
            assert await answers(devices[kept].write(0, b"z" * BLOCK_BYTES))
            assert await answers(regional.put("k/2", b"y"))
            assert await answers(volumes.describe())
            aws.clear()
            assert await answers(stores[lost].get("k/1"))
            again = await volumes.open("v0", lost)
            await again.close()
        finally:
            for one in (*stores.values(), regional, *devices.values(), volumes):
                await one.close()

    run(body)


def test_the_control_apis_outage_leaves_data_and_devices_be(aliyun: RunningCloud) -> None:
    """Aliyun, November 2023: the classic."""

    async def body() -> None:
        clock, rng, address = SystemClock(), SystemRng(), aliyun.address
        assert address.control is not None and address.volumes is not None
        store = open_store(address.bucket, clock=clock, rng=rng)
        api = open_volume_api(address.control, clock=clock, rng=rng)
        volumes = open_volumes(address.volumes, clock=clock)
        zones = address.zones
        await volumes.create("wal", size_bytes=4 * BLOCK_BYTES, zones=zones, share_max=2)
        await volumes.attach("wal", zones[0])
        device = await volumes.open("wal", zones[0])
        assert await answers(api.describe())
        aliyun.outage("ali-ak", for_s=60)
        try:
            with pytest.raises(YunheError) as refused:
                await api.describe()
            assert isinstance(refused.value, Invalid | Unavailable)
            outcomes = []
            for i in range(40):
                try:
                    await store.put(f"k/{i}", b"x", if_absent=True)
                    outcomes.append(True)
                except YunheError:
                    outcomes.append(False)
            assert 5 <= sum(outcomes) <= 35, "every second one, by chance"
            for i in range(4):
                await device.write(i * BLOCK_BYTES, b"d" * BLOCK_BYTES)
        finally:
            for one in (device, volumes, api, store):
                await one.close()

    run(body)


def test_the_emulated_control_api_is_there_with_its_machines(aws: RunningCloud) -> None:
    async def body() -> None:
        assert aws.address.control is not None
        instances = open_instances(aws.address.control, clock=SystemClock(), rng=SystemRng())
        found = await instances.describe()
        assert {machine.zone for machine in found} == set(aws.address.zones)
        aws.fault("error", service="compute", verb="describe", status=503, for_s=30)
        assert not await answers(instances.describe())
        await instances.close()

    run(body)


def test_faults_are_listed_with_the_time_they_have_left_and_go_by_themselves(aws: RunningCloud) -> None:
    name = aws.fault("latency", latency="1ms", for_s=0.8)
    [one] = aws.faults()
    assert one["id"] == name and 0 < one["left_s"] <= 0.8
    deadline = time.monotonic() + 10
    while aws.faults():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fault_that_makes_no_sense_reaches_no_process(aws: RunningCloud) -> None:
    for kind, fields in (
        ("zone-loss", {"zone": "use1-az9"}),
        ("error", {"status": 7}),
        ("boom", {}),
        ("reset", {"for_s": 1e9}),
        ("reset", {"for_s": 0}),
    ):
        with pytest.raises(Invalid):
            aws.fault(kind, **{"for_s": 5, **fields})
    with pytest.raises(Invalid, match="no zone"):
        aws.outage("express-az-loss", for_s=5, zones=["mars"])
    with pytest.raises(NotFound):
        aws.clear(["nope"])
    assert aws.faults() == []


def test_an_express_fault_on_a_cloud_without_it_is_refused(aliyun: RunningCloud) -> None:
    with pytest.raises(Invalid, match="express"):
        aliyun.fault("reset", service="express", for_s=5)


def test_a_killed_server_comes_back_with_its_faults(clouds: dict[str, RunningCloud], aws: RunningCloud) -> None:
    name = aws.fault("error", status=503, service="objects", for_s=600)
    record = aws.processes()["objects"]
    os.kill(record.pid, signal.SIGKILL)
    stop([record.id])
    root = Path(record.log).parents[2]
    again = RunningLab(root)
    again.up([parse_cloud(AWS)])
    assert name in [one["id"] for one in again.cloud("aws-use1").faults()]
    assert again.cloud("aws-use1").processes()["objects"].pid != record.pid
    assert again.cloud("aws-use1").address == aws.address, "whoever was told the address finds it there"


def test_the_bill_of_a_run_is_its_requests_at_the_catalogues_prices(aws: RunningCloud) -> None:
    aws.reset_meter()

    async def body() -> None:
        clock, rng, address = SystemClock(), SystemRng(), aws.address
        regional = open_store(address.bucket, clock=clock, rng=rng)
        express = open_store(address.express[address.zones[0]], clock=clock, rng=rng)
        for i in range(30):
            await regional.put(f"bill/{i}", b"x" * 1000)
        for i in range(10):
            await regional.get(f"bill/{i}")
        await express.put("bill/1", b"y" * (1 << 20))
        await express.get("bill/1")
        for one in (regional, express):
            await one.close()

    run(body)
    bill = aws.bill(aws.meter(since_reset=True))
    lines = {(line.service, line.what): line for line in bill.lines}
    assert lines["objects", "put requests"].amount == 30
    assert lines["objects", "put requests"].usd == pytest.approx(30 * 0.005 / 1000)
    assert lines["objects", "get requests"].usd == pytest.approx(10 * 0.0004 / 1000)
    assert lines["express", "uploaded"].usd == pytest.approx(0.0032 / 1024, rel=0.01)
    assert lines["express", "read"].usd == pytest.approx(0.0006 / 1024, rel=0.01)
    assert lines["express", "put requests"].amount == 1
    assert bill.per_second["objects.put"] == pytest.approx(30 / bill.elapsed_s)
    assert bill.usd == pytest.approx(sum(line.usd or 0 for line in bill.lines)) and not bill.unpriced


def test_a_lab_that_somebody_works_on_is_not_stopped(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    idle = [sys.executable, "-c", "import signal; signal.pause()"]
    other = table.start("b-1", idle, log=tmp_path / "log")
    try:
        with pytest.raises(Conflict, match="b-1"):
            RunningLab(tmp_path).down()
    finally:
        assert stop([other.id]) == []


@pytest.mark.parametrize(
    "text", ["", "aws", "a=aws:us-east-1:use1-az4,use1-az4", "a=mars:r:z", "a=aws:us-east-1:us-east-1a", "A=aws:r:z"]
)
def test_a_cloud_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_cloud(text)


@pytest.mark.parametrize("name", OUTAGES)
def test_every_outage_is_a_set_of_faults_on_every_cloud_with_zones(name: str) -> None:
    from providers.lab.fault import Fault

    for cloud in DEFAULT_CLOUDS[:4]:
        given = {"id": f"{name}-1", "zones": cloud.zones, "chosen": (), "for_ms": 101_000.0, "seed": 5, "now_ms": 1e6}
        made = [Fault.of(one, 1e6) for one in outage_faults(name, **given)]  # type: ignore[arg-type]
        assert made and all(1e6 < one.until_ms <= 1e6 + 101_000 and one.outage == name for one in made)
        assert len({one.id for one in made}) == len(made)
    assert OUTAGES[name].source and OUTAGES[name].event
