"""From specs to what follows from them: each cluster's WAL choice and its brokers' places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.api.check import broker_count, most_brokers
from controlplane.api.kinds import BrokerCluster, Cloud, CloudSpec
from controlplane.api.quantities import duration_ms
from controlplane.api.specs import Specs
from controlplane.plan.cost import Load
from controlplane.plan.engine_shape import EMBEDDED, EngineShape
from controlplane.plan.kubernetes_wal import choose_automq_wal
from controlplane.plan.placement import PlacedBroker, place
from controlplane.plan.wal import WalChoice, Wants, choose_wal
from controlplane.plan.wal_table import Drive
from dataplane.contract.assignment import WalMode
from providers.base.capabilities import Capabilities, Probed, Scope, capabilities_of, lab_probed, overlay
from providers.base.errors import Invalid, NotFound
from providers.base.prices import Prices, overlay_prices

DRIVEN_IN_LAB: Mapping[str, frozenset[Drive]] = {
    "aliyun": frozenset({Drive.PREATTACHED, Drive.OBJECT, Drive.ZONAL}),
    "azure": frozenset({Drive.PREATTACHED, Drive.OBJECT, Drive.ZONAL}),
    "gcp": frozenset({Drive.PREATTACHED, Drive.OBJECT, Drive.ZONAL}),
    "aws": frozenset({Drive.BLOCK_EXPRESS, Drive.OBJECT, Drive.ZONAL}),
    "private": frozenset({Drive.OBJECT}),
}
"""What the data plane carries out on the emulated clouds."""

DRIVEN_ON_REAL_CLOUDS = frozenset({Drive.OBJECT})
"""A real cloud's block devices are not opened yet: the volumes of the lab are its daemon's."""


@dataclass(frozen=True, slots=True)
class ResolvedCluster:
    """A cluster with its choice and its brokers, ordered by node id, the spare ones last."""

    name: str
    cloud: str
    choice: WalChoice
    brokers: tuple[PlacedBroker, ...]

    @property
    def lasting(self) -> int:
        """How many of the brokers are not spare."""
        return sum(1 for broker in self.brokers if not broker.spare)


def resolve(
    specs: Specs,
    *,
    probed: Mapping[str, Probed] | None = None,
    settled: Mapping[str, WalMode] | None = None,
) -> dict[str, ResolvedCluster]:
    """Each cluster of `specs` by name.

    `probed`: findings by cloud name, over the catalogue and under what the spec states. `settled`: modes that earlier
    applies chose.

    Raises:
        Invalid: a WAL mode or an objective is not possible there; says where it was written.
    """
    resolved = {}
    for name, cluster in specs.clusters.items():
        cloud = specs.clouds[cluster.spec.cloud]
        try:
            resolved[name] = resolve_cluster(
                cluster, cloud, probed=(probed or {}).get(cluster.spec.cloud), settled=(settled or {}).get(name)
            )
        except Invalid as error:
            raise _placed(specs, cluster, error) from error
    return resolved


def _placed(specs: Specs, cluster: BrokerCluster, error: Invalid) -> Invalid:
    """The same refusal, with where in the spec it was caused."""
    path = ("spec", "wal") if cluster.spec.wal.mode != "auto" else ("spec",)
    where = specs.where("BrokerCluster", cluster.metadata.name, *path)
    return Invalid(f"{where}: {error.message}", hint=error.hint, **error.fields)


def resolve_cluster(
    cluster: BrokerCluster, cloud: Cloud, *, probed: Probed | None = None, settled: WalMode | None = None
) -> ResolvedCluster:
    """One cluster; see `resolve`."""
    facts = facts_of(cloud, probed)
    spec, wants = cluster.spec, wants_of(cluster, settled)
    if spec.engine == "automq":
        choice = choose_automq_wal(facts, cluster, wants)
    else:
        choice = choose_wal(facts, wants, driven=driven_on(cloud.spec))
    return ResolvedCluster(cluster.metadata.name, spec.cloud, choice, placed(cluster, cloud.spec.zones, choice))


def placed(cluster: BrokerCluster, zones: Sequence[str], choice: WalChoice) -> tuple[PlacedBroker, ...]:
    """A cluster's brokers in the zones of its cloud, the spare ones last."""
    spec, spares = cluster.spec, most_brokers(cluster) - broker_count(cluster)
    return place(cluster.metadata.name, zones, spec.brokers, spec.brokers_per_zone, choice, spares)


@dataclass(frozen=True, slots=True)
class Assumed:
    """What an estimate takes instead of the spec's and the catalogue's word. None: theirs."""

    load: Load | None = None
    prices: Prices | None = None
    engine: EngineShape = EMBEDDED


def choice_for(
    specs: Specs, cloud_name: str, *, probed: Probed | None = None, assumed: Assumed | None = None
) -> WalChoice:
    """What `yunhe explain wal CLOUD` and `yunhe cost` show: the choice for the cloud's cluster, or for one without
    wishes when there is none.

    Raises:
        NotFound: no such cloud.
        Invalid: as `resolve`.
    """
    cloud = specs.clouds.get(cloud_name)
    if cloud is None:
        raise NotFound(f"no Cloud is named {cloud_name}", hint=f"known: {', '.join(specs.clouds) or 'none'}")
    assumed = assumed or Assumed()
    facts = facts_of(cloud, probed)
    if assumed.prices is not None:
        facts = overlay_prices(facts, assumed.prices)
    cluster = next((found for found in specs.clusters.values() if found.spec.cloud == cloud_name), None)
    wants = Wants() if cluster is None else wants_of(cluster)
    wants = replace(wants, load=assumed.load or wants.load, engine=assumed.engine)
    try:
        if cluster is not None and cluster.spec.engine == "automq":
            return choose_automq_wal(facts, cluster, wants)
        return choose_wal(facts, wants, driven=driven_on(cloud.spec))
    except Invalid as error:
        if cluster is None:
            raise
        raise _placed(specs, cluster, error) from error


def facts_of(cloud: Cloud, probed: Probed | None = None) -> Capabilities:
    """The catalogue's facts, then what was probed, then what the spec states."""
    spec = cloud.spec
    facts = capabilities_of(spec.provider, spec.region, spec.zones)
    if spec.target == "lab":
        facts = overlay(facts, lab_probed(spec.provider), "probed in the lab")
    if probed is not None:
        facts = overlay(facts, probed, "probed")
    stated = spec.capabilities
    if stated is None:
        return facts
    scope = {"regional": Scope.REGIONAL, "zonal": Scope.ZONAL}.get(stated.object_store or "")
    return overlay(
        facts,
        Probed(
            object_store=scope,
            create_if_absent=stated.create_if_absent,
            regional_block=stated.regional_block,
            cross_zone_multi_attach=stated.cross_zone_multi_attach,
            persistent_reservations=stated.persistent_reservations,
            share_max=stated.share_max,
            express_zones=stated.express_zones,
        ),
        "stated in the spec",
    )


def driven_on(spec: CloudSpec) -> frozenset[Drive]:
    """What the data plane carries out on that cloud."""
    return DRIVEN_IN_LAB[spec.provider] if spec.target == "lab" else DRIVEN_ON_REAL_CLOUDS


def wants_of(cluster: BrokerCluster, settled: WalMode | None = None) -> Wants:
    """The spec's wishes as the choice takes them."""
    spec = cluster.spec
    objectives = spec.objectives
    return Wants(
        mode=None if spec.wal.mode == "auto" else WalMode(spec.wal.mode),
        settled=settled,
        accept_zone_loss_rpo=spec.wal.accept_zone_loss_rpo,
        bytes_max=spec.wal.bytes_max,
        produce_p99_ms=objectives.produce_p99_ms,
        rpo_zone_loss_ms=_ms(objectives.rpo_zone_loss),
        survive_object_outage_ms=_ms(objectives.survive_object_outage),
        upload_interval_ms=spec.settings.upload_interval_ms,
        brokers=broker_count(cluster),
        load=Load(ingest_mib_s=float(objectives.ingest_mib_s)) if objectives.ingest_mib_s else Load(),
    )


def _ms(duration: str | None) -> int | None:
    return None if duration is None else duration_ms(duration)
