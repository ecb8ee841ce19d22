"""The component: `CloudCell(name, CellArgs(cloud={...}, cluster={...}))`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import pulumi

from controlplane.plan.wal_table import Drive
from providers.base.errors import Invalid
from stacks.cells.decision import CellNeeds, decide
from stacks.cells.nodes import KubernetesArgs, cluster_of

SDK = {"aws": "pulumi_aws", "azure": "pulumi_azure_native", "gcp": "pulumi_gcp", "aliyun": "pulumi_alicloud"}


@dataclass(frozen=True, slots=True)
class CellArgs:
    """What a cell is made from."""

    cloud: Mapping[str, Any]
    """The spec of a Cloud object. The component's name is the Cloud's."""
    cluster: Mapping[str, Any] | None = None
    """The spec of its BrokerCluster; `cloud` in it may be left out. None: no WAL volumes are made."""
    cluster_name: str | None = None
    """The BrokerCluster's name, after which brokers and their volumes are named; None: the Cloud's."""
    protect: bool = True
    """Whether buckets and volumes are protected from deletion, and kept in the cloud when they leave the program."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """On everything that takes tags. Lower-case letters, digits and hyphens are what all four clouds take."""
    dns_zone: str | None = None
    """Domain of which a public zone is made."""
    driven: Set[Drive] | None = None
    """What the engine's data plane carries out; None: what this version's does on that target."""
    kubernetes: KubernetesArgs | None = None
    """Machines, as nodes of Kubernetes; None: none are made."""


@dataclass(frozen=True, slots=True)
class BuiltKubernetes:
    """What a cloud's module made of nodes. Of an existing cluster nothing but the name is known."""

    cluster: pulumi.Input[str]
    """Its name; on Aliyun its id."""
    endpoint: pulumi.Input[str | None] = None
    """URL of the API server."""
    authority: pulumi.Input[str | None] = None
    """Certificate that signs the API server's: PEM in base 64."""
    kubeconfig: pulumi.Input[str | None] = None
    manifests: pulumi.Input[Sequence[Mapping[str, Any]]] = ()
    """Namespace and service account to apply: the account has the cell's identity."""

    @classmethod
    def of_config(
        cls,
        cluster: pulumi.Input[str],
        config: pulumi.Output[str],
        manifests: pulumi.Input[Sequence[Mapping[str, Any]]],
    ) -> BuiltKubernetes:
        """By the kubeconfig that the cloud gives, which says where the API server is."""
        known = config.apply(cluster_of)
        return cls(
            cluster,
            known.apply(lambda found: str(found["server"])),
            known.apply(lambda found: str(found["certificate-authority-data"])),
            config,
            manifests,
        )

    def shown(self) -> pulumi.Output[Mapping[str, Any]]:
        """As an output, in which the kubeconfig alone is secret."""
        return pulumi.Output.all(
            cluster=self.cluster,
            endpoint=pulumi.Output.unsecret(pulumi.Output.from_input(self.endpoint)),
            authority=pulumi.Output.unsecret(pulumi.Output.from_input(self.authority)),
            manifests=self.manifests,
        )


@dataclass(frozen=True, slots=True)
class Built:
    """What a cloud's module made."""

    bucket: pulumi.Input[str]
    volumes: Mapping[str, pulumi.Input[str]]
    identity: pulumi.Input[str]
    endpoint: pulumi.Input[str]
    express: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    kubernetes: BuiltKubernetes | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """What a cloud's module works with: the needs, and the options of its resources. `data` is for what holds data."""

    needs: CellNeeds
    protect: bool
    plain: pulumi.ResourceOptions
    data: pulumi.ResourceOptions

    def after(self, *resources: pulumi.Resource, ignore: Sequence[str] = ()) -> pulumi.ResourceOptions:
        """Of a resource without data that comes after those; changes of the properties `ignore` are not ours."""
        more = pulumi.ResourceOptions(depends_on=list(resources), ignore_changes=list(ignore))
        return pulumi.ResourceOptions.merge(self.plain, more)


class CloudCell(pulumi.ComponentResource):
    """A cell's bucket, WAL volumes, identity, network, DNS zone and nodes of Kubernetes in one cloud."""

    bucket: pulumi.Output[str]
    express_bucket: pulumi.Output[Mapping[str, str] | None]
    """Directory buckets by zone; None where the WAL needs none."""
    volumes: pulumi.Output[Mapping[str, str]]
    """The cloud's id of each volume, by the name that brokers know it by."""
    identity: pulumi.Output[str]
    """What machines sign in as."""
    endpoint: pulumi.Output[str]
    """Base URL of the object store."""
    kubernetes: pulumi.Output[Mapping[str, Any] | None]
    """`cluster`, `endpoint`, `authority` and `manifests`, as in `BuiltKubernetes`; None: no nodes were asked for."""
    kubeconfig: pulumi.Output[str | None]
    """Of a cluster that was made: secret. On AWS and GCP it signs in by a program of the cloud's."""

    def __init__(self, name: str, args: CellArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        """
        Raises:
            Invalid: a spec is wrong, no WAL mode is possible there, or the cloud's SDK is not installed.
        """
        needs = decide(
            name,
            args.cloud,
            args.cluster,
            cluster_name=args.cluster_name,
            tags=args.tags,
            dns_zone=args.dns_zone,
            driven=args.driven,
            kubernetes=args.kubernetes,
        )
        module = _module(needs.provider)
        super().__init__("yunhe:cells:CloudCell", name, None, opts)
        plain = pulumi.ResourceOptions(parent=self)
        data = pulumi.ResourceOptions(parent=self, protect=args.protect, retain_on_delete=args.protect)
        built: Built = module.build(Site(needs, args.protect, plain, data))
        self.bucket = pulumi.Output.from_input(built.bucket)
        self.express_bucket = _known(built.express).apply(lambda known: known or None)
        self.volumes = _known(built.volumes)
        self.identity = pulumi.Output.from_input(built.identity)
        self.endpoint = pulumi.Output.from_input(built.endpoint)
        nodes = built.kubernetes
        self.kubernetes = nodes.shown() if nodes is not None else pulumi.Output.from_input(None)
        self.kubeconfig = pulumi.Output.secret(nodes.kubeconfig if nodes is not None else None)
        self.register_outputs(
            {
                "bucket": self.bucket,
                "expressBucket": self.express_bucket,
                "volumes": self.volumes,
                "identity": self.identity,
                "endpoint": self.endpoint,
                **({"kubernetes": self.kubernetes, "kubeconfig": self.kubeconfig} if nodes is not None else {}),
            }
        )


def _known(values: Mapping[str, pulumi.Input[str]]) -> pulumi.Output[Mapping[str, str]]:
    if not values:
        return pulumi.Output.from_input({})
    return pulumi.Output.all(**values).apply(lambda known: dict(known))


def _module(provider: str) -> Any:
    try:
        return importlib.import_module(f"stacks.cells.{provider}")
    except ModuleNotFoundError as error:
        if error.name != SDK[provider]:
            raise
        raise Invalid(
            f"a cell on {provider} needs {SDK[provider]}, which is not installed",
            hint=f"pip install 'yunhe[pulumi-{provider}]'",
        ) from error
