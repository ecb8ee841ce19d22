"""Machines for a cell's pods: a managed Kubernetes cluster with a node pool a zone, or pools that join one. Pure.

`kubernetes_aws.py` and its like create what is decided here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from controlplane.operator.manifests import NAME, NAMESPACE
from providers.base.errors import Invalid

MACHINES = {"aws": "m7i.xlarge", "azure": "Standard_D4s_v5", "gcp": "n2-standard-4", "aliyun": "ecs.g7.xlarge"}
"""4 vCPUs and 16 GiB each, as the machines that docs/cost.md reckons with, and with processors of the kind x86-64 that
every image has. (Instance types: EC2 "M7i", Azure "Dsv5 series", Compute Engine "N2", ECS "g7".)"""
NODES_MAX = 100
DISK_MIN_GIB = 20
_EXISTING_NEEDS = {
    "aws": ("subnets",),
    "azure": ("subnets", "resource_group", "oidc_issuer"),
    "gcp": (),
    "aliyun": ("subnets", "oidc_issuer", "oidc_provider"),
}
_GRAVITON = re.compile(r"[a-z]+[0-9]+g[a-z]*(-[a-z0-9]+)?\.")


@dataclass(frozen=True, slots=True)
class ExistingCluster:
    """A managed Kubernetes cluster that is there already. Nothing of it is changed; node pools join it."""

    cluster: str
    """Its name; on Aliyun its id."""
    subnets: Mapping[str, str] = field(default_factory=dict)
    """By zone, the id of the subnet of the nodes, in the cluster's network. Not on GCP: the cluster's own is taken."""
    location: str | None = None
    """GCP: its region or, of a zonal cluster, its zone. None: the Cloud's region."""
    resource_group: str | None = None
    """Azure: where it is."""
    oidc_issuer: str | None = None
    """Azure, Aliyun: the URL of the issuer of its service accounts' tokens."""
    oidc_provider: str | None = None
    """Aliyun: the ARN of RAM's OIDC provider of that issuer (RRSA)."""


@dataclass(frozen=True, slots=True)
class KubernetesArgs:
    """Machines for a cell, as nodes of Kubernetes: a pool in each of its zones."""

    existing: ExistingCluster | None = None
    """None: a managed cluster is made (EKS, AKS, GKE, ACK)."""
    version: str | None = None
    """Of Kubernetes, for example "1.34". None: the cloud's default."""
    machine_type: str | None = None
    """In the cloud's own words. None: `MACHINES`, with 4 vCPUs and 16 GiB."""
    min_nodes: int = 1
    """A zone, 1 to 100. Pods of one cluster's brokers in a zone are on nodes of their own: give as many nodes."""
    max_nodes: int = 3
    """A zone, up to 100. AKS, GKE and ACK scale by themselves; on EKS that takes the Cluster Autoscaler."""
    disk_gib: int = 100
    """Of a node's own disk. Pods' volumes are others."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the nodes, beside `yunhe.io/cell`. The cloud itself labels zones. There are no taints: pods of engines
    tolerate none, and priorities let batch work share their nodes (docs/install-kubernetes.md)."""
    private: bool = False
    """Whether the API server answers in the cell's network alone."""
    namespace: str | None = None
    """Of the pods. None: the Cloud's `kubernetes.namespace`, else yunhe."""
    service_account: str | None = None
    """That has the cell's identity. None: the Cloud's `kubernetes.serviceAccount`, else yunhe."""
    operator_namespace: str | None = "yunhe-system"
    """Of Yunhe's operator, whose account has the cell's identity too: by the bucket it tells agents their work. None:
    it runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The nodes of a zone. `subnet`: its id, in an existing cluster; None: the cell's own."""

    name: str
    zone: str
    subnet: str | None


@dataclass(frozen=True, slots=True)
class Account:
    """A service account that has the cell's identity."""

    namespace: str
    name: str

    @property
    def subject(self) -> str:
        """What its tokens say of it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


@dataclass(frozen=True, slots=True)
class NodeNeeds:
    """All that a cloud's module creates nodes from."""

    cluster: str
    existing: ExistingCluster | None
    version: str | None
    machine_type: str
    min_nodes: int
    max_nodes: int
    disk_gib: int
    labels: Mapping[str, str]
    private: bool
    accounts: tuple[Account, ...]
    pools: tuple[Pool, ...]

    @property
    def arm(self) -> bool:
        """Whether the machines are AWS's with processors of the kind ARM64 (a `g` after the generation: m7g, c8gn)."""
        return _GRAVITON.match(self.machine_type) is not None


def decide_nodes(
    name: str, provider: str, zones: Sequence[str], stated: Mapping[str, Any] | None, args: KubernetesArgs
) -> NodeNeeds:
    """The nodes of the cell `name`. `stated`: `kubernetes` in the Cloud's spec.

    Raises:
        Invalid: a number out of bounds, no name of a namespace or account, or an existing cluster of which too little
            is said.
    """
    if not 1 <= args.min_nodes <= args.max_nodes <= NODES_MAX:
        raise Invalid(
            f"a zone cannot have {args.min_nodes} to {args.max_nodes} nodes",
            hint=f"1 <= min_nodes <= max_nodes <= {NODES_MAX}",
        )
    if args.disk_gib < DISK_MIN_GIB:
        raise Invalid(f"a node's disk of {args.disk_gib} GiB is too small", hint=f"at least {DISK_MIN_GIB}")
    stated = stated or {}
    namespace = args.namespace or stated.get("namespace") or "yunhe"
    account = args.service_account or stated.get("serviceAccount") or "yunhe"
    for word, given, said in (
        ("namespace", namespace, stated.get("namespace")),
        ("serviceAccount", account, stated.get("serviceAccount")),
        ("namespace", args.operator_namespace or "none", None),
    ):
        if len(given) > 63 or re.fullmatch(NAMESPACE, given) is None:
            raise Invalid(f"kubernetes: {given!r} is no name of a {word}", hint="a-z, 0-9 and '-', at most 63")
        if said is not None and given != said:
            raise Invalid(
                f"kubernetes: {word} is {given}, and {said} in the Cloud {name}", hint="say it in the Cloud alone"
            )
    accounts = [Account(namespace, account)]
    if args.operator_namespace is not None:
        accounts.append(Account(args.operator_namespace, NAME))
    if args.existing is not None:
        _check_existing(provider, zones, args.existing)
    subnets = args.existing.subnets if args.existing is not None else {}
    return NodeNeeds(
        # GKE's names have 40 characters at most, and those of the others more.
        cluster=args.existing.cluster if args.existing is not None else f"yunhe-{name}"[:40].rstrip("-"),
        existing=args.existing,
        version=args.version,
        machine_type=args.machine_type or MACHINES[provider],
        min_nodes=args.min_nodes,
        max_nodes=args.max_nodes,
        disk_gib=args.disk_gib,
        labels={**args.labels, "yunhe.io/cell": name},
        private=args.private,
        accounts=tuple(accounts),
        pools=tuple(Pool(pool_name(name, provider, zone), zone, subnets.get(zone)) for zone in zones),
    )


def pool_name(cell: str, provider: str, zone: str) -> str:
    """Cells may share a cluster, so the cell is in it; by a digest, for AKS takes 12 letters and digits, GKE 40."""
    digest = hashlib.sha256(cell.encode()).hexdigest()
    return f"y{digest[:8]}{zone}"[:12] if provider == "azure" else f"yunhe-{digest[:6]}-{zone}"


def kubeconfig(cluster: str, endpoint: str, authority: str, command: Sequence[str]) -> str:
    """For kubectl, with a program that signs in: no credentials are in it. `authority`: PEM in base 64."""
    login = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": command[0],
        "args": list(command[1:]),
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": True,
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": endpoint, "certificate-authority-data": authority}}],
        "users": [{"name": cluster, "user": {"exec": login}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    }
    return yaml.safe_dump(document, sort_keys=False)


def cluster_of(config: str) -> Mapping[str, Any]:
    """Of a kubeconfig its first cluster: `server`, `certificate-authority-data`. No credentials are among it."""
    found: Mapping[str, Any] = yaml.safe_load(config)["clusters"][0]["cluster"]
    return found


def account_manifests(
    needs: NodeNeeds, annotations: Mapping[str, str], namespace_labels: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Namespaces and service accounts, with what binds each account to the cell's identity."""
    found: list[dict[str, Any]] = []
    for account in needs.accounts:
        space: dict[str, Any] = {"name": account.namespace}
        if namespace_labels:
            space["labels"] = dict(namespace_labels)
        own: dict[str, Any] = {"name": account.name, "namespace": account.namespace}
        if annotations:
            own["annotations"] = dict(annotations)
        found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": space})
        found.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own})
    return found


def _check_existing(provider: str, zones: Sequence[str], existing: ExistingCluster) -> None:
    missing = [name for name in _EXISTING_NEEDS[provider] if not getattr(existing, name)]
    if missing:
        raise Invalid(
            f"an existing cluster on {provider} lacks {', '.join(missing)}",
            hint="fields of `existing`: docs/pulumi-cells.md",
        )
    if provider == "gcp":
        if existing.subnets:
            raise Invalid("nodes on gcp are in the network of their cluster", hint="leave `subnets` out")
        return
    without = [zone for zone in zones if zone not in existing.subnets]
    if without:
        raise Invalid(f"`subnets` of the existing cluster names none in {', '.join(without)}", hint="one for each zone")


def args_of(given: Any) -> KubernetesArgs | None:
    """From a stack's configuration: an object whose keys are the fields in camelCase; `true` is an empty one. None: no
    nodes.

    Raises:
        Invalid: an unknown key, or a value of another type.
    """
    if given is None or given is False:
        return None
    if given is True:
        return KubernetesArgs()
    found = _filled(KubernetesArgs, given, "yunhe:kubernetes")
    if "existing" in found:
        there = _filled(ExistingCluster, found["existing"], "yunhe:kubernetes.existing")
        if "cluster" not in there:
            raise Invalid("yunhe:kubernetes.existing lacks cluster", hint="its name; on aliyun its id")
        found["existing"] = ExistingCluster(**there)
    return KubernetesArgs(**found)


def _filled(kind: type[Any], given: Any, where: str) -> dict[str, Any]:
    named = {re.sub("_(.)", lambda at: at[1].upper(), one.name): one for one in fields(kind)}
    if not isinstance(given, dict):
        raise Invalid(f"{where} is no object", hint=f"with some of {', '.join(named)}")
    found = {}
    for key, value in given.items():
        if key not in named:
            raise Invalid(f"{where} has no field {key}", hint=f"it has {', '.join(named)}")
        one = named[key]
        wanted = _TYPES.get(str(one.type).partition(" ")[0].partition("[")[0])
        if value is None and str(one.type).endswith("None"):
            wanted = None
        if wanted is not None and type(value) is not wanted:
            raise Invalid(f"{where}.{key} is no {_WORDS[wanted]}: {value!r}")
        if wanted is dict and not all(isinstance(text, str) for text in value.values()):
            raise Invalid(f"{where}.{key} has a value that is no text")
        found[one.name] = value
    return found


_TYPES: dict[str, type[Any]] = {"int": int, "bool": bool, "str": str, "Mapping": dict}
_WORDS: dict[type[Any], str] = {int: "whole number", bool: "true or false", str: "text", dict: "object"}
