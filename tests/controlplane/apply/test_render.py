"""What is told to agents, and which volumes are asked for, over the real WAL choice and placement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.apply.render import Places, assignments, differs, emptied, volumes
from controlplane.plan.resolve import facts_of, resolve
from dataplane.contract.assignment import Assignment, DiskCacheSpec, Generation, MetricsSpec, ScaleSpec, WalMode
from dataplane.contract.codec import from_json, to_json
from providers.base.registry import StoreAddress, VolumesAddress

CLOUDS = {
    "aliyun": ("cn-hangzhou", ["cn-hangzhou-h", "cn-hangzhou-i"]),
    "azure": ("eastus", ["1", "2"]),
    "gcp": ("us-central1", ["us-central1-a", "us-central1-b"]),
    "aws": ("us-east-1", ["use1-az4", "use1-az5"]),
    "private": ("plant", ["a", "b"]),
}


def specs(provider: str, brokers: int = 3) -> Specs:
    region, zones = CLOUDS[provider]
    text = f"""
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {{name: here}}
spec: {{provider: {provider}, region: {region}, zones: {zones}}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {{name: main}}
spec: {{cloud: here, brokers: {brokers}}}
"""
    return load_texts([("s", text)])


def places(provider: str) -> Places:
    bucket = StoreAddress(provider, "b", "r", "http://127.0.0.1:1")
    express = {zone: replace(bucket, bucket=f"e--{zone}--x-s3") for zone in CLOUDS[provider][1]}
    return Places(bucket, VolumesAddress(provider, "r", "unix:/v"), express if provider == "aws" else {})


def rendered(provider: str, brokers: int = 3, told: tuple[str, ...] = ()) -> dict[str, Assignment]:
    given = specs(provider, brokers)
    return assignments("here", given.clusters["main"], resolve(given)["main"], places(provider), told)


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_every_broker_is_told_to_exactly_one_agent_that_of_its_zone(provider: str) -> None:
    told = rendered(provider)
    assert sorted(b.node_id for a in told.values() for b in a.brokers) == [1, 2, 3]
    for name, assignment in told.items():
        assert name == assignment.agent == f"here-{assignment.zone}"
        assert {b.zone for b in assignment.brokers} == {assignment.zone}
        assert from_json(Assignment, to_json(assignment)) == assignment


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_an_assignment_is_complete_for_taking_over_any_other_broker(provider: str) -> None:
    told = rendered(provider)
    for assignment in told.values():
        for broker in (b for other in told.values() for b in other.brokers):
            if broker.wal.volume is not None:
                assert assignment.volumes is not None
            if broker.wal.mode is WalMode.BLOCK_EXPRESS:
                assert broker.wal.express in assignment.express and broker.wal.express != broker.zone


def test_a_broker_on_an_object_wal_is_told_of_the_places_that_a_wal_was_or_may_be_in() -> None:
    given = specs("aws")
    settled = {"main": WalMode.OBJECT}
    resolved = resolve(given, settled=settled)["main"]
    told = assignments("here", given.clusters["main"], resolved, places("aws"), ())
    for assignment in told.values():
        assert {b.wal.mode for b in assignment.brokers} == {WalMode.OBJECT}
        # A life on another mode may have to be recovered: in the middle of a switch, its own before it.
        assert assignment.volumes == places("aws").volumes and assignment.express == places("aws").express


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_a_volume_is_asked_for_in_every_zone_from_where_it_may_be_taken_over(provider: str) -> None:
    given = specs(provider)
    resolved = resolve(given)["main"]
    facts = facts_of(given.clouds["here"])
    needs = {need.id: need for need in volumes(facts, resolved)}
    assert set(needs) == {b.wal.volume for b in resolved.brokers if b.wal.volume is not None}
    for broker in resolved.brokers:
        if broker.wal.volume is not None:
            need = needs[broker.wal.volume]
            assert need.zones == broker.wal.volume_zones and broker.zone in need.zones
            assert need.size_bytes >= broker.wal.bytes_max and need.size_bytes % (1 << 30) == 0
            assert need.share_max >= len(need.zones)
    assert bool(needs) == (provider != "private")


def test_an_agent_that_was_told_something_and_has_no_brokers_any_more_is_told_so() -> None:
    told = rendered("private", brokers=1, told=("a", "b"))
    assert [b.name for b in told["here-a"].brokers] == ["b-1"]
    assert told["here-b"].brokers == ()


def test_a_number_alone_is_no_difference_and_anything_else_is() -> None:
    one = rendered("private")["here-a"]
    published = replace(one, generation=Generation(5, 9))
    assert not differs(one, published)
    assert differs(one, None)
    assert differs(replace(one, settings=replace(one.settings, upload_bytes=1 << 20)), published)
    assert differs(emptied(published), published)


ALONE = """
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: here}
spec: {provider: private, region: plant, zones: [a]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: main}
spec: {cloud: here, brokers: 1%s}
"""


def test_brokers_are_told_of_their_cache_on_disk() -> None:
    told = {}
    for more in ("", ", settings: {diskCache: {path: /var/cache, size: 2GiB}}"):
        found = load_texts([("s", ALONE % more)])
        places = Places(StoreAddress("memory", "b", "r"))
        [one] = assignments("here", found.clusters["main"], resolve(found)["main"], places, ()).values()
        assert from_json(Assignment, to_json(one)) == one
        told[more] = one.settings.disk_cache
    assert list(told.values()) == [None, DiskCacheSpec("/var/cache", 2 << 30)]


def test_brokers_are_measured_on_their_own_host_alone_unless_the_spec_says_otherwise() -> None:
    told = []
    for more in ("", ", settings: {metrics: {host: 0.0.0.0, port: 9600}}", ", settings: {metrics: {enabled: false}}"):
        found = load_texts([("s", ALONE % more)])
        places = Places(StoreAddress("memory", "b", "r"))
        [one] = assignments("here", found.clusters["main"], resolve(found)["main"], places, ()).values()
        assert from_json(Assignment, to_json(one)) == one
        told.append(one.settings.metrics)
    assert told == [MetricsSpec(), MetricsSpec(True, "0.0.0.0", 9600), MetricsSpec(enabled=False)]
    assert (MetricsSpec().host, MetricsSpec().enabled) == ("127.0.0.1", True)


def test_spare_brokers_are_told_their_rank_and_all_brokers_when_they_are_needed() -> None:
    more = ", autoscale: {brokersMax: 3, brokerMiBs: 40, inAfter: 2m}"
    found = load_texts([("s", ALONE % more)])
    places = Places(StoreAddress("memory", "b", "r"))
    [one] = assignments("here", found.clusters["main"], resolve(found)["main"], places, ()).values()
    assert [(b.name, b.spare) for b in one.brokers] == [("b-1", 0), ("b-2", 1), ("b-3", 2)]
    assert one.settings.scale == ScaleSpec(3, 0.6, 40 << 20, 5_000, 120_000, 30_000)
    assert from_json(Assignment, to_json(one)) == one
