"""The WAL choice: the rows of the decision table, what is never done, what is always said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.plan.cost import Load
from controlplane.plan.wal import WalChoice, Wants, choose_wal
from controlplane.plan.wal_table import ROWS, Drive
from dataplane.contract.assignment import WalMode
from providers.base.capabilities import Capabilities, Probed, Scope, capabilities_of, lab_probed, overlay
from providers.base.errors import Invalid
from providers.base.registry import PROVIDERS

PLACES = {
    "aliyun": ("cn-hangzhou", ("cn-hangzhou-h", "cn-hangzhou-i")),
    "azure": ("eastus", ("1", "2", "3")),
    "gcp": ("us-central1", ("us-central1-a", "us-central1-b")),
    "aws": ("us-east-1", ("use1-az4", "use1-az5")),
    "private": ("site", ("hall-a", "hall-b")),
}
RB, DW, OB, ZB = WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS, WalMode.OBJECT, WalMode.ZONAL_BLOCK


def facts(provider: str, *, lab: bool = True, zones: tuple[str, ...] | None = None, **probed: Any) -> Capabilities:
    region, usual = PLACES[provider]
    found = capabilities_of(provider, region, zones or usual)
    if lab:
        found = overlay(found, lab_probed(provider), "probed in the lab")
    return overlay(found, Probed(**probed), "probed")


@pytest.mark.parametrize(
    ("provider", "mode"), [("aliyun", RB), ("azure", RB), ("gcp", RB), ("aws", DW), ("private", OB)]
)
def test_each_lab_cloud_gets_the_mode_made_for_it(provider: str, mode: WalMode) -> None:
    choice = choose_wal(facts(provider), Wants())
    assert choice.mode is mode
    assert not choice.failover_needs_cloud_api


@pytest.mark.parametrize(
    ("row", "provider", "mode", "api", "given_facts"),
    [
        ("1", "aliyun", RB, False, {}),
        ("2", "aliyun", RB, True, {"cross_zone_multi_attach": False}),
        ("3", "aliyun", OB, False, {"regional_block": False}),
        ("5", "azure", RB, False, {}),
        ("6", "azure", RB, True, {"share_max": 1}),
        ("7", "azure", OB, False, {"regional_block": False}),
        ("9", "gcp", RB, False, {}),
        ("10", "gcp", RB, True, {"persistent_reservations": False}),
        ("11", "gcp", DW, False, {"regional_block": False, "express_zones": ("us-central1-a", "us-central1-b")}),
        ("12", "gcp", OB, False, {"regional_block": False}),
        ("13", "aws", DW, False, {}),
        ("15", "aws", DW, False, {"express_zones": ("use1-az5",)}),
        ("16", "aws", OB, False, {"express_zones": ()}),
        ("18", "private", OB, False, {}),
    ],
)
def test_rows_of_the_decision_table(
    row: str, provider: str, mode: WalMode, api: bool, given_facts: dict[str, Any]
) -> None:
    choice = choose_wal(facts(provider, **given_facts), Wants())
    assert (choice.row, choice.mode, choice.failover_needs_cloud_api) == (row, mode, api)
    assert any("control API" in warning for warning in choice.warnings) is (api or row in ("13", "15"))


@pytest.mark.parametrize(("row", "provider"), [("4", "aliyun"), ("8", "azure")])
def test_a_region_with_zonal_storage_only_is_refused_unless_the_loss_is_accepted(row: str, provider: str) -> None:
    poor = facts(provider, regional_block=False, object_store=Scope.ZONAL)
    with pytest.raises(Invalid) as caught:
        choose_wal(poor, Wants())
    assert "acceptZoneLossRpo" in (caught.value.hint or "")
    choice = choose_wal(poor, Wants(accept_zone_loss_rpo=True))
    assert (choice.row, choice.mode) == (row, ZB)
    assert choice.rpo == "up to 10 s of acked records"
    assert any("lost with the zone" in warning for warning in choice.warnings)


def test_zonal_block_on_aws_is_row_17_and_only_on_demand() -> None:
    with pytest.raises(Invalid, match="acceptZoneLossRpo is not set"):
        choose_wal(facts("aws"), Wants(mode=ZB))
    choice = choose_wal(facts("aws"), Wants(mode=ZB, accept_zone_loss_rpo=True))
    assert (choice.row, choice.block) == ("17", "io2-block-express")


def test_a_store_without_create_if_absent_is_refused_in_every_mode() -> None:
    for provider in PROVIDERS:
        with pytest.raises(Invalid, match="only if it is absent"):
            choose_wal(facts(provider, create_if_absent=False), Wants(accept_zone_loss_rpo=True))


def test_unknown_stays_unknown_and_the_choice_says_so() -> None:
    aliyun = choose_wal(facts("aliyun", lab=False, regional_block=True), Wants())
    assert aliyun.row == "2"
    assert "documents disagree or are silent, and it was not probed" in aliyun.rejected[0].why
    gcp = choose_wal(facts("gcp", lab=False), Wants())
    assert gcp.row == "10"
    assert "not confirmed, and it was not probed" in gcp.rejected[0].why
    private = choose_wal(facts("private", lab=False), Wants())
    assert any("is not probed; apply probes it" in warning for warning in private.warnings)
    unverified = choose_wal(facts("aliyun", lab=False), Wants())
    assert unverified.row == "3"
    assert any("not verified" in other.why for other in unverified.rejected)


def test_a_wanted_mode_that_the_cloud_cannot_do_is_refused_with_reasons() -> None:
    with pytest.raises(Invalid, match="no volume of AWS reaches two zones"):
        choose_wal(facts("aws"), Wants(mode=RB))
    with pytest.raises(Invalid, match=r"row 13: .* none but its own|row 13: .* in no zone"):
        choose_wal(facts("aws", express_zones=()), Wants(mode=DW))


def test_a_wanted_mode_is_taken_although_a_higher_row_fits() -> None:
    choice = choose_wal(facts("aliyun"), Wants(mode=OB))
    assert (choice.row, choice.reasons[-1]) == ("3", "object is asked for")


def test_what_was_settled_stays_when_the_cloud_learns_more() -> None:
    choice = choose_wal(facts("gcp"), Wants(settled=OB))
    assert choice.mode is OB
    assert "was chosen when the cluster was first applied" in choice.reasons[-1]


def test_what_the_data_plane_cannot_drive_is_not_chosen() -> None:
    choice = choose_wal(facts("aliyun"), Wants(), driven=frozenset({Drive.OBJECT}))
    assert choice.mode is OB
    assert any("not driven by this version" in other.why for other in choice.rejected)


def test_an_objective_below_the_band_is_refused_and_nothing_else_is_chosen() -> None:
    with pytest.raises(Invalid, match="produceP99Ms 4 is below the 5-20 ms of regional-block"):
        choose_wal(facts("aliyun"), Wants(produce_p99_ms=4))
    inside = choose_wal(facts("aliyun"), Wants(produce_p99_ms=10))
    assert any("inside the design band" in warning for warning in inside.warnings)
    assert not choose_wal(facts("aliyun"), Wants(produce_p99_ms=20)).warnings
    with pytest.raises(Invalid) as caught:
        choose_wal(facts("aws", express_zones=()), Wants(produce_p99_ms=50))
    assert "block+express was rejected" in (caught.value.hint or "")


def test_rpo_objective_holds_against_zonal_block() -> None:
    wants = Wants(mode=ZB, accept_zone_loss_rpo=True)
    with pytest.raises(Invalid, match="rpoZoneLoss"):
        choose_wal(facts("azure"), replace(wants, rpo_zone_loss_ms=9_999))
    assert choose_wal(facts("azure"), replace(wants, rpo_zone_loss_ms=10_000)).mode is ZB


def test_surviving_an_object_outage_sizes_the_wal() -> None:
    # Aliyun, November 2023: 101 minutes. 100 MiB/s need 592 GiB in all.
    minutes_101 = 101 * 60_000
    choice = choose_wal(facts("aliyun"), Wants(survive_object_outage_ms=minutes_101, brokers=5))
    assert 591 < 5 * choice.bytes_max / (1 << 30) < 592
    with pytest.raises(Invalid, match="is full after 13 s"):
        choose_wal(facts("aliyun"), Wants(survive_object_outage_ms=minutes_101, brokers=5, bytes_max=256 << 20))
    with pytest.raises(Invalid, match="stops with the object store"):
        choose_wal(facts("private"), Wants(survive_object_outage_ms=60_000))
    with pytest.raises(Invalid, match="ends at 32767 GiB"):
        choose_wal(facts("azure"), Wants(survive_object_outage_ms=7 * 86_400_000, load=Load(ingest_mib_s=1000)))


def test_brokers_in_the_only_express_zone_use_the_object_wal() -> None:
    choice = choose_wal(facts("aws", express_zones=("use1-az5",)), Wants())
    assert choice.object_zones == ("use1-az5",)
    assert choice.express_of == (("use1-az4", "use1-az5"),)
    assert any("use the object WAL" in warning for warning in choice.warnings)


maybe = st.sampled_from([None, True, False])
zone_lists = st.lists(
    st.sampled_from(["use1-az4", "use1-az5", "us-central1-a", "us-central1-b"]), unique=True, max_size=4
).map(tuple)
probes = st.builds(
    Probed,
    object_store=st.sampled_from([None, Scope.REGIONAL, Scope.ZONAL]),
    create_if_absent=maybe,
    regional_block=maybe,
    cross_zone_multi_attach=maybe,
    persistent_reservations=maybe,
    share_max=st.sampled_from([None, 1, 2, 16]),
    express_zones=st.none() | zone_lists,
)
wishes = st.builds(
    Wants,
    mode=st.none() | st.sampled_from(WalMode),
    settled=st.none() | st.sampled_from(WalMode),
    accept_zone_loss_rpo=st.booleans(),
    bytes_max=st.none() | st.integers(4 << 20, 1 << 34),
    produce_p99_ms=st.none() | st.integers(1, 2000),
    rpo_zone_loss_ms=st.none() | st.integers(0, 60_000),
    survive_object_outage_ms=st.none() | st.integers(0, 7_200_000),
    brokers=st.integers(1, 64),
)
drives = st.frozensets(st.sampled_from(Drive))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PROVIDERS), st.booleans(), probes, wishes, drives)
def test_a_choice_is_possible_honest_and_complete(
    provider: str, lab: bool, probed: Probed, wants: Wants, driven: frozenset[Drive]
) -> None:
    known = overlay(facts(provider, lab=lab), probed, "probed")
    try:
        choice = choose_wal(known, wants, driven=driven)
    except Invalid as refusal:
        assert refusal.message
        assert "\n" not in refusal.message
        return
    if choice.mode is ZB:
        assert wants.accept_zone_loss_rpo
    assert choice.mode is (wants.mode or wants.settled or choice.mode)
    assert {other.mode for other in choice.rejected} | {choice.mode.value} >= {mode.value for mode in WalMode}
    assert all(other.why for other in choice.rejected)
    assert choice.bytes_max >= (wants.bytes_max or 0)
    if wants.produce_p99_ms is not None:
        assert choice.p99_ms[0] <= wants.produce_p99_ms
    if wants.rpo_zone_loss_ms == 0:
        assert choice.rpo != "up to 10 s of acked records"
    if wants.survive_object_outage_ms:
        assert choice.mode is not OB
        assert choice.bytes_max * wants.brokers >= wants.load.ingest_mib_s * wants.survive_object_outage_ms / 1000 * 1e6
    assert_cloud_can(known, choice)


def assert_cloud_can(known: Capabilities, choice: WalChoice) -> None:
    """Judged from the facts alone, without the table."""
    store = known.object_class
    assert store is not None
    assert store.create_if_absent is not False
    blocks = {block.name: block for block in known.regional_blocks}
    if choice.mode is RB:
        block = blocks[str(choice.block)]
        assert block.offered
        if not choice.failover_needs_cloud_api:
            assert block.cross_zone_multi_attach and block.reservations_work and (block.share_max or 0) >= 2
            assert choice.attach_zones_max >= 2
    if choice.mode is DW:
        express = dict(choice.express_of)
        assert set(express) | set(choice.object_zones) == set(known.zones)
        assert express
        for zone, other in express.items():
            assert other != zone
            assert other in (known.express_zones or ())
        if choice.object_zones:
            assert store.scope is not Scope.ZONAL
    if choice.mode is OB:
        assert store.scope is not Scope.ZONAL


def test_table_has_each_row_once() -> None:
    numbers = [row.number for rows in ROWS.values() for row in rows]
    assert len(numbers) == len(set(numbers))
