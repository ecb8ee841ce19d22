"""What a stack's configuration may say, and what the stacks of real clouds make, by Pulumi's mocks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pulumi
import pytest

from stacks.program import _files, program

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulumi_.*")

POOL = "aws:eks/nodeGroup:NodeGroup"
SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: east}
spec: {provider: aws, region: us-east-1, zones: [use1-az4, use1-az5], target: real, real: {bucket: our-east}}
---
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: west}
spec: {provider: aws, region: us-west-2, zones: [usw2-az1, usw2-az2]}
---
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: other}
spec: {provider: gcp, region: us-central1, zones: [us-central1-a, us-central1-b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: brokers-west}
spec: {cloud: west, brokers: 1}
"""


class Mocks(pulumi.runtime.Mocks):
    """A cloud that takes everything and writes down what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def new_resource(self, args: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append(args)
        return f"{args.name}-id", {**args.inputs, "arn": f"arn:{args.name}", "availabilityZone": "a", "name": args.name}

    def call(self, args: Any) -> dict[str, Any]:
        raise AssertionError(f"{args.token} was called")


def deployed(stack: str, tmp_path: Path, spec: str = SPEC, **more: str) -> Mocks:
    """The program on a stack of that name."""
    path, mocks = tmp_path / "spec.yaml", Mocks()
    path.write_text(spec)
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(mocks, project="yunhe", stack=stack, preview=False)
    pulumi.runtime.set_all_config({f"yunhe:{name}": value for name, value in {"spec": str(path), **more}.items()})
    try:
        pulumi.runtime.test(program)()
    finally:
        pulumi.runtime.set_all_config({})
    return mocks


def test_a_spec_is_one_file_or_a_list_and_the_example_by_default() -> None:
    assert _files("a.yaml") == ["a.yaml"]
    assert _files('["a.yaml", "b.yaml"]') == ["a.yaml", "b.yaml"]
    [example] = _files(None)
    assert Path(example).is_file()


def test_a_list_that_cannot_be_read_is_said_in_one_sentence() -> None:
    with pytest.raises(pulumi.RunError, match="neither a file's name nor a JSON list"):
        _files('["a.yaml"')


@pytest.mark.timeout(300)
def test_the_stack_of_a_provider_makes_a_cell_of_each_of_its_clouds_in_its_own_region(tmp_path: Path) -> None:
    pytest.importorskip("pulumi_aws", reason="comes with `make setup-stacks`")
    made = deployed("aws", tmp_path, dnsZone="example.org", tags=json.dumps({"team": "rivers"}))
    cells = [one.name for one in made.asked if one.typ == "yunhe:cells:CloudCell"]
    assert sorted(cells) == ["east", "west"]
    regions = {one.name: one.inputs["region"] for one in made.asked if one.typ == "pulumi:providers:aws"}
    assert regions == {"east": "us-east-1", "west": "us-west-2"}
    buckets = {one.inputs["bucket"]: one for one in made.asked if one.typ == "aws:s3/bucket:Bucket"}
    assert sorted(buckets) == ["our-east", "yunhe-west"]
    for name, cell in (("our-east", "east"), ("yunhe-west", "west")):
        assert f"pulumi:providers:aws::{cell}::" in buckets[name].provider
        assert buckets[name].inputs["tags"]["team"] == "rivers"
        assert buckets[name].inputs["forceDestroy"] is False
    assert {one.inputs["name"] for one in made.asked if one.typ == "aws:route53/zone:Zone"} == {
        "east.example.org",
        "west.example.org",
    }
    # Its brokers know their volumes by the cluster's name, which is not the cloud's.
    assert [one.name for one in made.asked if one.typ == "aws:ebs/volume:Volume"] == ["brokers-west-b-1-wal"]


def test_protection_is_given_up_only_when_the_configuration_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pulumi_gcp", reason="comes with `make setup-stacks`")
    made = deployed("gcp", tmp_path, protect="false")
    [bucket] = [one for one in made.asked if one.typ == "gcp:storage/bucket:Bucket"]
    assert bucket.inputs["forceDestroy"] is True


def test_machines_are_made_when_the_configuration_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pulumi_aws", reason="comes with `make setup-stacks`")
    none = deployed("aws", tmp_path)
    assert not [one for one in none.asked if one.typ.startswith("aws:eks/")]
    subnets = {zone: f"subnet-{zone}" for zone in ("use1-az4", "use1-az5", "usw2-az1", "usw2-az2")}
    there = {"cluster": "shared", "subnets": subnets}
    given = json.dumps({"existing": there, "minNodes": 2, "maxNodes": 2})
    groups = [one for one in deployed("aws", tmp_path, kubernetes=given).asked if one.typ == POOL]
    assert {(one.inputs["clusterName"], *one.inputs["subnetIds"]) for one in groups} == {
        ("shared", subnet) for subnet in subnets.values()
    }
    assert {one.inputs["scalingConfig"]["minSize"] for one in groups} == {2}
    with pytest.raises(pulumi.RunError, match=r"yunhe:kubernetes has no field nodes \(it has existing, version, "):
        deployed("aws", tmp_path, kubernetes=json.dumps({"nodes": 2}))


def test_a_spec_without_a_cloud_of_the_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pulumi.RunError, match="the spec has no Cloud of azure"):
        deployed("azure", tmp_path)
    with pytest.raises(pulumi.RunError, match="needs the field real"):
        deployed("aws", tmp_path, SPEC.replace(", real: {bucket: our-east}", ""))
