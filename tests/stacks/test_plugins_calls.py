"""What the lab's plugins answer to the engine, call by call, over an emulated AWS."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from pulumi.runtime.proto import provider_pb2

from providers.base.buckets import Bucket, open_bucket
from providers.base.clock import SystemClock, SystemRng
from providers.lab.running import RunningCloud, lab
from stacks.plugins.server import PACKAGES, LabPlugin
from stacks.wire import SECRET, SIGNATURE, UNKNOWN, plain_of

BUCKET, SUBNET, VOLUME = "aws:s3/bucket:Bucket", "aws:ec2/subnet:Subnet", "aws:ebs/volume:Volume"
ROLE = "aws:iam/role:Role"


class Refused(Exception):
    """The call ended with an error."""


class Context:
    """As gRPC's: `abort` ends the call."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Refused(details)

    def set_trailing_metadata(self, metadata: Any) -> None: ...


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    root = tmp_path_factory.mktemp("lab")
    with lab("aws=aws:us-east-1:use1-az4,use1-az5", state_dir=root) as clouds:
        yield clouds["aws"]


@pytest.fixture
def plugin(cloud: RunningCloud) -> LabPlugin:
    made = LabPlugin("", PACKAGES["aws"], str(root_of(cloud)))
    made.Configure(provider_pb2.ConfigureRequest(variables={"aws:config:region": "us-east-1"}), Context())
    return made


def root_of(cloud: RunningCloud) -> Path:
    return Path(str(cloud.address.bucket.credentials_file)).parents[2]


def urn(token: str, name: str = "one") -> str:
    return f"urn:pulumi:lab::project::yunhe:cells:CloudCell${token}::{name}"


def request(kind: Any, **fields: Any) -> Any:
    made = kind()
    for name, value in fields.items():
        if isinstance(value, dict):
            getattr(made, name).update(value)
        else:
            setattr(made, name, value)
    return made


def create(plugin: LabPlugin, token: str, inputs: dict[str, Any], *, preview: bool = False) -> Any:
    asked = request(provider_pb2.CreateRequest, urn=urn(token), properties=inputs, preview=preview)
    return plugin.Create(asked, Context())


def check(plugin: LabPlugin, token: str, news: dict[str, Any], olds: dict[str, Any] | None = None) -> Any:
    asked = request(provider_pb2.CheckRequest, urn=urn(token), news=news, olds=olds or {}, randomSeed=b"seed")
    return plugin.Check(asked, Context())


def delete(plugin: LabPlugin, token: str, id_: str, inputs: dict[str, Any]) -> None:
    asked = request(provider_pb2.DeleteRequest, urn=urn(token), id=id_, properties=inputs, old_inputs=inputs)
    plugin.Delete(asked, Context())


def in_bucket(cloud: RunningCloud, name: str, body: Any) -> Any:
    async def main() -> Any:
        address = replace(cloud.address.bucket, bucket=name)
        bucket: Bucket = open_bucket(address, clock=SystemClock(), rng=SystemRng())
        try:
            return await body(bucket)
        finally:
            await bucket.close()

    return asyncio.run(main())


def test_a_bucket_with_objects_is_deleted_only_by_force(plugin: LabPlugin, cloud: RunningCloud) -> None:
    made = create(plugin, BUCKET, {"bucket": "full-of-objects"})
    assert made.id == "full-of-objects" and plain_of(made.properties)["arn"] == "arn:aws:s3:::full-of-objects"
    in_bucket(cloud, "full-of-objects", lambda bucket: bucket.put("folder/k", b"x"))
    with pytest.raises(Refused, match="bucket full-of-objects is not empty"):
        delete(plugin, BUCKET, made.id, {"bucket": "full-of-objects"})
    assert in_bucket(cloud, "full-of-objects", lambda bucket: bucket.get("folder/k")) == b"x"
    forced = {"bucket": "full-of-objects", "forceDestroy": True}
    update = request(provider_pb2.UpdateRequest, urn=urn(BUCKET), id=made.id, news=forced)
    plugin.Update(update, Context())
    delete(plugin, BUCKET, made.id, forced)
    assert not in_bucket(cloud, "full-of-objects", lambda bucket: bucket.bucket_exists())


def test_what_somebody_else_has_made_is_not_taken_over_but_may_be_imported(
    plugin: LabPlugin, cloud: RunningCloud
) -> None:
    in_bucket(cloud, "of-somebody", lambda bucket: bucket.ensure_bucket())
    with pytest.raises(Refused, match="bucket of-somebody is there already"):
        create(plugin, BUCKET, {"bucket": "of-somebody"})
    read = plugin.Read(request(provider_pb2.ReadRequest, urn=urn(BUCKET), id="of-somebody"), Context())
    assert (read.id, plain_of(read.inputs)) == ("of-somebody", {"bucket": "of-somebody"})
    absent = plugin.Read(request(provider_pb2.ReadRequest, urn=urn(BUCKET), id="of-nobody"), Context())
    assert absent.id == ""


def test_what_a_resource_names_must_be_there(plugin: LabPlugin) -> None:
    wanted = {"vpcId": "vpc-1", "cidrBlock": "10.0.0.0/20", "availabilityZoneId": "use1-az4"}
    with pytest.raises(Refused, match="vpcId vpc-1: there is no such Vpc"):
        create(plugin, SUBNET, wanted)
    vpc = create(plugin, "aws:ec2/vpc:Vpc", {"cidrBlock": "10.0.0.0/16"})
    with pytest.raises(Refused, match="zone use1-az9 is not in aws"):
        create(plugin, SUBNET, {**wanted, "vpcId": vpc.id, "availabilityZoneId": "use1-az9"})
    subnet = plain_of(create(plugin, SUBNET, {**wanted, "vpcId": vpc.id}).properties)
    assert subnet["availabilityZone"].startswith("us-east-1")


def test_a_preview_makes_nothing_and_leaves_open_what_is_not_known(plugin: LabPlugin, cloud: RunningCloud) -> None:
    hidden = {SIGNATURE: SECRET, "value": "of-nobody-else"}
    shown = create(plugin, BUCKET, {"bucket": "not-yet", "tags": {"a": UNKNOWN, "b": hidden}}, preview=True)
    assert not shown.id
    assert shown.properties["arn"] == UNKNOWN and shown.properties["tags"]["a"] == UNKNOWN
    assert shown.properties["tags"]["b"][SIGNATURE] == SECRET
    assert not in_bucket(cloud, "not-yet", lambda bucket: bucket.bucket_exists())


def test_a_name_that_is_left_out_is_made_up_and_stays(plugin: LabPlugin) -> None:
    first = plain_of(check(plugin, ROLE, {"assumeRolePolicy": "{}"}).inputs)
    assert first["name"].startswith("one-") and len(first["name"]) == len("one-") + 7
    assert plain_of(check(plugin, ROLE, {"assumeRolePolicy": "{}"}).inputs) == first
    kept = plain_of(check(plugin, ROLE, {"assumeRolePolicy": "{}"}, {"name": "as-it-was"}).inputs)
    assert kept["name"] == "as-it-was"


def test_wrong_inputs_are_refused_before_anything_is_made(plugin: LabPlugin) -> None:
    missing = check(plugin, VOLUME, {"size": 10})
    assert [one.reason for one in missing.failures] == ["availabilityZone must be given"]
    grown = check(plugin, VOLUME, {"availabilityZone": "a", "size": 20}, {"availabilityZone": "a", "size": 10})
    assert [one.reason for one in grown.failures] == ["the lab cannot change size of one in place (a cloud can)"]
    unknown = check(plugin, "aws:sqs/queue:Queue", {})
    assert "does not serve aws:sqs/queue:Queue" in unknown.failures[0].reason
    with pytest.raises(Refused, match="does not serve aws:index/getRegion:getRegion"):
        plugin.Invoke(request(provider_pb2.InvokeRequest, tok="aws:index/getRegion:getRegion"), Context())


@pytest.mark.parametrize(
    ("package", "token"),
    [
        ("aws", "aws:eks/cluster:Cluster"),
        ("azure-native", "azure-native:containerservice:ManagedCluster"),
        ("gcp", "gcp:container/nodePool:NodePool"),
        ("alicloud", "alicloud:cs/managedKubernetes:ManagedKubernetes"),
    ],
)
def test_machines_are_refused_for_the_lab_has_no_kubernetes_service(package: str, token: str, tmp_path: Path) -> None:
    [failure] = check(LabPlugin("", PACKAGES[package], str(tmp_path)), token, {}).failures
    said = f"plugin of {package} does not serve {token} (the lab has no Kubernetes service: rehearse cells without"
    assert said in failure.reason
    assert not list(tmp_path.iterdir())


def test_a_lab_without_such_a_cloud_is_said_with_how_to_start_one(tmp_path: Path) -> None:
    plugin = LabPlugin("", PACKAGES["gcp"], str(tmp_path))
    [failure] = check(plugin, "gcp:storage/bucket:Bucket", {"name": "b", "location": "US"}).failures
    assert "has no cloud of gcp" in failure.reason and "yunhe lab up --cloud gcp-usc1=gcp:" in failure.reason


def test_the_version_is_that_of_the_sdk_and_the_shelf_is_the_owners_alone(
    plugin: LabPlugin, cloud: RunningCloud
) -> None:
    pytest.importorskip("pulumi_aws")
    import importlib.metadata

    assert plugin.GetPluginInfo(None, None).version == importlib.metadata.version("pulumi-aws")
    create(plugin, ROLE, {"assumeRolePolicy": "{}", "name": "a-role"})
    mode = (root_of(cloud) / "lab" / "aws" / "pulumi.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    with pytest.raises(Refused, match="a-role is there already"):
        create(plugin, ROLE, {"assumeRolePolicy": "{}", "name": "a-role"})


def test_a_plugin_ends_with_the_engine_that_was_killed() -> None:
    plugin = [sys.executable, "-m", "stacks.plugins", "aws", "127.0.0.1:1"]
    program = f"import subprocess; p = subprocess.Popen({plugin!r}); print(p.pid, flush=True); p.wait()"
    engine = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    pid, port = int(engine.stdout.readline()), int(engine.stdout.readline())
    assert port > 0 and psutil.Process(pid).is_running()
    engine.kill()
    engine.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the plugin outlived its engine"
        time.sleep(0.1)
