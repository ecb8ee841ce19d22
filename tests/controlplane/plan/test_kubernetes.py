"""What engines become on Kubernetes: exactly what edition, cloud and spec give, and nothing that they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.apply.render import Places, assignments
from controlplane.plan.kubernetes import OF, Manifest, Rendered
from controlplane.plan.kubernetes_engines import render_engines, run_by_agents
from controlplane.plan.model import Recorded
from controlplane.plan.plan import make_plan
from controlplane.plan.render import render_plan
from controlplane.plan.resolve import resolve
from dataplane.agent.__main__ import AgentConfig
from dataplane.contract.codec import from_json
from providers.base.errors import Invalid
from providers.base.registry import StoreAddress

EXAMPLE = Path(__file__).parents[3] / "examples" / "kubernetes.yaml"

PROVIDERS: dict[str, dict[str, Any]] = {
    "aws": {"region": "eu-west-1", "zones": ["euw1-az1", "euw1-az2"]},
    "azure": {"region": "westeurope", "zones": ["1", "2"]},
    "gcp": {"region": "us-central1", "zones": ["us-central1-a", "us-central1-b"]},
    "aliyun": {"region": "cn-hangzhou", "zones": ["cn-hangzhou-h", "cn-hangzhou-i"]},
    "private": {"region": "site", "zones": ["hall-a", "hall-b"]},
}


def a_cloud(provider: str = "aws", endpoint: str | None = None, **kubernetes: Any) -> dict[str, Any]:
    real = {"bucket": "streams", **({"endpoint": endpoint} if endpoint else {})}
    spec = {"provider": provider, **PROVIDERS[provider], "target": "real", "real": real}
    spec["kubernetes"] = {"namespace": "kafka", **kubernetes}
    return {"kind": "Cloud", "metadata": {"name": "c"}, "spec": spec}


def automq(cloud: dict[str, Any], wal: dict[str, Any] | None = None, **fields: Any) -> list[dict[str, Any]]:
    spec = {"cloud": "c", "brokers": 3, "engine": "automq", "wal": wal or {}, "automq": fields}
    return [cloud, {"kind": "BrokerCluster", "metadata": {"name": "orders"}, "spec": spec}]


def loaded(documents: list[dict[str, Any]]) -> Specs:
    text = yaml.safe_dump_all([{"apiVersion": "yunhe.io/v1alpha1", **document} for document in documents])
    return load_texts([("f.yaml", text)])


def rendered(documents: list[dict[str, Any]]) -> list[Rendered]:
    specs = loaded(documents)
    return list(render_engines(specs, resolve(specs)))


def one(found: list[Rendered], kind: str, name: str) -> Manifest:
    [manifest] = [m for r in found for m in r.manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return manifest


def properties(found: list[Rendered], name: str) -> dict[str, str]:
    text = one(found, "ConfigMap", name)["data"]["server.properties"]
    return dict(line.split("=", 1) for line in text.splitlines())


def test_the_open_edition_gets_the_object_wal_and_the_plan_says_so() -> None:
    """Regional block is what the cloud would give; the open edition has none, whatever is asked for."""
    asked = automq(a_cloud("aliyun"), {"mode": "regional-block"})
    found = rendered(asked)
    assert properties(found, "orders-cn-hangzhou-h")["s3.wal.path"] == (
        "0@s3://streams?region=oss-cn-hangzhou&endpoint=https://oss-cn-hangzhou.aliyuncs.com&authType=instance"
    )
    assert "block://" not in json.dumps([r.manifests for r in found])
    plan = render_plan(make_plan(loaded(asked), Recorded()))
    assert "automq on Kubernetes, wal object" in plan
    assert "wal regional-block is asked for, and the open edition of AutoMQ has no WAL but the object WAL" in plan
    [note] = found[0].notes
    assert "falls back to object" in note


def test_the_enterprise_edition_gets_a_block_wal_on_a_volume_of_its_own() -> None:
    documents = automq(
        a_cloud("gcp", credentialsSecret="s"),
        {"mode": "regional-block"},
        edition="enterprise",
        image="r.example/automq:5.3",
    )
    found = rendered(documents)
    assert properties(found, "orders-us-central1-a")["s3.wal.path"].startswith("0@block:///dev/wal?capacity=")
    spec = one(found, "StatefulSet", "orders-us-central1-a")["spec"]
    wal = {c["metadata"]["name"]: c["spec"] for c in spec["volumeClaimTemplates"]}["wal"]
    assert wal["volumeMode"] == "Block"
    assert spec["template"]["spec"]["containers"][0]["volumeDevices"] == [{"name": "wal", "devicePath": "/dev/wal"}]


@pytest.mark.parametrize(
    ("cloud", "edition", "uri"),
    [
        (a_cloud("aws"), "open", "0@s3://streams?region=eu-west-1&authType=instance"),
        (
            a_cloud("gcp", credentialsSecret="hmac"),
            "open",
            "0@s3://streams?region=us-central1&endpoint=https://storage.googleapis.com&authType=static",
        ),
        (
            a_cloud("azure", "https://acct.blob.core.windows.net", credentialsSecret="blob"),
            "enterprise",
            "0@azblob://streams?region=westeurope&endpoint=https://acct.blob.core.windows.net&authType=static",
        ),
        (
            a_cloud("private", "http://minio:9000", credentialsSecret="minio"),
            "open",
            "0@s3://streams?region=site&pathStyle=true&endpoint=http://minio:9000&authType=static",
        ),
    ],
    ids=["aws", "gcp", "azure", "private"],
)
def test_the_buckets_address_is_written_as_each_cloud_wants_it(cloud: dict[str, Any], edition: str, uri: str) -> None:
    found = rendered(automq(cloud, {"mode": "object"}, edition=edition, image="r.example/automq:1"))
    keys = properties(found, "orders-controller")
    assert keys["s3.data.buckets"] == keys["s3.wal.path"] == uri
    assert keys["s3.ops.buckets"] == "1" + uri[1:]


@pytest.mark.parametrize(
    ("documents", "what", "hint"),
    [
        (automq(a_cloud("azure", "https://a.blob.core.windows.net")), "cannot keep its data in Azure", "enterprise"),
        (automq(a_cloud("gcp")), "HMAC keys", "credentialsSecret"),
        (automq(a_cloud(), edition="enterprise"), "no public image", "automq: {image:"),
        (
            automq(
                a_cloud("gcp", credentialsSecret="s"),
                {"mode": "regional-block"},
                edition="enterprise",
                image="x",
                deploy="strimzi",
            ),
            "no raw device",
            "statefulsets",
        ),
    ],
    ids=["azure", "gcp", "image", "strimzi"],
)
def test_what_an_edition_lacks_is_refused_with_what_to_do(documents: Any, what: str, hint: str) -> None:
    with pytest.raises(Invalid) as refused:
        rendered(documents)
    assert what in refused.value.message
    assert refused.value.message.startswith("f.yaml:")
    assert hint in str(refused.value.hint)


def test_without_kubernetes_these_engines_are_refused_where_they_are_written() -> None:
    cloud = a_cloud()
    del cloud["spec"]["kubernetes"]
    with pytest.raises(Invalid, match="engine automq runs on Kubernetes, and cloud c names none"):
        loaded(automq(cloud))


def test_a_pool_a_zone_with_ids_that_later_brokers_do_not_change() -> None:
    few = rendered(automq(a_cloud(storageClasses={"euw1-az2": "slow"}, storageClass="fast")))
    pools = {zone: one(few, "StatefulSet", f"orders-{zone}")["spec"] for zone in ("euw1-az1", "euw1-az2")}
    assert {zone: spec["replicas"] for zone, spec in pools.items()} == {"euw1-az1": 2, "euw1-az2": 1}
    for at, (zone, spec) in enumerate(pools.items()):
        pod = spec["template"]["spec"]
        environment = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        assert environment["NODE_ID_BASE"] == str(1000 + 100 * at)
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        [expression] = terms[0]["matchExpressions"]
        assert expression == {"key": "topology.k8s.aws/zone-id", "operator": "In", "values": [zone]}
        assert properties(few, f"orders-{zone}")["broker.rack"] == zone
    classes = [spec["volumeClaimTemplates"][0]["spec"]["storageClassName"] for spec in pools.values()]
    assert classes == ["fast", "slow"]


def test_an_azure_zone_is_named_as_its_nodes_are_labelled() -> None:
    cloud = a_cloud("azure", "https://a.blob.core.windows.net", credentialsSecret="s", image="r.example/y:1")
    documents = [cloud, {"kind": "BrokerCluster", "metadata": {"name": "b"}, "spec": {"cloud": "c", "brokers": 1}}]
    pod = one(rendered(documents), "StatefulSet", "c-1")["spec"]["template"]["spec"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0] == {
        "key": "topology.kubernetes.io/zone",
        "operator": "In",
        "values": ["westeurope-1"],
    }


def test_an_agent_on_azure_asks_for_its_accounts_token_where_it_has_no_credentials() -> None:
    label = "azure.workload.identity/use"
    for provider, kubernetes, wanted in (
        ("azure", {"serviceAccount": "yunhe"}, "true"),
        ("azure", {"serviceAccount": "yunhe", "credentialsSecret": "s"}, None),
        ("gcp", {"serviceAccount": "yunhe"}, None),
    ):
        endpoint = "https://a.blob.core.windows.net" if provider == "azure" else None
        cloud = a_cloud(provider, endpoint, image="r.example/y:1", **kubernetes)
        cluster = {"kind": "BrokerCluster", "metadata": {"name": "b"}, "spec": {"cloud": "c", "brokers": 1}}
        [made] = [m for r in rendered([cloud, cluster]) for m in r.manifests if m["kind"] == "StatefulSet"]
        assert made["spec"]["template"]["metadata"]["labels"].get(label) == wanted
        assert label not in made["spec"]["selector"]["matchLabels"]


def test_pods_of_ours_are_rolled_by_the_operator_and_keep_their_volumes() -> None:
    found = rendered(automq(a_cloud()))
    sets = [m for r in found for m in r.manifests if m["kind"] == "StatefulSet"]
    assert len(sets) == 3
    for made in sets:
        assert made["spec"]["updateStrategy"] == {"type": "OnDelete"}
        kept = {"whenDeleted": "Retain", "whenScaled": "Retain"}
        assert made["spec"]["persistentVolumeClaimRetentionPolicy"] == kept
        assert "hostPath" not in json.dumps(made)
    deleting = rendered(automq(a_cloud(deleteVolumes=True)))
    spec = one(deleting, "StatefulSet", "orders-controller")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Delete"}


def test_a_changed_configuration_is_another_revision_of_the_pods_and_an_equal_one_is_not() -> None:
    def template(**fields: Any) -> Manifest:
        made: Manifest = one(rendered(automq(a_cloud(), **fields)), "StatefulSet", "orders-euw1-az1")["spec"][
            "template"
        ]
        return made

    assert template() == template()
    assert template() != template(walCache="1GiB")


def test_credentials_are_references_and_nothing_else() -> None:
    found = rendered(automq(a_cloud("aliyun", credentialsSecret="oss")))
    container = one(found, "StatefulSet", "orders-controller")["spec"]["template"]["spec"]["containers"][0]
    secret = [e for e in container["env"] if e["name"] == "KAFKA_S3_SECRET_KEY"]
    reference = {"secretKeyRef": {"name": "oss", "key": "access-key-secret"}}
    assert secret == [{"name": "KAFKA_S3_SECRET_KEY", "valueFrom": reference}]
    assert "accessKey" not in json.dumps([r.manifests for r in found])


def test_agents_are_a_pod_a_zone_that_an_agent_can_read() -> None:
    """The configuration is what the agent itself parses."""
    specs = load_texts([("kubernetes.yaml", EXAMPLE.read_text())])
    found = list(render_engines(specs, resolve(specs)))
    for zone in ("us-central1-a", "us-central1-b"):
        config = from_json(AgentConfig, one(found, "Secret", f"gcp-usc1-{zone}")["stringData"]["agent.json"].encode())
        assert (config.agent, config.zone) == (f"gcp-usc1-{zone}", zone)
        assert config.bucket.credentials_file == "env:YUNHE_BUCKET_CREDENTIALS"
        spec = one(found, "StatefulSet", f"gcp-usc1-{zone}")["spec"]
        pod = spec["template"]["spec"]
        assert spec["replicas"] == 1
        assert config.stop_with_agent
        assert pod["containers"][0]["readinessProbe"]["exec"]["command"] == ["test", "-f", config.ready_file]
        assert pod["terminationGracePeriodSeconds"] > 15  # what a broker may take to hand over


def test_strimzi_gets_a_pool_a_zone_and_none_of_the_keys_that_it_keeps_for_itself() -> None:
    found = rendered(automq(a_cloud(), deploy="strimzi"))
    kafka = one(found, "Kafka", "orders")
    config = kafka["spec"]["kafka"]["config"]
    assert config["elasticstream.enable"] == "true"
    forbidden = ("listeners", "advertised.", "node.id", "process.roles", "controller.", "log.dir", "broker.rack")
    assert not [key for key in config if key.startswith(forbidden)]
    pool = one(found, "KafkaNodePool", "orders-euw1-az2")
    assert pool["metadata"]["annotations"] == {"strimzi.io/next-node-ids": "[1100-1199]"}
    assert pool["metadata"]["labels"]["strimzi.io/cluster"] == "orders"
    assert pool["spec"]["roles"] == ["broker"]


@pytest.mark.parametrize(
    ("cloud", "store"),
    [
        (a_cloud("aws"), "s3"),
        (a_cloud("aliyun"), "oss"),
        (a_cloud("gcp"), "gcs"),
        (a_cloud("azure", "https://a.blob.core.windows.net"), "azblob"),
    ],
)
def test_greptimedb_has_exactly_one_store_and_its_own_log_or_kafkas(cloud: dict[str, Any], store: str) -> None:
    spec = {"role": "cloud", "cloud": "c", "engine": "greptimedb", "greptimedb": {"version": "v1.0.0"}}
    small = {"kind": "Database", "metadata": {"name": "db"}, "spec": spec}
    alone = one(rendered([cloud, small]), "GreptimeDBStandalone", "db")["spec"]
    assert set(alone["objectStorage"]) == {store}
    assert set(alone["wal"]) == {"raftEngine"}
    log = {"version": "v1.0.0", "etcd": ["etcd:2379"], "kafka": ["orders:9092"]}
    large = {**small, "spec": {**spec, "nodes": 3, "greptimedb": log}}
    several = one(rendered([cloud, large]), "GreptimeDBCluster", "db")["spec"]
    assert several["wal"] == {"kafka": {"brokerEndpoints": ["orders:9092"]}}
    assert several["meta"]["enableRegionFailover"] is True
    assert several["datanode"]["replicas"] == 3
    without = {**small, "spec": {**spec, "nodes": 3}}
    with pytest.raises(Invalid, match="whose metadata is in etcd"):
        rendered([cloud, without])


def test_names_are_unique_and_everything_says_whose_it_is() -> None:
    specs = load_texts([("kubernetes.yaml", EXAMPLE.read_text())])
    found = render_engines(specs, resolve(specs))
    every = [m for r in found for m in r.manifests]
    keys = [(m["kind"], m["metadata"]["namespace"], m["metadata"]["name"]) for m in every]
    assert len(keys) == len(set(keys)) > 20
    assert all(m["metadata"]["labels"][OF] == r.of for r in found for m in r.manifests)


def test_what_agents_do_not_run_is_told_from_what_they_do() -> None:
    specs = load_texts([("kubernetes.yaml", EXAMPLE.read_text())])
    ours = run_by_agents(specs)
    assert set(ours.clusters) == {"telemetry"} and set(ours.clouds) == set(specs.clouds)
    assert not ours.databases


def test_brokers_in_pods_listen_on_their_pods_name_unless_the_spec_says_otherwise() -> None:
    """The name is the pod's: <set>-0.<service>.<namespace>.svc."""
    specs = load_texts([("kubernetes.yaml", EXAMPLE.read_text())])
    cloud, cluster = specs.clouds["gcp-usc1"], specs.clusters["telemetry"]
    resolved = resolve(specs)["telemetry"]
    places = Places(StoreAddress("gcp", "example-cell", "us-central1"))
    told = assignments("gcp-usc1", cluster, resolved, places, (), cloud.spec.kubernetes)
    zone = "us-central1-b"
    hosts = {broker.host for broker in told[f"gcp-usc1-{zone}"].brokers}
    assert hosts == {f"gcp-usc1-{zone}-0.gcp-usc1-{zone}.streams.svc"}
    made = one(list(render_engines(specs, resolve(specs))), "StatefulSet", f"gcp-usc1-{zone}")
    assert made["spec"]["serviceName"] == f"gcp-usc1-{zone}"
    elsewhere = assignments("gcp-usc1", cluster, resolved, places, ())
    assert {broker.host for broker in elsewhere[f"gcp-usc1-{zone}"].brokers} == {"127.0.0.1"}
