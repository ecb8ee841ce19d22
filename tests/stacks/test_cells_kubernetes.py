"""A cell's machines: a node pool a zone, pods that reach the bucket without keys, and nothing else that is new."""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("pulumi")
for _sdk in ("pulumi_aws", "pulumi_azure_native", "pulumi_gcp", "pulumi_alicloud"):
    pytest.importorskip(_sdk, reason=f"{_sdk} comes with `make setup-stacks`")
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning:pulumi_.*")]

import yaml  # noqa: E402

from providers.base.errors import Invalid  # noqa: E402
from stacks.cells import ExistingCluster, KubernetesArgs  # noqa: E402
from stacks.cells.nodes import args_of, decide_nodes, kubeconfig, pool_name  # noqa: E402
from stacks.plugins.server import OF_NODES  # noqa: E402
from tests.stacks.test_cells import BUCKETS, CLOUDS, VOLUMES, Cloud, _granted, made  # noqa: E402

CLUSTERS = {
    "aws": "aws:eks/cluster:Cluster",
    "azure": "azure-native:containerservice:ManagedCluster",
    "gcp": "gcp:container/cluster:Cluster",
    "aliyun": "alicloud:cs/managedKubernetes:ManagedKubernetes",
}
POOLS = {
    "aws": "aws:eks/nodeGroup:NodeGroup",
    "azure": "azure-native:containerservice:AgentPool",
    "gcp": "gcp:container/nodePool:NodePool",
    "aliyun": "alicloud:cs/nodePool:NodePool",
}
ROLES = {"aws": "aws:iam/role:Role", "aliyun": "alicloud:ram/role:Role"}
SERVER, AUTHORITY = "https://api.example:443", "Q0E="
CONFIG = yaml.safe_dump(
    {"clusters": [{"cluster": {"server": SERVER, "certificate-authority-data": AUTHORITY}}], "users": ["a key"]}
)
ANNOTATIONS = {
    "aws": {},
    "azure": {"azure.workload.identity/client-id": "client-1"},
    "gcp": {"iam.gke.io/gcp-service-account": "yunhe@rivers"},
    "aliyun": {"pod-identity.alibabacloud.com/role-name": "yunhe-cell-1"},
}
EXISTING = {
    "aws": {"subnets": {"use1-az4": "subnet-4", "use1-az5": "subnet-5"}},
    "azure": {"subnets": {"1": "s", "2": "s"}, "resource_group": "theirs", "oidc_issuer": "https://issuer/theirs"},
    "gcp": {"location": "us-central1-a"},
    "aliyun": {
        "subnets": {"cn-hangzhou-h": "vsw-h", "cn-hangzhou-i": "vsw-i"},
        "oidc_issuer": "https://issuer/theirs",
        "oidc_provider": "acs:ram::1:oidc-provider/theirs",
    },
}


def answering() -> Cloud:
    """A cloud whose clusters have what clouds give them."""
    cloud = Cloud()
    cloud.states = {
        CLUSTERS["aws"]: {"endpoint": SERVER, "certificateAuthority": {"data": AUTHORITY}},
        CLUSTERS["azure"]: {
            "oidcIssuerProfile": {"enabled": True, "issuerURL": "https://issuer/ours"},
            "identity": {"type": "UserAssigned", "userAssignedIdentities": {"cell-1-control-id": {}}},
        },
        CLUSTERS["gcp"]: {
            "endpoint": SERVER.removeprefix("https://"),
            "masterAuth": {"clusterCaCertificate": AUTHORITY},
        },
        CLUSTERS["aliyun"]: {
            "rrsaMetadata": {
                "rrsaOidcIssuerUrl": "https://issuer/ours",
                "ramOidcProviderArn": "acs:ram::1:oidc-provider/ours",
            }
        },
        "azure-native:managedidentity:UserAssignedIdentity": {"clientId": "client-1", "principalId": "principal-1"},
        "gcp:serviceaccount/account:Account": {
            "project": "rivers",
            "email": "yunhe@rivers",
            "member": "serviceAccount:yunhe@rivers",
        },
    }
    encoded = base64.b64encode(CONFIG.encode()).decode()
    cloud.answers = {
        "azure-native:containerservice:listManagedClusterUserCredentials": {
            "kubeconfigs": [{"name": "clusterUser", "value": encoded}]
        },
        "alicloud:cs/getClusterCredential:getClusterCredential": {"kubeConfig": CONFIG},
    }
    return cloud


def with_nodes(provider: str, args: KubernetesArgs | None = None, **more: Any) -> tuple[Cloud, dict[str, Any]]:
    return made(provider, {"brokers": 2}, kubernetes=args or KubernetesArgs(), cloud=answering(), **more)


@cache
def usual(provider: str) -> tuple[Cloud, dict[str, Any]]:
    """A cell with nodes of which nothing in particular was said."""
    return with_nodes(provider)


@cache
def without_nodes(provider: str) -> tuple[Cloud, dict[str, Any]]:
    return made(provider, {"brokers": 2}, cloud=answering())


def existing(provider: str, **more: Any) -> KubernetesArgs:
    return KubernetesArgs(ExistingCluster("theirs", **{**EXISTING[provider], **more}))


def asked(cloud: Cloud) -> dict[tuple[str, str], dict[str, Any]]:
    return {(typ, name): inputs for typ, name, inputs in cloud.asked}


def pools(provider: str, cloud: Cloud) -> list[dict[str, Any]]:
    """In the order of zones. AKS makes the first ones with the cluster."""
    if provider == "azure" and (clusters := cloud.of(CLUSTERS["azure"])):
        return list(clusters[0]["agentPoolProfiles"])
    return sorted(cloud.of(POOLS[provider]), key=lambda pool: str(pool))


def trusts(cloud: Cloud, provider: str) -> list[dict[str, Any]]:
    """Of the role that is the cell's identity."""
    role = asked(cloud)[ROLES[provider], "cell-1-broker"]
    document = role["assumeRolePolicy" if provider == "aws" else "assumeRolePolicyDocument"]
    return list(json.loads(document)["Statement"])


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_nodes_are_made_only_when_asked_for_and_leave_the_rest_of_the_cell_as_it_is(provider: str) -> None:
    without, outputs = without_nodes(provider)
    assert outputs["kubernetes"] is None and outputs["kubeconfig"] is None
    served = {kind.token for kind in import_module(f"stacks.plugins.{provider}").KINDS}
    assert {typ for typ, _, _ in without.asked if typ != "yunhe:cells:CloudCell"} <= served
    before, after = asked(without), asked(usual(provider)[0])
    # The lab's plugins refuse each of them by the same reason, whichever comes first.
    more = {typ for typ, _ in after if typ not in served and typ != "yunhe:cells:CloudCell"}
    assert len(more) >= 2 and [typ for typ in more if not OF_NODES.match(typ)] == []
    trust = {(ROLES.get(provider), "cell-1-broker")}
    assert {key: after.get(key) for key in before if key not in trust} == {
        key: inputs for key, inputs in before.items() if key not in trust
    }
    if provider in ROLES:
        assert trusts(without, provider) == trusts(usual(provider)[0], provider)[:1]


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_a_pool_a_zone_lies_in_the_cells_own_subnet_with_what_was_asked_for(provider: str) -> None:
    args = KubernetesArgs(version="1.34", min_nodes=2, max_nodes=5, disk_gib=80, labels={"tier": "streams"})
    cloud, _ = with_nodes(provider, args)
    zones = CLOUDS[provider]["zones"]
    found = pools(provider, cloud)
    assert len(found) == len(zones) == 2 and len(cloud.of(CLUSTERS[provider])) == 1
    for zone, pool in zip(zones, found, strict=True):
        match provider:
            case "aws":
                assert pool["subnetIds"] == [f"cell-1-{zone}-id"] and pool["diskSize"] == 80
                assert pool["scalingConfig"] == {"minSize": 2, "desiredSize": 2, "maxSize": 5}
                assert (pool["instanceTypes"], pool["amiType"]) == (["m7i.xlarge"], "AL2023_x86_64_STANDARD")
                labels = pool["labels"]
            case "azure":
                assert (pool["availabilityZones"], pool["vnetSubnetID"]) == ([zone], "cell-1-subnet-id")
                assert (pool["minCount"], pool["maxCount"], pool["osDiskSizeGB"]) == (2, 5, 80)
                assert (pool["mode"], pool["vmSize"]) == ("System", "Standard_D4s_v5")
                labels = pool["nodeLabels"]
            case "gcp":
                assert pool["nodeLocations"] == [zone] and pool["location"] == "us-central1"
                assert pool["autoscaling"] == {"minNodeCount": 2, "maxNodeCount": 5}
                assert (pool["nodeConfig"]["machineType"], pool["nodeConfig"]["diskSizeGb"]) == ("n2-standard-4", 80)
                labels = pool["nodeConfig"]["labels"]
            case _:
                assert pool["vswitchIds"] == [f"cell-1-{zone}-id"] and pool["systemDiskSize"] == 80
                assert pool["scalingConfig"] == {"enable": True, "minSize": 2, "maxSize": 5}
                assert pool["instanceTypes"] == ["ecs.g7.xlarge"]
                labels = {one["key"]: one["value"] for one in pool["labels"]}
        assert labels == {"tier": "streams", "yunhe.io/cell": "cell-1"}
        assert "taints" not in pool and "nodeTaints" not in pool
    [cluster] = cloud.of(CLUSTERS[provider])
    assert "1.34" in (cluster.get("version"), cluster.get("kubernetesVersion"), cluster.get("minMasterVersion"))


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_the_api_server_is_private_when_it_is_asked_to_be(provider: str) -> None:
    for private in (True, False):
        cloud, _ = with_nodes(provider, KubernetesArgs(private=private))
        [cluster] = cloud.of(CLUSTERS[provider])
        match provider:
            case "aws":
                reached = cluster["vpcConfig"]["endpointPublicAccess"]
                assert cluster["vpcConfig"]["endpointPrivateAccess"] is True
            case "azure":
                reached = not cluster["apiServerAccessProfile"]["enablePrivateCluster"]
            case "gcp":
                reached = not cluster["privateClusterConfig"]["enablePrivateEndpoint"]
                assert cluster["privateClusterConfig"]["enablePrivateNodes"] is True
                assert ("masterAuthorizedNetworksConfig" in cluster) is private
            case _:
                reached = cluster["slbInternetEnabled"]
        assert reached is not private


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_two_service_accounts_have_the_cells_identity_and_nodes_have_no_right_to_the_bucket(provider: str) -> None:
    before, cloud = without_nodes(provider)[0], usual(provider)[0]
    more = {action for action in _granted(cloud) if action not in _granted(before)}
    accounts = [("yunhe", "yunhe"), ("yunhe-system", "yunhe-operator")]
    subjects = [f"system:serviceaccount:{namespace}:{name}" for namespace, name in accounts]
    match provider:
        case "aws":
            assert more == set()
            attached = cloud.of("aws:iam/rolePolicyAttachment:RolePolicyAttachment")
            assert {(one["role"], one["policyArn"].rpartition("/")[2]) for one in attached} == {
                ("cell-1-control", "AmazonEKSClusterPolicy"),
                ("cell-1-node", "AmazonEKSWorkerNodePolicy"),
                ("cell-1-node", "AmazonEKS_CNI_Policy"),
                ("cell-1-node", "AmazonEC2ContainerRegistryPullOnly"),
            }
            [machines, *pods] = trusts(cloud, provider)
            assert machines["Principal"] == {"Service": "ec2.amazonaws.com"}
            for trusted, (namespace, name) in zip(pods, accounts, strict=True):
                assert trusted["Principal"] == {"Service": "pods.eks.amazonaws.com"}
                assert trusted["Action"] == ["sts:AssumeRole", "sts:TagSession"]
                assert trusted["Condition"]["StringEquals"] == {
                    "aws:RequestTag/eks-cluster-name": "yunhe-cell-1",
                    "aws:RequestTag/kubernetes-namespace": namespace,
                    "aws:RequestTag/kubernetes-service-account": name,
                }
            bound = cloud.of("aws:eks/podIdentityAssociation:PodIdentityAssociation")
            assert sorted((one["namespace"], one["serviceAccount"]) for one in bound) == accounts
            assert {one["roleArn"] for one in bound} == {asked_arn("cell-1-broker")}
        case "azure":
            subnet = "Microsoft.Network/virtualNetworks/subnets"
            assert more == {f"{subnet}/join/action", f"{subnet}/read"}
            assigned = asked(cloud)["azure-native:authorization:RoleAssignment", "cell-1-control"]
            assert assigned["scope"] == "cell-1-subnet-id"
            bound = cloud.of("azure-native:managedidentity:FederatedIdentityCredential")
            assert sorted(one["subject"] for one in bound) == sorted(subjects)
            for one in bound:
                assert (one["issuer"], one["audiences"]) == ("https://issuer/ours", ["api://AzureADTokenExchange"])
                assert one["resourceName"] == "cell-1-broker"
        case "gcp":
            assert more == set()
            [node] = cloud.of("gcp:projects/iAMMember:IAMMember")
            assert node["role"] == "roles/container.defaultNodeServiceAccount"
            bound = cloud.of("gcp:serviceaccount/iAMMember:IAMMember")
            assert {one["role"] for one in bound} == {"roles/iam.workloadIdentityUser"}
            assert {one["member"] for one in bound} == {
                f"serviceAccount:rivers.svc.id.goog[{namespace}/{name}]" for namespace, name in accounts
            }
            [cluster] = cloud.of(CLUSTERS["gcp"])
            assert cluster["workloadIdentityConfig"] == {"workloadPool": "rivers.svc.id.goog"}
            for pool in pools(provider, cloud):
                assert pool["nodeConfig"]["workloadMetadataConfig"] == {"mode": "GKE_METADATA"}
        case _:
            assert more == set()
            [machines, pods] = trusts(cloud, provider)
            assert machines["Principal"] == {"Service": ["ecs.aliyuncs.com"]}
            assert pods["Principal"] == {"Federated": ["acs:ram::1:oidc-provider/ours"]}
            assert pods["Condition"]["StringEquals"] == {
                "oidc:iss": ["https://issuer/ours"],
                "oidc:aud": ["sts.aliyuncs.com"],
                "oidc:sub": subjects,
            }
            assert not [pool for pool in pools(provider, cloud) if "ramRoleName" in pool or "password" in pool]


def asked_arn(name: str) -> str:
    return f"arn:aws:s3:::{name}"  # what the tests' cloud calls everything


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_data_stays_protected_and_nothing_that_comes_with_nodes_is_kept(provider: str) -> None:
    before, cloud = without_nodes(provider)[0], with_nodes(provider, tags={"team": "rivers"})[0]
    data = {VOLUMES[provider], BUCKETS[provider], "aws:s3/directoryBucket:DirectoryBucket"}
    for key, request in cloud.requests.items():
        if key[0] in data:
            assert request.protect and request.retainOnDelete, key
        elif key not in before.requests:
            assert not request.protect and not request.retainOnDelete, key
    for typ in (CLUSTERS[provider], POOLS[provider]):
        for inputs in cloud.of(typ):
            tags = inputs.get("tags") or inputs.get("resourceLabels") or inputs["nodeConfig"]["resourceLabels"]
            assert tags["team"] == "rivers" and tags["yunhe-cell"] == "cell-1"


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_pools_join_an_existing_cluster_and_nothing_but_pools_is_made_for_it(provider: str) -> None:
    cloud, outputs = with_nodes(provider, existing(provider))
    before = asked(without_nodes(provider)[0])
    kinds = {typ.rpartition(":")[2] for typ, name in asked(cloud) if (typ, name) not in before}
    assert (
        kinds
        == {
            "aws": {"NodeGroup", "Role", "RolePolicyAttachment", "PodIdentityAssociation"},
            "azure": {"AgentPool", "FederatedIdentityCredential"},
            "gcp": {"NodePool", "Account", "IAMMember"},
            "aliyun": {"NodePool", "EcsKeyPair"},
        }[provider]
    )
    found = pools(provider, cloud)
    assert len(found) == 2
    for pool, subnet in zip(found, EXISTING[provider].get("subnets", {"a": "", "b": ""}).values(), strict=True):
        joined = {"aws": "clusterName", "azure": "resourceName", "gcp": "cluster", "aliyun": "clusterId"}[provider]
        assert pool[joined] == "theirs"
        match provider:
            case "aws":
                assert pool["subnetIds"] == [subnet]
            case "azure":
                assert (pool["vnetSubnetID"], pool["resourceGroupName"], pool["mode"]) == (subnet, "theirs", "User")
                bound = cloud.of("azure-native:managedidentity:FederatedIdentityCredential")
                assert {one["issuer"] for one in bound} == {"https://issuer/theirs"}
            case "gcp":
                assert pool["location"] == "us-central1-a"
            case _:
                assert pool["vswitchIds"] == [subnet]
                assert trusts(cloud, provider)[1]["Principal"] == {"Federated": ["acs:ram::1:oidc-provider/theirs"]}
    shown = outputs["kubernetes"]
    assert (shown["cluster"], shown["endpoint"], outputs["kubeconfig"]) == ("theirs", None, None)


@pytest.mark.parametrize("provider", list(CLOUDS))
def test_a_user_gets_the_cluster_its_account_and_a_kubeconfig_that_is_secret(provider: str) -> None:
    _, outputs = usual(provider)
    shown, secret = outputs["kubernetes"], outputs["secret"]
    assert secret == [False, True]
    assert (shown["endpoint"], shown["authority"]) == (SERVER, AUTHORITY)
    config = yaml.safe_load(outputs["kubeconfig"])
    assert config["clusters"][0]["cluster"] == {"server": SERVER, "certificate-authority-data": AUTHORITY}
    spaces, accounts = shown["manifests"][::2], shown["manifests"][1::2]
    assert [one["metadata"]["name"] for one in spaces] == ["yunhe", "yunhe-system"]
    assert [one["metadata"]["name"] for one in accounts] == ["yunhe", "yunhe-operator"]
    for account in accounts:
        assert account["metadata"].get("annotations", {}) == ANNOTATIONS[provider]
    assert ["labels" in one["metadata"] for one in spaces] == [provider == "aliyun"] * 2


def test_pods_are_those_that_the_cloud_speaks_of() -> None:
    pods = {"namespace": "streams", "serviceAccount": "brokers"}
    spec = {"target": "real", "real": {"bucket": "a-bucket"}, "kubernetes": pods}
    cloud, _ = with_nodes("aws", KubernetesArgs(operator_namespace=None), spec=spec)
    [bound] = cloud.of("aws:eks/podIdentityAssociation:PodIdentityAssociation")
    assert (bound["namespace"], bound["serviceAccount"]) == ("streams", "brokers")
    with pytest.raises(Invalid, match=r"namespace is others, and streams in the Cloud cell-1"):
        with_nodes("aws", KubernetesArgs(namespace="others"), spec=spec)


@pytest.mark.parametrize(
    ("provider", "args", "said"),
    [
        ("aws", KubernetesArgs(min_nodes=0), "cannot have 0 to 3 nodes"),
        ("gcp", KubernetesArgs(min_nodes=4), "cannot have 4 to 3 nodes"),
        ("aliyun", KubernetesArgs(disk_gib=5), "disk of 5 GiB is too small"),
        ("azure", KubernetesArgs(namespace="No"), "'No' is no name of a namespace"),
        ("aws", existing("aws", subnets={"use1-az4": "subnet-4"}), "names none in use1-az5"),
        ("aws", existing("aws", subnets={}), "an existing cluster on aws lacks subnets"),
        ("azure", existing("azure", oidc_issuer=None), "on azure lacks oidc_issuer"),
        ("aliyun", existing("aliyun", oidc_provider=None), "on aliyun lacks oidc_provider"),
        ("gcp", existing("gcp", subnets={"us-central1-a": "s"}), "in the network of their cluster"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(provider: str, args: KubernetesArgs, said: str) -> None:
    cloud = answering()
    with pytest.raises(Invalid, match=said):
        made(provider, {"brokers": 2}, kubernetes=args, cloud=cloud)
    assert cloud.asked == []


def test_the_image_of_a_node_on_aws_is_its_processors() -> None:
    for machine, arm in (("m7g.xlarge", True), ("c8gn.large", True), ("m7i.xlarge", False), ("g5.xlarge", False)):
        cloud, _ = with_nodes("aws", KubernetesArgs(machine_type=machine))
        assert {pool["amiType"] for pool in cloud.of(POOLS["aws"])} == {
            "AL2023_ARM_64_STANDARD" if arm else "AL2023_x86_64_STANDARD"
        }


def test_names_hold_to_the_clouds_bounds_and_differ_between_cells_and_zones() -> None:
    long = "a-cell-with-a-name-as-long-as-names-may-be-sixty-three-letters"
    zone = "northamerica-northeast1-a"
    assert len(pool_name(long, "gcp", zone)) <= 40 and len(pool_name(long, "azure", "3")) <= 12
    assert pool_name(long, "azure", "3").isalnum()
    assert len({pool_name(cell, "azure", at) for cell in ("a", "b") for at in ("1", "2")}) == 4
    assert len(decide_nodes(long, "gcp", [zone], None, KubernetesArgs()).cluster) <= 40


def test_a_kubeconfig_that_we_write_signs_in_by_a_program() -> None:
    config = yaml.safe_load(kubeconfig("one", SERVER, AUTHORITY, ("aws", "eks", "get-token")))
    assert config["users"][0]["user"]["exec"]["command"] == "aws" and config["current-context"] == "one"


def test_a_stacks_configuration_is_read_field_by_field() -> None:
    assert args_of(None) is None and args_of(False) is None and args_of(True) == KubernetesArgs()
    given = {"minNodes": 2, "private": True, "existing": {"cluster": "c", "oidcIssuer": "https://i"}}
    assert args_of(given) == KubernetesArgs(ExistingCluster("c", oidc_issuer="https://i"), min_nodes=2, private=True)
    assert args_of({"operatorNamespace": None}) == KubernetesArgs(operator_namespace=None)
    for wrong, said in (
        ({"nodes": 2}, "has no field nodes"),
        ({"minNodes": "2"}, "minNodes is no whole number"),
        ({"minNodes": True}, "minNodes is no whole number"),
        ({"labels": {"a": 1}}, "labels has a value that is no text"),
        ({"existing": {"subnets": {}}}, "lacks cluster"),
        ({"existing": "theirs"}, "existing is no object"),
        ("yes", "is no object"),
    ):
        with pytest.raises(Invalid, match=said):
            args_of(wrong)
