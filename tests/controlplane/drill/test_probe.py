"""Probe and judge together, over Kafka's own protocol, against brokers that are honest and brokers that lie."""

from __future__ import annotations

import pytest

from controlplane.drill.checker import Judgement, judge
from controlplane.drill.probe import Probe, by_partition, create_topic, leaders, read_back
from controlplane.drill.verdict import each_acked
from providers.base.clock import SystemClock
from providers.base.errors import Unavailable
from tests.controlplane.drill.memory_cluster import MemoryCluster

PARTITIONS = 2


def produce_and_judge(cluster: MemoryCluster, *, before_reading: dict[int, int] | None = None) -> Judgement:
    clock = SystemClock()
    create_topic(cluster.bootstrap, "numbers", PARTITIONS)
    probe = Probe(cluster.bootstrap, "numbers", PARTITIONS, clock=clock)
    probe.start()
    assert probe.wait_for(lambda acks: each_acked(acks, range(PARTITIONS), 60, 0) and cluster.has_lied, 20_000)
    acks = probe.stop()
    assert probe.failed == 0 and probe.errors == []
    cluster.served_as = before_reading or {}
    return judge(by_partition(acks, PARTITIONS), read_back(cluster.bootstrap, "numbers", PARTITIONS, clock))


def test_what_an_honest_broker_acked_is_all_there() -> None:
    with MemoryCluster() as cluster:
        judged = produce_and_judge(cluster)
        assert judged.clean and judged.acked >= 120 and judged.unacked_present == 0
        assert leaders(cluster.bootstrap, "numbers") == {0: 1, 1: 2}


def test_an_acked_batch_that_a_broker_drops_is_lost() -> None:
    with MemoryCluster("lose") as cluster:
        judged = produce_and_judge(cluster)
        assert judged.acked_lost > 0 and (judged.duplicated, judged.reordered, judged.corrupt) == (0, 0, 0)
        assert "was acked at" in judged.examples[0] and "it is nowhere" in judged.examples[0]


def test_a_batch_that_a_broker_keeps_twice_is_duplicated() -> None:
    with MemoryCluster("twice") as cluster:
        judged = produce_and_judge(cluster)
        assert judged.duplicated > 0 and judged.reordered == 0


def test_batches_that_a_broker_swaps_are_reordered() -> None:
    with MemoryCluster("swap", lying_partition=1) as cluster:
        judged = produce_and_judge(cluster)
        assert judged.reordered > 0 and judged.duplicated == 0


def test_a_partition_served_as_another_is_corrupt_though_numbers_and_offsets_agree() -> None:
    with MemoryCluster() as cluster:
        # Both are led by one broker, and hold the same numbers at the same offsets.
        cluster.leader_of = {0: 1, 1: 1}
        judged = produce_and_judge(cluster, before_reading={1: 0})
        assert judged.corrupt > 50 and judged.acked_lost > 50


def test_a_damaged_batch_is_corrupt_and_its_records_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.drill.probe.READ_STALL_MS", 2_000)
    with MemoryCluster("damage") as cluster:
        judged = produce_and_judge(cluster)
        assert judged.corrupt > 0 and judged.acked_lost > 0


def test_nobody_who_answers_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.drill.probe.TOPIC_TIMEOUT_MS", 1_000)
    with MemoryCluster() as cluster:
        bootstrap = cluster.bootstrap
    with pytest.raises(Unavailable, match="topic numbers could not be created"):
        create_topic(bootstrap, "numbers", 1)


def test_errors_are_counted_and_kept_up_to_a_bound() -> None:
    with MemoryCluster() as cluster:
        create_topic(cluster.bootstrap, "numbers", 1)
        # Partitions that do not exist: every produce to them is refused by the client.
        probe = Probe(cluster.bootstrap, "numbers", 60, clock=SystemClock())
        probe.start()
        assert probe.wait_for(lambda acks: probe.failed > 25, 20_000)
        probe.stop(flush_ms=0)
        assert len(probe.errors) <= 20 < probe.failed
