"""Which objects of a spec run on Kubernetes, and all that is rendered for them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from controlplane.api.specs import Specs
from controlplane.plan.databases import resolve_databases, zones_by_cloud
from controlplane.plan.kubernetes import Rendered
from controlplane.plan.kubernetes_agents import render_agents
from controlplane.plan.kubernetes_automq import render_automq
from controlplane.plan.kubernetes_greptimedb import render_greptimedb
from controlplane.plan.kubernetes_strimzi import render_strimzi
from controlplane.plan.kubernetes_wal import automq_of
from controlplane.plan.resolve import ResolvedCluster
from providers.base.errors import Invalid


def render_engines(specs: Specs, resolved: Mapping[str, ResolvedCluster]) -> tuple[Rendered, ...]:
    """What every object that runs on Kubernetes becomes there, by kind and name. Objects of clouds without Kubernetes
    become nothing.

    Raises:
        Invalid: an object cannot be rendered; says which, and where it was written.
    """
    found = []
    zones = zones_by_cloud(resolve_databases(specs))
    for name, cluster in specs.clusters.items():
        cloud = specs.clouds[cluster.spec.cloud]
        if cluster.spec.engine == "automq":
            strimzi = automq_of(cluster).deploy == "strimzi"
            render = render_strimzi if strimzi else render_automq
            found.append(_placed(specs, "BrokerCluster", name, partial(render, cloud, cluster, resolved[name])))
        else:
            zones.setdefault(cluster.spec.cloud, []).extend(broker.zone for broker in resolved[name].brokers)
    for name, database in specs.databases.items():
        if database.spec.engine == "greptimedb":
            cloud = specs.clouds[database.spec.cloud]
            found.append(_placed(specs, "Database", name, partial(render_greptimedb, cloud, database)))
    for name, cloud in specs.clouds.items():
        if cloud.spec.kubernetes is not None and zones.get(name):
            peopled = tuple(zone for zone in cloud.spec.zones if zone in zones[name])
            found.append(_placed(specs, "Cloud", name, partial(render_agents, cloud, peopled)))
    return tuple(sorted(found, key=lambda one: (one.kind, one.name)))


def _placed(specs: Specs, kind: str, name: str, render: Callable[[], Rendered]) -> Rendered:
    """What is rendered, or the refusal with where in the spec it was caused."""
    try:
        return render()
    except Invalid as error:
        where = specs.where(kind, name, "spec")
        raise Invalid(f"{where}: {error.message}", hint=error.hint, **error.fields) from error


def run_by_agents(specs: Specs) -> Specs:
    """The objects that our own agents run: what is applied through cells. The rest is Kubernetes' alone."""
    return Specs.of(
        (resource for resource in specs if getattr(resource.spec, "engine", "embedded") == "embedded"),
        specs.documents,
    )


def only_on_kubernetes(specs: Specs) -> tuple[str, ...]:
    """`<kind> <name>` of what agents do not run."""
    ours = set(run_by_agents(specs).plain())
    return tuple(f"{kind} {name}" for kind, name in specs.plain() if (kind, name) not in ours)
