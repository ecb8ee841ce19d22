"""`yunhe cost`, and prices laid over the catalogue's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.api.load import load
from controlplane.api.specs import Specs
from controlplane.cli.main import run
from controlplane.plan.bill import PARTS, bill_plain, cloud_costs
from controlplane.plan.cost import Load
from controlplane.plan.resolve import Assumed
from providers.base.capabilities import capabilities_of
from providers.base.errors import Invalid
from providers.base.prices import Prices, overlay_prices, read_prices

ROOT = Path(__file__).parents[3]
FOUR = ROOT / "examples" / "four-clouds.yaml"
STUDY = ROOT.parent / "shared" / "facts" / "clouds.yaml"
PLACES = {
    "aliyun": ("cn-hangzhou", ("cn-hangzhou-h", "cn-hangzhou-i")),
    "azure": ("eastus", ("1", "2", "3")),
    "gcp": ("us-central1", ("us-central1-a", "us-central1-b")),
    "aws": ("us-east-1", ("use1-az4", "use1-az5")),
    "private": ("site", ("hall-a", "hall-b")),
}


def four_clouds() -> Specs:
    return load([FOUR])


def test_every_cloud_has_every_mode_by_part_and_kafka_beside_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", str(FOUR), "-o", "json"]) == 0
    bill = json.loads(capfd.readouterr().out)
    assert bill["catalogue"]["date"]
    assert [cloud["cloud"] for cloud in bill["clouds"]] == ["aliyun-hz", "aws-use1", "azure-eus", "gcp-usc1"]
    for cloud in bill["clouds"]:
        modes = {mode["mode"]: mode for mode in cloud["modes"]}
        assert {"regional-block", "block+express", "object", "zonal-block"} <= set(modes)
        assert [mode["mode"] for mode in cloud["modes"] if mode["chosen"]] == [cloud["modes"][0]["mode"]]
        for mode in cloud["modes"]:
            assert mode["chosen"] or mode["why"]
        for cost in [m["cost"] for m in cloud["modes"] if m["cost"]] + [k["cost"] for k in cloud["kafka"]]:
            assert set(PARTS) < set(cost)
            known = [cost[part] for part in PARTS if cost[part] is not None]
            assert cost["known"] == pytest.approx(sum(known))
            assert (cost["total"] is None) is (len(known) < len(PARTS))
        assert len(cloud["kafka"]) == 3


def test_a_mode_that_a_cloud_does_not_have_has_a_reason_and_no_price() -> None:
    (aws,) = [cloud for cloud in cloud_costs(four_clouds(), Assumed()) if cloud.cloud == "aws-use1"]
    (regional,) = [mode for mode in aws.modes if mode.mode == "regional-block"]
    assert regional.cost is None
    assert "no volume of AWS reaches two zones" in (regional.why or "")


def test_own_prices_reach_the_bill_and_are_named_in_it() -> None:
    prices = read_prices(
        {
            "entries": [{"provider": "aws", "name": "s3-standard", "price_gib_month": 0.01}],
            "providers": {"aws": {"inter_az_gib": {"total": 0.0}}, "aliyun": {"compute_ref": {"usd_month": 140}}},
        },
        "mine.yaml",
    )
    before = {cloud.cloud: cloud.chosen for cloud in cloud_costs(four_clouds(), Assumed())}
    after = {cloud.cloud: cloud.chosen for cloud in cloud_costs(four_clouds(), Assumed(prices=prices))}
    assert (after["aws-use1"].storage or 0) == pytest.approx((before["aws-use1"].storage or 0) / 2.3)
    assert after["aws-use1"].cross_zone == 0
    assert before["aliyun-hz"].total is None
    assert after["aliyun-hz"].compute == after["aliyun-hz"].nodes * 140
    assert after["azure-eus"] == before["azure-eus"]
    plain = bill_plain(cloud_costs(four_clouds(), Assumed(prices=prices)), overlay="mine.yaml")
    assert plain["catalogue"]["overlay"] == "mine.yaml"
    assert plain["total"]["chosen"] == pytest.approx(sum(cost.total or 0 for cost in after.values()))


def test_stated_load_goes_before_the_specs() -> None:
    (first, *_) = cloud_costs(four_clouds(), Assumed(load=Load(ingest_mib_s=7)))
    assert dict(first.chosen.symbols)["W"] == 7


@pytest.mark.skipif(not STUDY.exists(), reason="the study of the four clouds is not beside this tree")
@pytest.mark.parametrize("provider", PLACES)
def test_the_catalogue_agrees_with_the_study_it_was_taken_from(provider: str) -> None:
    prices = read_prices(yaml.safe_load(STUDY.read_text()), STUDY.name)
    known = capabilities_of(provider, *PLACES[provider])
    assert overlay_prices(known, prices) == known
    # That it would notice: every class of the catalogue with a price is in the study.
    priced = {entry.name for entry in (*known.objects, *known.regional_blocks)}
    assert {(provider, name) for name in priced} <= set(prices.entries) | {("private", "s3-compatible")}


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ([], "holds no prices"),
        ({"entries": {}}, "is a list of mappings"),
        ({"entries": [{"provider": "aws"}]}, "names a provider and a class"),
        ({"entries": [{"provider": "oracle", "name": "x"}]}, "names a provider and a class"),
        ({"entries": [{"provider": "aws", "name": "gp3", "price_gib_month": -1}]}, "0 or more"),
        ({"entries": [{"provider": "aws", "name": "gp3", "price_gib_month": "cheap"}]}, "0 or more"),
        ({"entries": [{"provider": "aws", "name": "s3-standard", "requests": {"put": True}}]}, "0 or more"),
        ({"entries": [{"provider": "azure", "name": "premium-ssd-zrs", "price_tier_month": 5}]}, "P10_128GiB"),
        ({"providers": {"oracle": {}}}, "is no provider"),
        ({"providers": {"aws": {"internet_egress_gib": {"tiers": [[1]]}}}}, "list of"),
    ],
)
def test_prices_that_make_no_sense_are_refused_in_one_sentence(plain: Any, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        read_prices(plain, "mine.yaml")
    assert "\n" not in caught.value.message


def test_a_class_that_the_catalogue_does_not_have_is_refused() -> None:
    prices = Prices(entries={("aws", "gp9"): {"price_gib_month": 1.0}})
    with pytest.raises(Invalid, match="gp9"):
        overlay_prices(capabilities_of("aws", *PLACES["aws"]), prices)


def test_explain_shows_money_or_latency_of_each_mode_when_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("entries: [{provider: aws, name: gp3, price_gib_month: 0.04}]\n")
    common = ["--state-dir", str(tmp_path / "state"), "--prices", str(prices)]
    assert run(["explain", "wal", "aws", "--price", *common]) == 0
    text = capfd.readouterr().out
    assert "CROSS-ZONE" in text
    assert "P99 MS" not in text
    assert "Kafka, 3 replicas on gp3" in text
    assert run(["explain", "wal", "aws", "--latency", *common]) == 0
    text = capfd.readouterr().out
    assert "P99 MS" in text
    assert "CROSS-ZONE" not in text
    assert run(["explain", "wal", "aws", "--prices", str(tmp_path / "none.yaml")]) == 1
    assert "cannot be read" in capfd.readouterr().err
