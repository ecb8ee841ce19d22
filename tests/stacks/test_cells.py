"""A cell creates what its WAL decision needs on each of four clouds, and no more. Judged by the SDKs' own classes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

pulumi = pytest.importorskip("pulumi")
for _sdk in ("pulumi_aws", "pulumi_azure_native", "pulumi_gcp", "pulumi_alicloud"):
    pytest.importorskip(_sdk, reason=f"{_sdk} comes with `make setup-stacks`")
# The first import of an SDK takes a while on a busy machine.
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning:pulumi_.*")]

from pulumi.runtime.mocks import MockMonitor  # noqa: E402

from controlplane.plan.wal_table import ALL_DRIVES  # noqa: E402
from providers.base.errors import Invalid  # noqa: E402
from stacks.cells import CellArgs, CloudCell  # noqa: E402
from stacks.cells.cell import _module  # noqa: E402

CLOUDS: dict[str, dict[str, Any]] = {
    "aws": {"provider": "aws", "region": "us-east-1", "zones": ["use1-az4", "use1-az5"]},
    "azure": {"provider": "azure", "region": "eastus", "zones": ["1", "2"]},
    "gcp": {"provider": "gcp", "region": "us-central1", "zones": ["us-central1-a", "us-central1-b"]},
    "aliyun": {"provider": "aliyun", "region": "cn-hangzhou", "zones": ["cn-hangzhou-h", "cn-hangzhou-i"]},
}
VOLUMES = {
    "aws": "aws:ebs/volume:Volume",
    "azure": "azure-native:compute:Disk",
    "gcp": "gcp:compute/regionDisk:RegionDisk",
    "aliyun": "alicloud:ecs/ecsDisk:EcsDisk",
}
BUCKETS = {
    "aws": "aws:s3/bucket:Bucket",
    "azure": "azure-native:storage:BlobContainer",
    "gcp": "gcp:storage/bucket:Bucket",
    "aliyun": "alicloud:oss/bucket:Bucket",
}


class Cloud(pulumi.runtime.Mocks):
    """A cloud that takes everything and writes down what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.requests: dict[tuple[str, str], Any] = {}
        """By type and name: resources are registered in several threads at once."""
        self.states: dict[str, dict[str, Any]] = {}
        """By type, what the cloud says of a resource beside what it was asked for."""
        self.answers: dict[str, dict[str, Any]] = {}
        """By function, what it answers; others are not to be called."""

    def new_resource(self, args: Any) -> tuple[str, dict[str, Any]]:
        self.asked.append((args.typ, args.name, dict(args.inputs)))
        state = {**args.inputs, "arn": f"arn:aws:s3:::{args.inputs.get('bucket', args.name)}", "name": args.name}
        if "availabilityZoneId" in args.inputs:
            state["availabilityZone"] = f"name-of-{args.inputs['availabilityZoneId']}"
        return f"{args.name}-id", {**state, **self.states.get(args.typ, {})}

    def call(self, args: Any) -> dict[str, Any]:
        if args.token in self.answers:
            return self.answers[args.token]
        raise AssertionError(f"a cell asks the cloud nothing, and {args.token} was called")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [inputs for typ, _, inputs in self.asked if typ == kind]


def made(provider: str, cluster: Mapping[str, Any] | None = None, **more: Any) -> tuple[Cloud, dict[str, Any]]:
    """What was asked for, and the component's outputs."""
    cloud, outputs = more.pop("cloud", None) or Cloud(), {}
    asyncio.set_event_loop(asyncio.new_event_loop())
    monitor = MockMonitor(cloud)
    register = monitor.RegisterResource

    def noting(request: Any) -> Any:
        cloud.requests[request.type, request.name] = request
        return register(request)

    monitor.RegisterResource = noting
    pulumi.runtime.set_mocks(cloud, preview=False, monitor=monitor)
    spec = {**CLOUDS[provider], **more.pop("spec", {})}

    def program() -> Any:
        cell = CloudCell("cell-1", CellArgs(spec, cluster, **more))
        every = pulumi.Output.all(
            bucket=cell.bucket,
            express=cell.express_bucket,
            volumes=cell.volumes,
            identity=cell.identity,
            endpoint=cell.endpoint,
            kubernetes=cell.kubernetes,
            kubeconfig=cell.kubeconfig,
            secret=pulumi.Output.all(*map(_is_secret, (cell.kubernetes, cell.kubeconfig))),
        )
        return every.apply(outputs.update)

    _run(program)
    return cloud, outputs


async def _is_secret(output: Any) -> bool:
    return bool(await output.is_secret())


def _run(program: Callable[[], Any]) -> None:
    pulumi.runtime.test(program)()


@pytest.mark.parametrize("provider", ["azure", "gcp", "aliyun"])
def test_regional_block_makes_one_redundant_shared_volume_a_broker(provider: str) -> None:
    cloud, outputs = made(provider, {"brokers": 2})
    volumes = cloud.of(VOLUMES[provider])
    assert len(volumes) == 2
    assert sorted(outputs["volumes"]) == ["cell-1-b-1-wal", "cell-1-b-2-wal"]
    assert outputs["express"] is None
    for volume in volumes:
        match provider:
            case "azure":
                assert volume["sku"]["name"].endswith("_ZRS") and volume["maxShares"] >= 2 and "zones" not in volume
            case "gcp":
                assert set(volume["replicaZones"]) == {"us-central1-a", "us-central1-b"}
                assert volume["accessMode"] == "READ_WRITE_MANY"
            case _:
                assert volume["category"] == "cloud_regional_disk_auto" and volume["multiAttach"] == "Enabled"
                assert "zoneId" not in volume


def test_block_express_makes_a_zonal_volume_and_a_directory_bucket_in_another_zone() -> None:
    cloud, outputs = made("aws", {"brokers": 2})
    volumes = {v["tags"]["Name"]: v for v in cloud.of(VOLUMES["aws"])}
    assert volumes["cell-1-b-1-wal"]["availabilityZone"] == "name-of-use1-az4"
    assert {v["type"] for v in volumes.values()} == {"gp3"}
    directory = cloud.of("aws:s3/directoryBucket:DirectoryBucket")
    assert {d["location"]["name"] for d in directory} == {"use1-az4", "use1-az5"}
    assert outputs["express"] == {z: f"yunhe-cell-1--{z}--x-s3" for z in ("use1-az4", "use1-az5")}


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_object_makes_no_volume_and_no_express_bucket(provider: str) -> None:
    cloud, outputs = made(provider, {"brokers": 2, "wal": {"mode": "object"}})
    assert cloud.of(VOLUMES[provider]) == [] and outputs["volumes"] == {} and outputs["express"] is None
    assert len(cloud.of(BUCKETS[provider])) == 1 and outputs["endpoint"].startswith("https://")


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_a_real_cloud_gets_what_the_plan_says_and_volumes_when_the_engine_drives_them(provider: str) -> None:
    real = {"target": "real", "real": {"bucket": "a-bucket-of-mine"}}
    wal = {"brokers": 1}
    cloud, outputs = made(provider, wal, spec=real)
    assert cloud.of(VOLUMES[provider]) == []  # this version's data plane drives the object WAL there
    if provider == "aws":
        cloud, outputs = made(provider, wal, spec=real, driven=ALL_DRIVES)
        assert len(cloud.of(VOLUMES[provider])) == 1 and list(outputs["express"]) == ["use1-az5"]


def test_a_region_without_express_or_regional_volumes_gets_the_object_wal() -> None:
    cloud, _ = made("aws", {"brokers": 1}, spec={"capabilities": {"expressZones": []}})
    assert cloud.of(VOLUMES["aws"]) == []
    cloud, _ = made("aliyun", {"brokers": 1}, spec={"capabilities": {"regionalBlock": False}})
    assert cloud.of(VOLUMES["aliyun"]) == []


@pytest.mark.parametrize("provider", list(CLOUDS))
@pytest.mark.parametrize("protect", [True, False])
def test_data_is_protected_and_kept_unless_it_is_said_otherwise(provider: str, protect: bool) -> None:
    cloud, _ = made(provider, {"brokers": 2}, protect=protect)
    data = {VOLUMES[provider], BUCKETS[provider], "aws:s3/directoryBucket:DirectoryBucket"}
    rpcs = [request for (typ, _), request in cloud.requests.items() if typ in data]
    assert len(rpcs) >= 3
    assert {(rpc.protect, rpc.retainOnDelete) for rpc in rpcs} == {(protect, protect)}


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_no_bucket_has_versions_or_lifecycle_rules(provider: str) -> None:
    cloud, _ = made(provider, {"brokers": 2})
    [bucket] = cloud.of(BUCKETS[provider])
    assert "lifecycleRules" not in bucket and "retentionPolicy" not in bucket
    assert bucket.get("versioning", {"enabled": False}) == {"enabled": False}
    if provider == "aliyun":
        assert "versioning" not in bucket and bucket["redundancyType"] == "ZRS"
    if provider == "gcp":
        assert bucket["softDeletePolicy"] == {"retentionDurationSeconds": 0}


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_identities_are_granted_action_by_action(provider: str) -> None:
    cloud, _ = made(provider, {"brokers": 2})
    actions = _granted(cloud)
    assert len(actions) >= 4
    assert [action for action in actions if "*" in action] == []


def _granted(cloud: Cloud) -> list[str]:
    found: list[str] = []
    for typ, _, inputs in cloud.asked:
        for key in ("policy", "policyDocument"):
            if key in inputs and typ != "aws:s3/bucketPolicy:BucketPolicy":
                for statement in json.loads(inputs[key])["Statement"]:
                    found += statement["Action"]
        if typ.endswith(":IAMCustomRole"):
            found += inputs["permissions"]
        if typ.endswith(":RoleDefinition"):
            for permission in inputs["permissions"]:
                found += [*permission["actions"], *permission["dataActions"]]
    return found


def test_s3_refuses_overwrites_below_ledgers_and_wals() -> None:
    cloud, _ = made("aws", {"brokers": 1})
    [policy] = cloud.of("aws:s3/bucketPolicy:BucketPolicy")
    deny = next(s for s in json.loads(policy["policy"])["Statement"] if s["Sid"] == "CreateOnlyIfAbsent")
    assert deny["Effect"] == "Deny" and deny["Condition"]["Null"] == {"s3:if-none-match": "true"}
    assert deny["Resource"] == [f"arn:aws:s3:::yunhe-cell-1/*/{folder}/*" for folder in ("ledger", "wal")]


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_tags_reach_the_bucket_and_a_zone_is_made_when_asked_for(provider: str) -> None:
    cloud, _ = made(provider, tags={"team": "rivers"}, dns_zone="example.org")
    tagged = [inputs for _, _, inputs in cloud.asked if "team" in (inputs.get("tags") or inputs.get("labels") or {})]
    assert tagged
    zones = [typ for typ, _, _ in cloud.asked if typ.split(":")[-1] in ("Zone", "ManagedZone", "AlidnsDomain")]
    assert len(zones) == 1


def test_a_wrong_spec_is_refused_in_one_sentence_and_nothing_is_created() -> None:
    with pytest.raises(Invalid, match=r"^Cloud cell-1: spec.region: "):
        made("aws", spec={"region": ""})
    with pytest.raises(Invalid, match=r"cannot have wal\.mode regional-block"):
        made("aws", {"brokers": 1, "wal": {"mode": "regional-block"}})


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_a_missing_sdk_is_named_with_the_extra_that_brings_it(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = {"aws": "pulumi_aws", "azure": "pulumi_azure_native", "gcp": "pulumi_gcp", "aliyun": "pulumi_alicloud"}
    monkeypatch.delitem(sys.modules, f"stacks.cells.{provider}", raising=False)
    monkeypatch.setitem(sys.modules, sdk[provider], None)
    with pytest.raises(Invalid) as refused:
        _module(provider)
    assert refused.value.hint == f"pip install 'yunhe[pulumi-{provider}]'"
