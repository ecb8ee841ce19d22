"""Produce and fetch: what one broker takes and gives, beside the machine's limits and Apache Kafka in the same run.

Our broker makes every batch durable before its ack; Kafka's leave theirs in the page cache. All get the same load, in
turns, a few rounds each, and medians are told. Both are warmed by the same loads first: what is told is a broker that
has its memory (a virtual machine's host may take 2 ms for a MiB that was not used lately). A round ends before uploads
begin, as it ends before the page cache is written back; `sustained` is the rate over a time in which everything is
uploaded too.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from controlplane.bench import peers
from controlplane.bench.figures import Figure, at_most, beside
from controlplane.bench.fill import fill
from controlplane.bench.java_client import producer_performance
from controlplane.bench.lab import DUAL, REGIONAL, SITE, Bench, one_cloud
from controlplane.bench.limits import durable_write_mb_s, loopback_mb_s
from controlplane.bench.ours import Ours
from controlplane.cli import output
from controlplane.drill.probe import create_topic
from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.lab.processes import python

ROUNDS = 3
CONNECTIONS = 4
SUSTAINED_S = 20
CLUSTER = "brokers: 1, wal: {bytesMax: 3GiB}, settings: {uploadBytes: 1GiB}"
LAP_BYTES = 3 << 30
"""Written before anything is measured: the emulated volume's file gets its blocks then; the limit's file and a cloud's
volume have theirs from the start."""

Load = Mapping[str, object]
BATCH_64K: Load = {"batch-bytes": 65_536, "seconds": 1.2, "warm-s": 0.5}
BATCH_1M: Load = {"batch-bytes": 1_000_000, "seconds": 1.0, "warm-s": 0.4}
TINY: Load = {"batch-bytes": 100, "record-bytes": 100, "connections": CONNECTIONS, "seconds": 2, "warm-s": 1}
WARM: Sequence[Load] = [{**load, "seconds": 8} for load in (TINY, BATCH_64K, BATCH_1M)]
PACED: Load = {"batch-bytes": 16_384, "rate": 20e6 / 16_384, "seconds": 5, "warm-s": 2}
OBJECT_WAL: Load = {"batch-bytes": 1_024, "rate": 1_000, "seconds": 10, "warm-s": 3}
"""1 MB/s, as AutoMQ's object WAL was measured."""
TOPIC = "bench"
JAVA_TOPIC, JAVA_PARTITIONS = "java", 6


def run_load(what: str, broker: str, load: Load) -> dict[str, float]:
    """What `load.py` measures, in a process of its own.

    Raises:
        Unavailable: the broker refused something.
    """
    options = [part for key, value in load.items() for part in (f"--{key}", str(value))]
    command = python("controlplane.bench.load", what, "--broker", broker, "--topic", TOPIC, *options)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=sys.stderr, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise Unavailable(f"{what} on {broker}: {result['error']}")
    return result


def produce(bench: Bench) -> list[Figure]:
    """See the module."""
    figures: list[Figure] = []
    with bench.lab(one_cloud(REGIONAL, CLUSTER)) as (clouds, _):
        ours = _warmed(clouds, bench.clock)
        with _kafka(bench, 1) as one:
            rounds = _rounds(bench, ours, one, {"64k": BATCH_64K, "1m": BATCH_1M, "tiny": TINY})
            java = _java_rounds(bench, ours, one)
        disk = statistics.median(durable_write_mb_s(bench.state_dir.root, 65_536, bench.clock) for _ in range(ROUNDS))
        loopback = statistics.median(loopback_mb_s(1_000_000, bench.clock) for _ in range(ROUNDS))
        with _kafka(bench, 3) as three:
            replicated = _rounds(bench, ours, three, {"64k": BATCH_64K, "paced": PACED})
            java_replicated = _java_rounds(bench, ours, three)

        def row(name: str, of: Any, load: str, field: str, unit: str, peer: str, **promised: float) -> None:
            figures.append(beside(name, of[load][0](field), unit, peer, of[load][1](field), **promised))

        mb_s = rounds["64k"][0]("mb_s")
        figures.append(beside("durable_produce_64KiB", mb_s, "MB/s", "O_DSYNC write 64 KiB", disk, at_least=0.9))
        if one is not None:
            row("durable_produce_64KiB", rounds, "64k", "mb_s", "MB/s", "Kafka RF=1, no fsync", at_least=1.2)
        if three is not None:
            row("durable_produce_64KiB", replicated, "64k", "mb_s", "MB/s", "Kafka RF=3, no fsync", at_least=5)
        mb_s = rounds["1m"][0]("mb_s")
        figures.append(beside("durable_produce_1MiB", mb_s, "MB/s", "loopback", loopback, at_least=0.3))
        if one is not None:
            row("durable_produce_1MiB", rounds, "1m", "mb_s", "MB/s", "Kafka RF=1, no fsync", at_least=1.5)
            row("100B_4_connections", rounds, "tiny", "requests_s", "requests/s", "Kafka RF=1, no fsync", at_least=0.7)
        for found, name, promised in ((java, "RF=1", 1.0), (java_replicated, "RF=3", 3.0)):
            if found is not None:
                mine, peer = (side("mb_s") for side in found)
                figures.append(beside("java_1KiB", mine, "MB/s", f"Kafka {name}, no fsync", peer, at_least=promised))
        if three is not None:
            row("p99_at_20MB/s", replicated, "paced", "p99_ms", "ms", "Kafka RF=3, no fsync", at_most=0.2)
        sustained = run_load("produce", ours.bootstrap, {**BATCH_64K, "seconds": SUSTAINED_S})
        figures.append(Figure("sustained_64KiB", sustained["mb_s"], "MB/s"))
    with bench.lab(one_cloud(DUAL, CLUSTER)) as (clouds, _):
        ours = _warmed(clouds, bench.clock)
        dual = _median([_round(ours, BATCH_64K, bench.clock) for _ in range(ROUNDS)])
        single = rounds["64k"][0]("mb_s")
        figures.append(beside("dual_write_64KiB", dual("mb_s"), "MB/s", "single write", single, at_least=0.5))
    with bench.lab(one_cloud(SITE, CLUSTER)) as (clouds, _):
        paced = run_load("produce", _topics(clouds), OBJECT_WAL)
        figures.append(at_most("object_wal_p99_at_1MB/s", paced["p99_ms"], "ms", 40))
    return figures


def fetch(bench: Bench) -> list[Figure]:
    """1 MiB fetches from the log cache, beside loopback."""
    with bench.lab(one_cloud(REGIONAL, CLUSTER)) as (clouds, _):
        ours = _topics(clouds)
        run_load("produce", ours, {"batch-bytes": 1_000_000, "seconds": 0.2, "warm-s": 0})
        loopback, found = [], []
        for _ in range(ROUNDS):
            loopback.append(loopback_mb_s(1_000_000, bench.clock))
            found.append(run_load("fetch", ours, {"batch-bytes": 1_048_576, "window": 2, "seconds": 2}))
        mb_s = _median(found)("mb_s")
        return [beside("fetch_1MiB_from_cache", mb_s, "MB/s", "loopback", statistics.median(loopback), at_least=0.8)]


Median = Callable[[str], float]


def _median(results: list[dict[str, float]]) -> Median:
    return lambda name: statistics.median(result[name] for result in results)


def _rounds(
    bench: Bench, ours: Ours, peer: peers.Peer | None, loads: Mapping[str, Load]
) -> dict[str, tuple[Median, Median]]:
    """Medians of ours and of the peer for each load; the two in turns."""
    found: dict[str, tuple[Median, Median]] = {}
    for name, load in loads.items():
        mine: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            mine.append(_round(ours, load, bench.clock))
            if peer is not None:
                theirs.append(run_load("produce", peer.bootstrap.split(",")[0], load))
        found[name] = (_median(mine), _median(theirs or mine))
        output.progress(f"{name}: {found[name][0]('mb_s'):.1f} MB/s, peer {found[name][1]('mb_s'):.1f} MB/s")
    return found


def _java_rounds(bench: Bench, ours: Ours, peer: peers.Peer | None) -> tuple[Median, Median] | None:
    """Medians of Kafka's own producer on ours and on the peer, in turns; None without a peer, which brings the jars."""
    if peer is None:
        return None
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(producer_performance(ours.bootstrap, JAVA_TOPIC))
        ours.drain(bench.clock)
        theirs.append(producer_performance(peer.bootstrap, JAVA_TOPIC))
    output.progress(f"java: {_median(mine)('mb_s'):.1f} MB/s, peer {_median(theirs)('mb_s'):.1f} MB/s")
    return _median(mine), _median(theirs)


def _round(ours: Ours, load: Load, clock: Clock) -> dict[str, float]:
    """What our broker does under `load`, and then the rest that it has to upload, so that nothing of it is left for
    the next round or the peer's."""
    found = run_load("produce", ours.bootstrap, load)
    ours.drain(clock)
    return found


def _topics(clouds: list[dict[str, Any]]) -> str:
    bootstrap: str = clouds[0]["bootstrapServers"]
    create_topic(bootstrap, TOPIC, CONNECTIONS)
    create_topic(bootstrap, JAVA_TOPIC, JAVA_PARTITIONS)
    return bootstrap


def _warmed(clouds: list[dict[str, Any]], clock: Clock) -> Ours:
    fill(_topics(clouds), TOPIC, LAP_BYTES)
    ours = Ours.of(clouds)
    for load in WARM:
        run_load("produce", ours.bootstrap, load)
    ours.drain(clock)
    return ours


@contextlib.contextmanager
def _kafka(bench: Bench, brokers: int) -> Iterator[peers.Peer | None]:
    """Apache Kafka, warmed up, its partitions led by the first broker; None, said loudly, where it cannot be had."""
    with contextlib.ExitStack() as stack:
        folder = bench.state_dir.root.with_name(f"{bench.state_dir.root.name}-kafka")
        try:
            peer = stack.enter_context(peers.kafka(folder, brokers, bench.clock))
        except Unavailable as error:
            output.progress(f"without Apache Kafka: {error}")
            yield None
            return
        peers.create_topic(peer, TOPIC, CONNECTIONS, brokers)
        peers.create_topic(peer, JAVA_TOPIC, JAVA_PARTITIONS, brokers)
        for load in WARM:
            run_load("produce", peer.bootstrap.split(",")[0], load)
        yield peer
