"""The order of things: which steps bring a set of objects about. Pure; what each does is `acts.py`.

For each cloud, in order:   bucket ─► volumes ─► assignments ─► WAL switch, broker by broker ─► brokers ─► topics
                            ─► databases
Clouds do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from controlplane.api.specs import Key, Specs
from controlplane.plan.resolve import ResolvedCluster
from controlplane.store.base import StepRecord
from providers.base.errors import Invalid


class What(StrEnum):
    """Kinds of step; a step's id is `<what>/<name>`."""

    BUCKET = "bucket"
    VOLUMES = "volumes"
    ASSIGN = "assign"
    SWITCH = "switch"
    BROKERS = "brokers"
    RETIRE_VOLUMES = "retire-volumes"
    TOPIC = "topic"
    RETIRE_TOPIC = "retire-topic"
    RETIRE_CLUSTER = "retire-cluster"
    ASSIGN_DATABASE = "assign-database"
    DATABASE = "database"
    RETIRE_DATABASE = "retire-database"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `name` is the Cloud's, BrokerCluster's or Database's, or for a topic or broker `<cluster>/<name>`."""

    what: What
    name: str
    cloud: str
    title: str

    @property
    def id(self) -> str:
        return f"{self.what}/{self.name}"

    @property
    def key(self) -> Key:
        """(kind, name) of the object that it is for."""
        return key_of_step(self.id)

    def record(self) -> StepRecord:
        """The step as it enters the journal."""
        return StepRecord(self.id, self.cloud, self.title)


def key_of_step(id_: str) -> Key:
    """(kind, name) of the object that a step is for, by its id."""
    what, _, name = id_.partition("/")
    match What(what):
        case What.BUCKET:
            return "Cloud", name
        case What.TOPIC | What.RETIRE_TOPIC:
            return "Topic", name.partition("/")[2]
        case What.ASSIGN_DATABASE | What.DATABASE | What.RETIRE_DATABASE:
            return "Database", name
    return "BrokerCluster", name.partition("/")[0]


def refuse_elsewhere(names: Sequence[str]) -> None:
    """Refuse objects, `<kind> <name>`, that are no agent's to run.

    Raises:
        Invalid: there are any.
    """
    if names:
        raise Invalid(
            f"{', '.join(names)}: its engine runs on Kubernetes, and no agent can start it",
            hint="put it there with the operator, or with `yunhe render SPEC | kubectl apply --server-side -f -`",
        )


def steps_for(
    desired: Specs,
    resolved: Mapping[str, ResolvedCluster],
    before: Specs,
    resolved_before: Mapping[str, ResolvedCluster],
) -> tuple[Step, ...]:
    """All steps that make `desired` so, from whatever is there. `before`: what was applied last; of it what is not
    desired any more is retired.
    """
    steps = [Step(What.BUCKET, name, name, f"probe the bucket of {name}") for name in desired.clouds]
    for name, cluster in resolved.items():
        if any(broker.wal.volume is not None for broker in cluster.brokers):
            steps.append(Step(What.VOLUMES, name, cluster.cloud, f"create and attach the volumes of {name}"))
        steps.append(Step(What.ASSIGN, name, cluster.cloud, f"publish the assignments of {name}"))
        earlier = resolved_before.get(name)
        steps += _switches(cluster, earlier) if earlier is not None else ()
        steps.append(Step(What.BROKERS, name, cluster.cloud, f"wait for the brokers of {name}"))
        if earlier is not None and _volumes(earlier) - _volumes(cluster):
            steps.append(Step(What.RETIRE_VOLUMES, name, cluster.cloud, f"remove volumes that {name} needs no more"))
    wanted = {(on, name) for name, topic in desired.topics.items() for on in topic.spec.clusters}
    present = {(on, name) for name, topic in before.topics.items() for on in topic.spec.clusters}
    for on, name in sorted(present - wanted):
        if on in resolved:
            title = f"delete topic {name} on {on}"
            steps.append(Step(What.RETIRE_TOPIC, f"{on}/{name}", resolved[on].cloud, title))
    for on, name in sorted(wanted):
        title = f"create topic {name} on {on}"
        steps.append(Step(What.TOPIC, f"{on}/{name}", resolved[on].cloud, title))
    for name in sorted(set(before.clusters) - set(desired.clusters)):
        cloud = before.clusters[name].spec.cloud
        steps.append(Step(What.RETIRE_CLUSTER, name, cloud, f"stop the brokers of {name}"))
    return (*steps, *_databases(desired, before))


def _databases(desired: Specs, before: Specs) -> list[Step]:
    """Databases with role cloud first: edges of the same cloud upload to them."""
    gone = [d for name, d in before.databases.items() if name not in desired.databases]
    steps = [
        Step(What.RETIRE_DATABASE, d.metadata.name, d.spec.cloud, f"stop the database {d.metadata.name}") for d in gone
    ]
    for database in sorted(desired.databases.values(), key=lambda d: (d.spec.role == "edge", d.metadata.name)):
        name, cloud = database.metadata.name, database.spec.cloud
        steps.append(Step(What.ASSIGN_DATABASE, name, cloud, f"publish the assignments of {name}"))
        steps.append(Step(What.DATABASE, name, cloud, f"wait for the database {name}"))
    return steps


def _switches(cluster: ResolvedCluster, earlier: ResolvedCluster) -> list[Step]:
    """One a broker whose WAL changes its mode, in the order in which they do."""
    modes = {broker.node_id: broker.wal.mode for broker in earlier.brokers}
    return [
        Step(
            What.SWITCH,
            f"{cluster.name}/{broker.name}",
            cluster.cloud,
            f"{cluster.name}/{broker.name} from wal {modes[broker.node_id].value} to {broker.wal.mode.value}",
        )
        for broker in cluster.brokers
        # A spare one need not run, and then changes when it starts.
        if not broker.spare and modes.get(broker.node_id, broker.wal.mode) is not broker.wal.mode
    ]


def _volumes(cluster: ResolvedCluster) -> set[str]:
    return {broker.wal.volume for broker in cluster.brokers if broker.wal.volume is not None}
