"""Checks over several objects: references, duplicates of meaning, sizes, and whether a cloud can hold a cell at all."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.api.across import at, unknown
from controlplane.api.check_databases import problems_of_databases
from controlplane.api.complaints import did_you_mean
from controlplane.api.kinds import BrokerCluster, Cloud
from controlplane.api.source import Problem
from controlplane.api.specs import Specs
from providers.base.capabilities import capabilities_of
from providers.base.errors import Invalid

LAB_BROKERS_MAX = 32
"""Brokers on one machine: each is a process with its own caches."""


def problems_across(specs: Specs) -> Iterator[Problem]:
    """What is wrong between the objects of `specs`. Places are known only for objects that came from a file."""
    for cloud in specs.clouds.values():
        yield from _cloud(specs, cloud)
    for cluster in specs.clusters.values():
        yield from _cluster(specs, cluster)
    yield from _one_cluster_a_cloud(specs)
    yield from _lab_size(specs)
    for topic in specs.topics.values():
        for index, cluster_name in enumerate(topic.spec.clusters):
            if cluster_name not in specs.clusters:
                yield unknown(
                    specs, "Topic", topic.metadata.name, ("spec", "clusters", index), "BrokerCluster", cluster_name
                )
            elif _on_kubernetes(specs, cluster_name):
                what = f"topics of {cluster_name}, whose engine is automq, are not made from here yet"
                hint = "make them by Kafka's own tools, at its bootstrap service"
                yield at(specs, "Topic", topic.metadata.name, ("spec", "clusters", index), what, hint)
    yield from problems_of_databases(specs)


def _on_kubernetes(specs: Specs, cluster: str) -> bool:
    """Whether the cluster's engine runs there; one that has no Kubernetes to run on is refused itself."""
    spec = specs.clusters[cluster].spec
    cloud = specs.clouds.get(spec.cloud)
    return spec.engine != "embedded" and cloud is not None and cloud.spec.kubernetes is not None


def _cloud(specs: Specs, cloud: Cloud) -> Iterator[Problem]:
    name, spec = cloud.metadata.name, cloud.spec
    if spec.capabilities is not None and spec.capabilities.object_store == "none":
        yield at(
            specs,
            "Cloud",
            name,
            ("spec", "capabilities", "objectStore"),
            f"cloud {name} has no object storage, and every cell keeps its ledger and its records there",
            "give it an S3-compatible store",
        )
    try:
        capabilities_of(spec.provider, spec.region, spec.zones)
    except Invalid as error:
        path = ("spec", str(error.fields.get("field", "zones")))
        yield at(specs, "Cloud", name, path, error.message, error.hint)


def _cluster(specs: Specs, cluster: BrokerCluster) -> Iterator[Problem]:
    name, spec = cluster.metadata.name, cluster.spec
    cloud = specs.clouds.get(spec.cloud)
    if cloud is None:
        yield unknown(specs, "BrokerCluster", name, ("spec", "cloud"), "Cloud", spec.cloud)
        return
    if spec.engine != "embedded" and cloud.spec.kubernetes is None:
        what = f"engine {spec.engine} runs on Kubernetes, and cloud {spec.cloud} names none"
        advice = "add `kubernetes: {namespace: …}` to the Cloud, with `target: real`"
        yield at(specs, "BrokerCluster", name, ("spec", "engine"), what, advice)
    for zone in spec.brokers_per_zone or {}:
        if zone not in cloud.spec.zones:
            zones = ", ".join(cloud.spec.zones)
            hint = did_you_mean(zone, cloud.spec.zones, f"zones of {spec.cloud}: {zones}")
            what = f"cloud {spec.cloud} has no zone {zone}"
            yield at(specs, "BrokerCluster", name, ("spec", "brokersPerZone", zone), what, hint)


def _one_cluster_a_cloud(specs: Specs) -> Iterator[Problem]:
    # An agent carries out one assignment, and an assignment has one cluster.
    first: dict[str, str] = {}
    for name, cluster in specs.clusters.items():
        taken = first.setdefault(cluster.spec.cloud, name)
        if taken != name:
            what = f"cloud {cluster.spec.cloud} already has the cluster {taken}; more than one is not here yet"
            yield at(
                specs,
                "BrokerCluster",
                name,
                ("spec", "cloud"),
                what,
                "add a Cloud for it, in the same region if need be",
            )


def _lab_size(specs: Specs) -> Iterator[Problem]:
    total = 0
    for name, cluster in specs.clusters.items():
        cloud = specs.clouds.get(cluster.spec.cloud)
        if cloud is None or cloud.spec.target != "lab":
            continue
        before, total = total, total + most_brokers(cluster)
        if before <= LAB_BROKERS_MAX < total:
            what = f"{total} brokers so far in the lab, which runs on one machine: at most {LAB_BROKERS_MAX}"
            field = "brokers" if cluster.spec.brokers is not None else "brokersPerZone"
            yield at(specs, "BrokerCluster", name, ("spec", field), what, "two a cloud show all there is to see")


def most_brokers(cluster: BrokerCluster) -> int:
    """How many brokers may run at once."""
    return cluster.spec.autoscale.brokers_max if cluster.spec.autoscale is not None else broker_count(cluster)


def broker_count(cluster: BrokerCluster) -> int:
    """How many brokers the cluster asks for, the spare ones apart."""
    return sum((cluster.spec.brokers_per_zone or {}).values()) if cluster.spec.brokers is None else cluster.spec.brokers
