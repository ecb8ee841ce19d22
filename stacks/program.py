"""The program of `stacks/`, for `pulumi up` and for `yunhe stack` alike.

The stacks named aws, azure, gcp and aliyun make what the spec's Clouds of that provider need there, as cells. Every
other stack deploys the spec itself, the lab's included. Configuration, all under `yunhe:`, is in docs/pulumi.md.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pulumi

from controlplane.api.kinds import BrokerCluster, Cloud
from controlplane.api.load import load_texts
from controlplane.api.source import read_text
from controlplane.api.specs import Specs, to_plain
from providers.base.errors import YunheError
from stacks.cells import CellArgs, CloudCell
from stacks.cells.cell import SDK
from stacks.cells.nodes import args_of
from stacks.resources import Spec

DEFAULT_SPEC = "examples/four-clouds.yaml"


def program() -> None:
    """Deploy what the stack's configuration names."""
    config = pulumi.Config("yunhe")
    provider = config.get("cells") or (pulumi.get_stack() if pulumi.get_stack() in SDK else None)
    if provider is not None:
        _cells(config, provider)
        return
    made = Spec(
        "spec",
        files=_files(config.get("spec")),
        accept_data_loss=config.get_bool("acceptDataLoss") or False,
        timeout_s=config.get_float("timeoutS") or 120.0,
    )
    pulumi.export("bootstrapServers", made.bootstrap_servers)
    pulumi.export("states", made.states)


def _cells(config: pulumi.Config, provider: str) -> None:
    """A cell for each of the spec's Clouds of that provider.

    Raises:
        RunError: the spec is wrong, or has no such Cloud.
    """
    try:
        specs = load_texts([(path, read_text(Path(path))) for path in _files(config.get("spec"))])
        clouds = [cloud for cloud in specs.clouds.values() if cloud.spec.provider == provider]
        if not clouds:
            raise pulumi.RunError(f"the spec has no Cloud of {provider}: name another with yunhe:spec")
        for cloud in clouds:
            cell = _cell(config, cloud, _cluster(specs, cloud))
            shown = {
                "bucket": cell.bucket,
                "expressBucket": cell.express_bucket,
                "volumes": cell.volumes,
                "identity": cell.identity,
                "endpoint": cell.endpoint,
            }
            pulumi.export(cloud.metadata.name, shown)
            if config.get_object("kubernetes"):
                pulumi.export(f"{cloud.metadata.name}-kubernetes", cell.kubernetes)
                pulumi.export(f"{cloud.metadata.name}-kubeconfig", cell.kubeconfig)
    except YunheError as error:
        raise pulumi.RunError(f"{error.message} ({error.hint})" if error.hint else error.message) from error


def _cluster(specs: Specs, cloud: Cloud) -> BrokerCluster | None:
    """The cluster of a cloud, which has one at most."""
    name = cloud.metadata.name
    return next((one for one in specs.clusters.values() if one.spec.cloud == name), None)


def _cell(config: pulumi.Config, cloud: Cloud, cluster: BrokerCluster | None) -> CloudCell:
    name, domain = cloud.metadata.name, config.get("dnsZone")
    protect = config.get_bool("protect")
    args = CellArgs(
        to_plain(cloud)["spec"],
        to_plain(cluster)["spec"] if cluster is not None else None,
        cluster_name=cluster.metadata.name if cluster is not None else None,
        protect=True if protect is None else protect,
        tags={str(key): str(value) for key, value in (config.get_object("tags") or {}).items()},
        dns_zone=f"{name}.{domain}" if domain else None,
        kubernetes=args_of(config.get_object("kubernetes")),
    )
    return CloudCell(name, args, pulumi.ResourceOptions(providers=[_provider(cloud)]))


def _provider(cloud: Cloud) -> Any:
    """The cloud's SDK in the Cloud's own region and account: a spec may have several regions."""
    spec = cloud.spec
    try:
        sdk = importlib.import_module(SDK[spec.provider])
    except ModuleNotFoundError as error:
        hint = f"pip install 'yunhe[pulumi-{spec.provider}]'"
        raise pulumi.RunError(f"{SDK[spec.provider]} is not installed ({hint})") from error
    match spec.provider:
        case "azure":
            account = {"subscription_id": spec.account} if spec.account else {}
            return sdk.Provider(cloud.metadata.name, location=spec.region, **account)
        case "gcp":
            account = {"project": spec.account} if spec.account else {}
            return sdk.Provider(cloud.metadata.name, region=spec.region, **account)
        case _:
            return sdk.Provider(cloud.metadata.name, region=spec.region)


def _files(configured: str | None) -> list[str]:
    """A file's name, or a JSON list of them, as `pulumi config set --path 'yunhe:spec[0]' FILE` makes it."""
    if not configured:
        return [str(Path(__file__).parent.parent / DEFAULT_SPEC)]
    if not configured.startswith("["):
        return [configured]
    try:
        files = json.loads(configured)
    except ValueError as error:
        raise pulumi.RunError(f"yunhe:spec is neither a file's name nor a JSON list of them: {configured}") from error
    return [str(file) for file in files]
