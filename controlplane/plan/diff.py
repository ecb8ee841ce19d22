"""What has to change: desired objects against those recorded as applied, as a list of actions. Pure.

A change that the data plane cannot carry out without risk is refused here, in words, and not planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.api.kinds import BrokerCluster, Topic
from controlplane.api.specs import Specs
from controlplane.plan.changes import changes_between, phrase
from controlplane.plan.diff_databases import database_actions, deleted_databases, refuse_relocated_databases
from controlplane.plan.explain import summary
from controlplane.plan.model import Action, Change, Verb
from controlplane.plan.placement import PlacedBroker
from controlplane.plan.resolve import ResolvedCluster
from controlplane.plan.switch import HANDOVER_MS, calls_to_make, calls_to_remove, switched_broker, switched_cluster
from dataplane.contract.assignment import WalMode
from providers.base.errors import Invalid

Resolved = Mapping[str, ResolvedCluster]

_CLOUD_FIXED = ("spec.provider", "spec.region", "spec.target", "spec.real.bucket", "spec.real.endpoint")
"""Fields that say where a cell's data is: changing one would leave the data behind."""
_RESTARTING = ("spec.settings.", "spec.listeners.", "spec.authorization", "spec.autoscale")
"""Fields that brokers read when they start."""


def refuse_relocation(desired: Specs, recorded: Specs) -> None:
    """Refuse what would leave a running cluster's data behind. Called before anything is resolved, for what follows
    from a cloud that is somewhere else says nothing about this one.

    Raises:
        Invalid: a cloud with a cluster, or the cloud of a cluster, would become another one.
    """
    refuse_relocated_databases(desired, recorded)
    for name, database in recorded.databases.items():
        _refuse_other_place(desired, recorded, database.spec.cloud, name)
    for name, cluster in recorded.clusters.items():
        wanted = desired.clusters.get(name)
        if wanted is not None and wanted.spec.cloud != cluster.spec.cloud:
            where = desired.where("BrokerCluster", name, "spec", "cloud")
            raise Invalid(
                f"{where}: {name} cannot move from {cluster.spec.cloud} to {wanted.spec.cloud}",
                hint="create a second cluster there; links between cells are not here yet",
            )
        _refuse_other_place(desired, recorded, cluster.spec.cloud, name)


def _refuse_other_place(desired: Specs, recorded: Specs, cloud: str, name: str) -> None:
    old, new = recorded.clouds[cloud], desired.clouds.get(cloud)
    for change in changes_between(old, new) if new is not None else ():
        if change.field in _CLOUD_FIXED:
            where = desired.where("Cloud", cloud, *change.field.split("."))
            raise Invalid(
                f"{where}: cannot change from {change.old} to {change.new} while {name} has its data there",
                hint=f"add another Cloud, or delete {name} first",
            )


def diff(desired: Specs, resolved: Resolved, recorded: Specs, before: Resolved) -> tuple[Action, ...]:
    """The actions that lead from `recorded` to `desired`: what others need comes first, deletions last and in the other
    direction.

    Raises:
        Invalid: a change that is not possible on what exists.
    """
    wanted, present = _topics_by_cluster(desired), _topics_by_cluster(recorded)
    actions = [
        *_clouds(desired, recorded),
        *_clusters(desired, resolved, recorded, before),
        *_topics(desired, wanted, present),
        *database_actions(desired, recorded),
    ]
    deletions = [
        *deleted_databases(desired, recorded),
        *_deleted_topics(wanted, present, resolved),
        *_deleted_clusters(desired, recorded, before, present),
        *(
            Action(Verb.DELETE, "Cloud", name, "its agents stop; the bucket stays")
            for name in recorded.clouds
            if name not in desired.clouds
        ),
    ]
    return (*actions, *deletions)


def _clouds(desired: Specs, recorded: Specs) -> Iterator[Action]:
    for name, cloud in desired.clouds.items():
        old = recorded.clouds.get(name)
        if old is None:
            spec = cloud.spec
            where = f"{spec.provider} {spec.region}, zones {', '.join(spec.zones)}, {spec.target}"
            yield Action(Verb.CREATE, "Cloud", name, where, api_calls=1)
        elif old != cloud:
            changes = changes_between(old, cloud)
            yield Action(Verb.UPDATE, "Cloud", name, phrase(changes), changes)


def _clusters(desired: Specs, resolved: Resolved, recorded: Specs, before: Resolved) -> Iterator[Action]:
    for name, cluster in desired.clusters.items():
        old, now = recorded.clusters.get(name), resolved[name]
        if old is None:
            engine = "" if cluster.spec.engine == "embedded" else f"{cluster.spec.engine} on Kubernetes, "
            what = f"{engine}wal {now.choice.mode.value}: {summary(now.choice)}"
            yield Action(Verb.CREATE, "BrokerCluster", name, what)
            for broker in now.brokers:
                yield _created(now, broker)
            continue
        yield from _changed_cluster(desired, old, cluster, before[name], now)


def _changed_cluster(
    desired: Specs, old: BrokerCluster, new: BrokerCluster, before: ResolvedCluster, now: ResolvedCluster
) -> Iterator[Action]:
    name = new.metadata.name
    changes = changes_between(old, new)
    if old.spec.engine != new.spec.engine:
        raise Invalid(
            f"{desired.where('BrokerCluster', name, 'spec', 'engine')}: {name} cannot become {new.spec.engine}: its "
            f"records are {old.spec.engine}'s",
            hint="create a second cluster beside it",
        )
    if old.spec.listeners.peer_secret != new.spec.listeners.peer_secret:
        # One broker after the other reads it at its start; half-way through, the two halves would fence each other.
        raise Invalid(
            f"{desired.where('BrokerCluster', name, 'spec', 'listeners')}: peerSecret of a running cluster cannot "
            "change yet: brokers that have it and brokers that do not are strangers",
            hint="change what is in the file that it names (docs/security.md), or create a second cluster",
        )
    if before.choice.mode is not now.choice.mode:
        yield switched_cluster(before, now, changes)
    elif changes:
        restart = any(change.field.startswith(_RESTARTING) for change in changes)
        alone = now.lasting == 1
        how = ("; its one broker restarts" if alone else "; its brokers restart one by one") if restart else ""
        downtime = (_takeover_ms(now) if alone else HANDOVER_MS) if restart else 0
        yield Action(Verb.UPDATE, "BrokerCluster", name, phrase(changes) + how, changes, downtime)
    earlier = {broker.name: broker for broker in before.brokers}
    for broker in now.brokers:
        there = earlier.pop(broker.name, None)
        if there is None:
            yield _created(now, broker)
        elif there != broker:
            if replace(there, spare=broker.spare) == broker:
                change = Change("spare", there.spare or "no", broker.spare or "no")
                how = "; it starts anew if it runs"
                yield Action(
                    Verb.UPDATE, "Broker", f"{name}/{broker.name}", phrase((change,)) + how, (change,), HANDOVER_MS
                )
            elif there.wal.mode is not broker.wal.mode and there.zone == broker.zone:
                yield switched_broker(before, now, there, broker)
            else:
                yield _altered(desired, now, there, broker)
    for broker in earlier.values():
        yield _removed(before, broker)


def _created(cluster: ResolvedCluster, broker: PlacedBroker) -> Action:
    detail = f", express bucket in {broker.wal.express}" if broker.wal.express else ""
    if len(broker.wal.volume_zones) > 1:
        detail = f", volume in {' and '.join(broker.wal.volume_zones)}"
    return Action(
        Verb.CREATE,
        "Broker",
        f"{cluster.name}/{broker.name}",
        f"new{', spare' if broker.spare else ''}, zone {broker.zone}{detail}",
        api_calls=calls_to_make(broker.wal),
        monthly_usd=cluster.choice.standing_usd_month,
    )


def _altered(desired: Specs, cluster: ResolvedCluster, old: PlacedBroker, new: PlacedBroker) -> Action:
    """A broker whose place or WAL changes. Possible when its WAL stays where it is and can be opened from the new
    place."""
    name = f"{cluster.name}/{new.name}"
    if old.wal.mode is WalMode.OBJECT is new.wal.mode:
        reachable = True
    else:
        same_volume = old.wal.volume == new.wal.volume and set(old.wal.volume_zones) == set(new.wal.volume_zones)
        same_wal = (old.wal.mode, old.wal.bytes_max, old.wal.express) == (
            new.wal.mode,
            new.wal.bytes_max,
            new.wal.express,
        )
        reachable = same_volume and same_wal and new.zone in old.wal.volume_zones
    if not reachable:
        wal = "size, mode" if old.zone == new.zone else "zone"
        raise Invalid(
            f"{desired.where('BrokerCluster', cluster.name, 'spec')}: broker {name} would change the "
            f"{wal} or reach of its WAL volume, "
            "and a running broker's volume cannot change yet",
            hint="keep the cloud's zones in their order and the WAL as it was, or create a second cluster",
        )
    if old.zone == new.zone:
        change = Change("wal.bytesMax", old.wal.bytes_max, new.wal.bytes_max)
        return Action(Verb.UPDATE, "Broker", name, phrase((change,)), (change,), _takeover_ms(cluster))
    change = Change("zone", old.zone, new.zone)
    return Action(Verb.MOVE, "Broker", name, phrase((change,)), (change,), _takeover_ms(cluster))


def _removed(cluster: ResolvedCluster, broker: PlacedBroker) -> Action:
    cost = cluster.choice.standing_usd_month
    return Action(
        Verb.DELETE,
        "Broker",
        f"{cluster.name}/{broker.name}",
        f"zone {broker.zone}; its partitions go to other brokers",
        downtime_ms=_takeover_ms(cluster),
        api_calls=calls_to_remove(broker.wal),
        monthly_usd=None if cost is None else -cost,
    )


def _takeover_ms(cluster: ResolvedCluster) -> int:
    return cluster.choice.rto_s[1] * 1000


def _topics_by_cluster(specs: Specs) -> dict[tuple[str, str], Topic]:
    return {(cluster, topic.metadata.name): topic for topic in specs.topics.values() for cluster in topic.spec.clusters}


def _topics(
    desired: Specs, wanted: Mapping[tuple[str, str], Topic], present: Mapping[tuple[str, str], Topic]
) -> Iterator[Action]:
    for (cluster, name), topic in wanted.items():
        old = present.get((cluster, name))
        if old is None:
            partitions = topic.spec.partitions
            noun = "partition" if partitions == 1 else "partitions"
            yield Action(Verb.CREATE, "Topic", f"{cluster}/{name}", f"{partitions} {noun}")
            continue
        changes = tuple(change for change in changes_between(old, topic) if change.field != "spec.clusters")
        if not changes:
            continue
        if topic.spec.partitions < old.spec.partitions:
            raise Invalid(
                f"{desired.where('Topic', name, 'spec', 'partitions')}: {cluster}/{name} has "
                f"{old.spec.partitions} partitions, "
                f"and partitions cannot be taken away",
                hint=f"write {old.spec.partitions} or more, or create another topic",
            )
        shorter = [c for c in changes if c.field.startswith("spec.configs.retention.") and _is_shorter(c)]
        risk = "records beyond the new retention" if shorter else None
        yield Action(Verb.UPDATE, "Topic", f"{cluster}/{name}", phrase(changes), changes, data_at_risk=risk)


def _deleted_topics(
    wanted: Mapping[tuple[str, str], Topic], present: Mapping[tuple[str, str], Topic], resolved: Resolved
) -> Iterator[Action]:
    for (cluster, name), topic in present.items():
        # With its whole cluster gone the topic is named there, once.
        if (cluster, name) not in wanted and cluster in resolved:
            risk = f"all records of {topic.spec.partitions} partitions"
            yield Action(Verb.DELETE, "Topic", f"{cluster}/{name}", "deleted", data_at_risk=risk)


def _deleted_clusters(
    desired: Specs, recorded: Specs, before: Resolved, present: Mapping[tuple[str, str], Topic]
) -> Iterator[Action]:
    for name in recorded.clusters:
        if name in desired.clusters:
            continue
        topics = [topic for (cluster, _), topic in present.items() if cluster == name]
        for broker in before[name].brokers:
            yield _removed(before[name], broker)
        held = ", ".join(topic.metadata.name for topic in topics) or "topics made by clients"
        yield Action(Verb.DELETE, "BrokerCluster", name, "deleted", data_at_risk=f"all records of the cluster: {held}")


def _is_shorter(change: Change) -> bool:
    """Whether a retention of -1 or unset (for ever) or of more became less."""
    old, new = (-1 if value is None else int(value) for value in (change.old, change.new))
    return new != -1 and (old == -1 or new < old)
