"""Brokers keep their names, ids and zones; a WAL can be taken over from another zone wherever the cloud allows it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.plan.placement import PlacedBroker, place
from controlplane.plan.wal import WalChoice, Wants, choose_wal
from dataplane.contract.assignment import WalMode
from providers.base.capabilities import Probed, capabilities_of, lab_probed, overlay

ZONES = {
    "aliyun": ("cn-hangzhou", ("cn-hangzhou-h", "cn-hangzhou-i", "cn-hangzhou-j")),
    "azure": ("eastus", ("1", "2", "3")),
    "gcp": ("us-central1", ("us-central1-a", "us-central1-b", "us-central1-c")),
    "aws": ("us-east-1", ("use1-az1", "use1-az4", "use1-az5")),
    "private": ("site", ("a", "b", "c")),
}


def choice_of(provider: str, zones: tuple[str, ...], **probed: object) -> WalChoice:
    facts = overlay(capabilities_of(provider, ZONES[provider][0], zones), lab_probed(provider), "lab")
    return choose_wal(overlay(facts, Probed(**probed), "probed"), Wants())  # type: ignore[arg-type]


def placed(provider: str, width: int, count: int) -> tuple[PlacedBroker, ...]:
    zones = ZONES[provider][1][:width]
    return place("c", zones, count, None, choice_of(provider, zones))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(ZONES)), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_brokers_that_stay_keep_id_name_and_zone(provider: str, width: int, few: int, more: int) -> None:
    small, large = placed(provider, width, min(few, more)), placed(provider, width, max(few, more))
    assert [b.node_id for b in large] == list(range(1, len(large) + 1))
    assert [(b.node_id, b.name, b.zone) for b in large][: len(small)] == [(b.node_id, b.name, b.zone) for b in small]
    counts = [sum(b.zone == zone for b in large) for zone in ZONES[provider][1][:width]]
    assert max(counts) - min(counts) <= 1


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["aliyun", "azure", "gcp"]), st.integers(2, 3), st.integers(2, 12))
def test_another_zones_broker_can_take_over_every_regional_volume(provider: str, width: int, count: int) -> None:
    brokers = placed(provider, width, count)
    limit = {"aliyun": 2, "azure": 3, "gcp": 2}[provider]
    for broker in brokers:
        assert broker.wal.mode is WalMode.REGIONAL_BLOCK
        assert broker.wal.volume_zones[0] == broker.zone
        assert len(set(broker.wal.volume_zones)) == len(broker.wal.volume_zones) <= limit
        assert {other.zone for other in brokers} & set(broker.takers) - {broker.zone}
    assert len({broker.wal.volume for broker in brokers}) == count


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9))
def test_express_bucket_is_in_another_zone_than_its_broker(width: int, count: int) -> None:
    for broker in placed("aws", width, count):
        assert broker.wal.mode is WalMode.BLOCK_EXPRESS
        assert broker.wal.volume_zones == (broker.zone,)
        assert broker.wal.express not in (None, broker.zone)


def test_a_small_azure_disk_attaches_to_three_and_no_more() -> None:
    zones = ZONES["azure"][1]
    assert all(broker.wal.volume_zones[:3] == broker.wal.volume_zones for broker in placed("azure", 3, 6))
    two = place("c", zones, 3, None, choice_of("azure", zones, share_max=2))
    assert [broker.wal.volume_zones for broker in two] == [("1", "2"), ("2", "1"), ("3", "2")]


def test_a_broker_in_the_only_express_zone_gets_the_object_wal() -> None:
    zones = ("use1-az4", "use1-az5")
    brokers = place("c", zones, 2, None, choice_of("aws", zones, express_zones=("use1-az5",)))
    assert [broker.wal.mode for broker in brokers] == [WalMode.BLOCK_EXPRESS, WalMode.OBJECT]
    assert brokers[1].takers == ()


def test_counts_per_zone_leave_the_other_zones_brokers_alone() -> None:
    zones = ZONES["private"][1]
    choice = choice_of("private", zones)
    before = place("c", zones, None, {"a": 1, "c": 2}, choice)
    assert [(b.name, b.zone) for b in before] == [("b-1", "a"), ("b-3", "c"), ("b-6", "c")]
    after = place("c", zones, None, {"a": 3, "c": 2}, choice)
    assert set(before) <= set(after)
    assert [(b.name, b.zone) for b in after if b not in before] == [("b-4", "a"), ("b-7", "a")]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(ZONES)), st.integers(1, 3), st.integers(1, 8), st.integers(0, 6))
def test_spare_brokers_come_after_the_others_in_zones_that_have_one(
    provider: str, width: int, count: int, spares: int
) -> None:
    zones = ZONES[provider][1][:width]
    choice = choice_of(provider, zones)
    lasting, all_ = (place("c", zones, count, None, choice, more) for more in (0, spares))
    assert all_[:count] == lasting and not any(b.spare for b in lasting)
    more = all_[count:]
    assert [b.spare for b in more] == list(range(1, spares + 1))
    assert all(before.node_id < b.node_id for before, b in pairwise(all_))
    assert {b.zone for b in more} <= {b.zone for b in lasting}
    # They are where brokers of that many would be, so that one which becomes lasting stays where it is.
    most = {b.node_id: b for b in place("c", zones, all_[-1].node_id, None, choice)}
    assert all((b.name, b.zone) == (most[b.node_id].name, most[b.node_id].zone) for b in more)
