"""What a cloud can do, as facts: the input of the WAL choice. Each fact names its source; what is not published or not
verified is None, and stays None.

Documented facts are in `providers/<cloud>/capabilities.py`. Where documents disagree or are silent, a probe at apply
time says (`Probed`), and a user may overrule both. Prices are US dollars as of November 2026, of the region they were
read for; latencies are the providers' own words.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import cast

from providers.base.errors import Invalid
from providers.base.registry import PROVIDERS


class Scope(StrEnum):
    """What survives: `zonal` is lost with its zone, `regional` survives the loss of one; `site` is one private site."""

    ZONAL = "zonal"
    REGIONAL = "regional"
    SITE = "site"


class Fence(StrEnum):
    """How an old owner is kept from writing. The first two are data-plane calls, the others the cloud's control API."""

    NVME_PR = "nvme-pr"
    SCSI_PR = "scsi-pr"
    FORCE_ATTACH = "force-attach"
    FORCE_DETACH = "force-detach"


@dataclass(frozen=True, slots=True)
class BlockPrice:
    """Per month. `tiers`: (GiB, USD a volume) for classes sold by size step; where given, they replace the GiB
    price."""

    gib: float | None = None
    iops: float | None = None
    mib_s: float | None = None
    tiers: tuple[tuple[int, float], ...] = ()
    confidence: str = "low"


@dataclass(frozen=True, slots=True)
class BlockClass:
    """A class of block volume."""

    name: str
    scope: Scope
    zones_max: int | None
    """Zones one volume reaches; None: at least two, number not published."""
    offered: bool | None
    """Whether this region sells it; None: not verified."""
    share_max: int | None
    """Hosts that may attach one volume."""
    cross_zone_multi_attach: bool | None
    """Whether hosts of two zones may attach it at once; None: documents disagree or are silent."""
    reservations: Fence | None
    """Which persistent reservation it documents, if any."""
    reservations_work: bool | None
    """Whether that reservation is known to work on it; None: to be probed."""
    preempt_aborts: bool | None
    """Whether a preempt can abort writes in flight."""
    api_fence: Fence
    """The fence that the cloud's control API offers."""
    size_gib: tuple[int, int]
    iops_max: int | None
    mib_s_included: int | None
    """Throughput that comes with the volume's price at the smallest size; None: not verified, or grows with size."""
    mib_s_max: int | None
    latency: str | None
    price: BlockPrice
    confidence: str
    source: str
    note: str = ""
    api_kind: str = ""
    """What the cloud's API calls it (`VolumeSpec.kind`); empty: as `name`."""

    @property
    def kind(self) -> str:
        """For `VolumeSpec`."""
        return self.api_kind or self.name


@dataclass(frozen=True, slots=True)
class ObjectPrice:
    """`gib` per month; `put` and `get` per 1,000 requests; `ingest_gib` and `retrieve_gib` per GiB moved."""

    gib: float | None = None
    put: float | None = None
    get: float | None = None
    ingest_gib: float = 0.0
    retrieve_gib: float = 0.0
    confidence: str = "low"


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """A class of object storage."""

    name: str
    scope: Scope
    offered: bool | None
    create_if_absent: bool | None
    """Whether a create can be made to fail when the name is taken; None: to be probed."""
    fence: str
    """The conditional request that does it, in the provider's words."""
    append: str | None
    """The rule of an append, None when it has none."""
    latency: str | None
    price: ObjectPrice
    confidence: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Economics:
    """What a cost estimate needs beside storage."""

    inter_az_gib: float | None
    """USD a GiB between two zones, both directions together."""
    node: str
    node_usd_month: float | None
    node_mib_s: float | None
    """Network baseline of that node, MiB/s; None: not published."""
    source: str
    egress_gib: tuple[tuple[float | None, float], ...] = ()
    """Out to the internet or to another cloud: (up to so many GiB a month, USD a GiB), None: without bound. Empty: not
    known."""
    egress_free_gib: float = 0.0
    """Of the first step, free each month."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe found, or a user stated. None: not looked at. Each value replaces the documented one."""

    object_store: Scope | None = None
    create_if_absent: bool | None = None
    regional_block: bool | None = None
    cross_zone_multi_attach: bool | None = None
    persistent_reservations: bool | None = None
    share_max: int | None = None
    express_zones: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """All that the WAL choice knows of one region of one cloud, for the given zones."""

    provider: str
    region: str
    zones: tuple[str, ...]
    objects: tuple[ObjectClass, ...]
    """Standard classes, best first."""
    economics: Economics
    regional_blocks: tuple[BlockClass, ...] = ()
    """Zone-redundant volumes, best first."""
    zonal_block: BlockClass | None = None
    """The zonal class that stands beside an express bucket."""
    zonal_shared_block: BlockClass | None = None
    """The zonal class that several hosts of its zone may attach, with a reservation."""
    express: ObjectClass | None = None
    """The zonal, appendable, low-latency class, if the provider has one."""
    express_zones: tuple[str, ...] | None = ()
    """Zones of the region that have it; None: not verified for this region."""
    baseline_block: BlockClass | None = None
    """What three-way replicated Kafka would keep its logs on."""
    origins: tuple[tuple[str, str], ...] = ()
    """(fact, who said it) for facts that were laid over the documented ones."""

    def origin(self, fact: str) -> str:
        """Who said that fact: a probe, the spec, or the provider's documents."""
        return dict(self.origins).get(fact, "documented")

    @property
    def object_class(self) -> ObjectClass | None:
        """The first standard class that the region is not known to lack."""
        return next((store for store in self.objects if store.offered is not False), None)


def overlay(capabilities: Capabilities, probed: Probed, origin: str) -> Capabilities:
    """The facts with those of `probed` in place of the documented ones; `origin` says who found them.

    What was not probed stays as it was, unknowns included.
    """
    objects = tuple(_overlaid_object(store, probed) for store in capabilities.objects)
    if probed.object_store is not None:
        objects = _of_scope(objects, probed.object_store)
    said = {f.name: origin for f in fields(probed) if getattr(probed, f.name) is not None}
    return replace(
        capabilities,
        regional_blocks=tuple(_overlaid_block(block, probed) for block in capabilities.regional_blocks),
        objects=objects,
        express_zones=capabilities.express_zones if probed.express_zones is None else probed.express_zones,
        origins=tuple(sorted({**dict(capabilities.origins), **said}.items())),
    )


def _of_scope(objects: tuple[ObjectClass, ...], scope: Scope) -> tuple[ObjectClass, ...]:
    # The stated scope stands; prices are the catalogue's for that scope, and unknown where it has none.
    same = tuple(replace(store, offered=True) for store in objects if store.scope is scope)
    return same or tuple(replace(store, scope=scope, offered=True, price=ObjectPrice()) for store in objects[:1])


def _overlaid_block(block: BlockClass, probed: Probed) -> BlockClass:
    if probed.regional_block is not None:
        block = replace(block, offered=probed.regional_block)
    # A class that takes one host at a time by its documented type is not made shareable by a finding about its
    # shareable neighbour.
    if probed.cross_zone_multi_attach is not None and block.cross_zone_multi_attach is not False:
        block = replace(block, cross_zone_multi_attach=probed.cross_zone_multi_attach)
    if probed.persistent_reservations is not None and block.reservations is not None:
        block = replace(block, reservations_work=probed.persistent_reservations)
    if probed.share_max is not None and block.share_max != 1:
        block = replace(block, share_max=probed.share_max)
    return block


def _overlaid_object(store: ObjectClass, probed: Probed) -> ObjectClass:
    return store if probed.create_if_absent is None else replace(store, create_if_absent=probed.create_if_absent)


CATALOGUE_DATE = "2026-11-23"
"""When the facts and prices of `providers/*/capabilities.py` were last gathered; each names its own source."""


def capabilities_of(provider: str, region: str, zones: Sequence[str]) -> Capabilities:
    """The documented facts of `zones` of `region`.

    Raises:
        Invalid: unknown provider; a zone or region that is not written as that cloud writes it (`fields["field"]` says
        which).
    """
    if provider not in PROVIDERS:
        raise Invalid(f"unknown provider {provider!r}", hint=f"one of: {', '.join(PROVIDERS)}", field="provider")
    if not zones:
        raise Invalid("at least one zone is needed", field="zones")
    module = importlib.import_module(f"providers.{provider}.capabilities")
    return cast(Capabilities, module.capabilities(region, tuple(zones)))


def lab_probed(provider: str) -> Probed:
    """What probing the lab's emulated clouds finds, whatever the region: its volume daemon attaches a regional volume
    in two zones and honours reservations, and its object stores create if absent. The conformance tests hold the lab to
    it. Express zones are not the lab's to widen: the catalogue's stand.

    On Aliyun this settles where the provider's own pages disagree (cross-zone multi-attach), on GCP what they do not
    say (reservations on Hyperdisk).
    """
    if provider in ("aliyun", "azure", "gcp"):
        return Probed(
            create_if_absent=True, regional_block=True, cross_zone_multi_attach=True, persistent_reservations=True
        )
    return Probed(create_if_absent=True)
