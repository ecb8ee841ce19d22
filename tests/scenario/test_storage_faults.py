"""Storage away for a while, and a broker lost with a backlog, in cells that neither even out nor upload meanwhile.

Both go on by themselves otherwise, each second and each ten: a move that the outage meets between the entry and its
answer waits for the bucket, by design, and an upload just before the loss leaves nothing to hand out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from controlplane.bench.fill import fill
from controlplane.drill.checker import judge
from controlplane.drill.faults import Faults
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from controlplane.drill.verdict import each_acked
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock
from tests.running_lab import BY_MODE, RunningLab, running, spec_of

CALM = ", settings: {balanceIntervalMs: 0, uploadIntervalMs: 3600000}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running(tmp_path_factory.mktemp("calm"), spec_of(CALM)) as lab:
        yield lab


# Cells are independent: in each cloud a drill of its own, at once.
@pytest.mark.parametrize(
    "wanted",
    [
        {
            "gcp": ("wal-loss", "--side", "volume", "--seed", "86"),
            "aws": ("wal-loss", "--side", "express", "--seed", "185"),
            "plant": ("wal-loss", "--side", "object", "--seed", "112"),
        },
        {
            "gcp": ("object-store-outage", "--seed", "86"),
            "aws": ("wal-loss", "--side", "volume", "--seed", "185"),
            "plant": ("object-store-outage", "--seed", "86"),
        },
        {
            "gcp": ("throttle", "--seed", "185"),
            "aws": ("object-store-outage", "--seed", "167"),
            "plant": ("throttle", "--seed", "86"),
        },
    ],
    ids=lambda wanted: ",".join(dict.fromkeys(args[0] for args in wanted.values())),
)
def test_storage_that_is_away_for_a_while_loses_no_acked_record(
    lab: RunningLab, wanted: dict[str, tuple[str, ...]]
) -> None:
    with ThreadPoolExecutor(len(wanted)) as pool:
        running = {cloud: pool.submit(lab.drill, args[0], cloud, *args[1:]) for cloud, args in wanted.items()}
        reports = {cloud: report.result() for cloud, report in running.items()}
    found = {cloud: (r["verdict"], r["acked_lost"], r["duplicated"], r["reordered"]) for cloud, r in reports.items()}
    assert found == dict.fromkeys(wanted, ("PASS", 0, 0, 0))


@pytest.mark.parametrize("mode", BY_MODE)
def test_partitions_of_a_broker_lost_with_a_backlog_go_on_before_it_is_uploaded(lab: RunningLab, mode: str) -> None:
    cloud = lab.cloud(BY_MODE[mode])
    bootstrap, clock = cloud["bootstrapServers"], SystemClock()
    topic, backlog = f"lost-{cloud['name']}", f"backlog-{cloud['name']}"
    for name in (topic, backlog):
        create_topic(bootstrap, name, 4)
    led = leaders(bootstrap, backlog)
    victim = cloud["brokers"][0]
    probe = Probe(bootstrap, topic, 4, clock=clock)
    probe.start()
    faults = Faults(StateDir(lab.state_dir), clock)
    try:
        assert probe.wait_for(lambda acks: len(acks) > 200, 30_000)
        # Less than starts an upload, and more than is written before it is handed out.
        count = fill(bootstrap, backlog, 24 << 20, [p for p, leader in led.items() if leader == victim["id"]])
        at_ms = faults.kill_broker(cloud["name"], victim)
        assert probe.wait_for(lambda acks: each_acked(acks, range(4), 50, at_ms + 500), 45_000)
    finally:
        faults.undo()
        acks = probe.stop()
    logs = "".join(path.read_text() for path in (lab.state_dir / "agents").rglob("log"))
    assert f"handed-out node={victim['id']}" in logs, "nobody handed out before uploading"
    deadline = time.monotonic() + 60
    while lab.cloud(cloud["name"])["state"] != "Ready":
        assert time.monotonic() < deadline, "the lost broker's next life did not come up"
        time.sleep(0.2)
    bootstrap = lab.bootstrap(cloud["name"])
    judged = judge(by_partition(acks, 4), read_back(bootstrap, topic, 4, clock))
    assert judged.clean, judged
    assert sum(map(len, read_back(bootstrap, backlog, 4, clock).values())) == count
