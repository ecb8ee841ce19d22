"""From a Cloud's and a cluster's spec to what the cell's cloud must hold. Pure; the WAL choice is the plan's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from controlplane.api.kinds import API_VERSION, BrokerCluster, Cloud
from controlplane.apply.render import GIB, volumes
from controlplane.plan.resolve import ResolvedCluster, driven_on, facts_of, placed, wants_of
from controlplane.plan.wal import WalChoice, choose_wal
from controlplane.plan.wal_table import Drive
from providers.base.capabilities import BlockClass, Capabilities, Scope
from providers.base.errors import Invalid
from stacks.cells.nodes import KubernetesArgs, NodeNeeds, decide_nodes

CONDITIONAL_PREFIXES = ("ledger", "wal")
"""Folders, below any cluster's or agent's prefix, in which every object is created only if it is absent."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Volume:
    """A WAL volume. More than one zone: one volume over all of them. `share_max`: hosts that may attach it at once."""

    name: str
    kind: str
    size_gib: int
    zones: tuple[str, ...]
    share_max: int
    redundant: bool


@dataclass(frozen=True, slots=True)
class CellNeeds:
    """All that a cloud's module creates from. `express`: directory bucket by zone. `dns_zone` and `nodes` None: none
    are made."""

    name: str
    provider: str
    region: str
    zones: tuple[str, ...]
    bucket: str
    express: Mapping[str, str]
    volumes: tuple[Volume, ...]
    choice: WalChoice | None
    tags: Mapping[str, str]
    dns_zone: str | None
    account: str | None
    nodes: NodeNeeds | None = None


def decide(
    name: str,
    cloud: Mapping[str, Any],
    cluster: Mapping[str, Any] | None,
    *,
    tags: Mapping[str, str],
    cluster_name: str | None = None,
    dns_zone: str | None = None,
    driven: Set[Drive] | None = None,
    kubernetes: KubernetesArgs | None = None,
) -> CellNeeds:
    """What the cell `name` needs. Without a cluster: the bucket and what stands around it, and no volumes.

    `cluster_name`: the cluster's; None: as the cell's.
    `driven`: what the engine can carry out; None: what this version's data plane does on that target.

    Raises:
        Invalid: a spec is wrong, or no WAL mode is possible there.
    """
    stated = _read(Cloud, "Cloud", name, cloud)
    spec = stated.spec
    if spec.provider == "private":
        raise Invalid("a private cloud has nothing that Pulumi creates", hint="bring its bucket yourself")
    bucket = spec.real.bucket if spec.real else f"yunhe-{name}"
    if not _BUCKET.fullmatch(bucket):
        raise Invalid(f"bucket {bucket!r} is not 3 to 63 lower-case letters, digits and hyphens")
    choice: WalChoice | None = None
    needed: tuple[Volume, ...] = ()
    express: dict[str, str] = {}
    if cluster is not None:
        called = cluster_name or name
        wanted = _read(BrokerCluster, "BrokerCluster", called, {"cloud": name, **cluster})
        facts = facts_of(stated)
        choice = choose_wal(facts, wants_of(wanted), driven=driven_on(spec) if driven is None else driven)
        brokers = placed(wanted, spec.zones, choice)
        block = _block(facts, choice)
        needed = tuple(
            Volume(
                need.id,
                block.kind if block else "",
                need.size_bytes // GIB,
                need.zones,
                need.share_max if block and (block.share_max or 1) > 1 else 1,
                bool(block and block.scope is Scope.REGIONAL),
            )
            for need in volumes(facts, ResolvedCluster(called, name, choice, brokers))
        )
        zones = sorted({broker.wal.express for broker in brokers if broker.wal.express})
        express = {zone: f"{bucket}--{zone}--x-s3" for zone in zones}
    labels = {"yunhe-cell": name, "managed-by": "pulumi", **tags}
    nodes: NodeNeeds | None = None
    if kubernetes is not None:
        nodes = decide_nodes(name, spec.provider, spec.zones, cloud.get("kubernetes"), kubernetes)
    return CellNeeds(
        name,
        spec.provider,
        spec.region,
        spec.zones,
        bucket,
        express,
        needed,
        choice,
        labels,
        dns_zone,
        spec.account,
        nodes,
    )


def _block(facts: Capabilities, choice: WalChoice) -> BlockClass | None:
    known = (*facts.regional_blocks, facts.zonal_block, facts.zonal_shared_block)
    return next((block for block in known if block is not None and block.name == choice.block), None)


def _read(kind: Any, word: str, name: str, spec: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(
            {"apiVersion": API_VERSION, "kind": word, "metadata": {"name": name}, "spec": dict(spec)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{word} {name}: {where}: {first['msg']}") from error
