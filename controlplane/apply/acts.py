"""What each step does to the world. All are idempotent, and each returns one sentence; the reconcilers use the same
acts to keep what apply has made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

from controlplane.api.kinds import Topic
from controlplane.apply.cells import Cell
from controlplane.apply.probe import probe_conditional_create
from controlplane.apply.render import VolumeNeed, differs, emptied
from controlplane.apply.render_databases import without_database
from controlplane.store.base import Store
from dataplane.contract.assignment import Assignment
from dataplane.ledger.commands import partitions_added, topic_configured, topic_created, topic_deleted
from dataplane.ledger.entry import Command
from dataplane.ledger.state import BrokerStatus, CellState
from providers.base.clock import Rng
from providers.base.errors import Conflict, Invalid, Unavailable


async def verify_bucket(cell: Cell, *, create: bool, rng: Rng) -> str:
    """That the bucket is there and keeps create-if-absent. `create`: make the cell's buckets if they are missing; those
    on a real cloud are their owner's to make.

    Raises:
        Invalid: it does not, and no cell can live in it.
        Unavailable: it does not answer.
    """
    if create:
        await cell.ensure_buckets()
    return await probe_conditional_create(cell.store, rng=rng)


async def ensure_volumes(cell: Cell, needs: Sequence[VolumeNeed]) -> str:
    """Create the volumes that are missing, and attach each in all of its zones beforehand: attaching is a call that an
    outage takes away.

    Raises:
        Invalid: beyond the cloud's limits, or a volume of that name is another one.
        Unavailable: the volume API does not answer.
    """
    volumes = await cell.volumes()
    present = {volume.id: volume for volume in await volumes.describe()}
    created = attached = 0
    for need in needs:
        volume = present.get(need.id)
        if volume is None:
            volume = await volumes.create(
                need.id, size_bytes=need.size_bytes, zones=need.zones, share_max=need.share_max
            )
            created += 1
        elif missing := sorted(set(need.zones) - set(volume.zones)):
            raise Invalid(
                f"volume {need.id} reaches zones {', '.join(volume.zones)} and not {', '.join(missing)}",
                hint="give the broker's cluster another name, or remove the volume once nothing needs it",
            )
        for zone in need.zones:
            if zone not in volume.attached_zones:
                volume = await volumes.attach(need.id, zone)
                attached += 1
    if not created and not attached:
        return f"{len(needs)} volumes are there and attached"
    return f"created {created} volumes, attached {attached} times"


async def retire_volumes(cell: Cell, cluster: str, needed: Set[str]) -> str:
    """Detach and delete the WAL volumes of the cluster's brokers that no broker shall have any more.

    Raises:
        Unavailable: the volume API does not answer, or a life of a broker that wrote to one is not over yet.
    """
    ours = re.compile(re.escape(cluster) + r"-b-[0-9]+-wal")
    await cell.refresh(())
    held = {b.wal.volume for b in cell.state.brokers.values() if b.status is not BrokerStatus.GONE}
    volumes = await cell.volumes()
    gone = [v for v in await volumes.describe() if ours.fullmatch(v.id) and v.id not in needed]
    if busy := sorted(v.id for v in gone if v.id in held):
        raise Unavailable(
            f"volume {', '.join(busy)} may still be needed: the broker's life that wrote to it is not over"
        )
    for volume in gone:
        for zone in volume.attached_zones:
            await volumes.detach(volume.id, zone)
        await volumes.delete(volume.id)
    return f"removed {len(gone)} volumes" if gone else "no volume is left over"


async def publish(cell: Cell, rendered: Mapping[str, Assignment], store: Store) -> str:
    """Publish each agent's assignment if it differs from the newest in its mailbox; those that differ share one new
    number.

    Raises:
        Unavailable: the bucket does not answer.
    """
    newest = {agent: cell.newest_assignment(agent) for agent in rendered}
    changed = {agent: one for agent, one in rendered.items() if differs(one, newest[agent])}
    if not changed:
        return f"{len(rendered)} agents have their newest assignment"
    for seen in newest.values():
        if seen is not None:
            # A mailbox ahead of the store: the store was restored from a backup, or begun anew.
            store.outgrow(seen.generation)
    generation = store.next_generation()
    for assignment in changed.values():
        await cell.publish(replace(assignment, generation=generation))
    return f"published generation {generation.incarnation}.{generation.revision} to {', '.join(sorted(changed))}"


async def retire_cluster(cell: Cell, cluster: str, agents: Sequence[str], store: Store) -> str:
    """Tell the agents that still run the cluster to run nothing, and wait until they have said that they do not.

    Raises:
        Unavailable: not all have yet, or the bucket does not answer.
    """
    await cell.refresh(agents)
    newest = {agent: cell.newest_assignment(agent) for agent in agents}
    told = {agent: emptied(one) for agent, one in newest.items() if one is not None and one.cluster == cluster}
    await publish(cell, told, store)
    # Also those that were told so with something else, as when the cell keeps databases.
    for agent in (agent for agent, one in newest.items() if one is not None and (agent in told or not one.brokers)):
        report = cell.report(agent)
        if report is not None and any(broker.pid is not None for broker in report.brokers):
            raise Unavailable(f"agent {agent} has not stopped its brokers yet")
    return f"{len(told)} agents run nothing any more"


async def retire_database(cell: Cell, database: str, agents: Sequence[str], store: Store) -> str:
    """Tell the agents that still run the database to stop it, and wait until they have said that it does not run. What
    it has in the bucket, or on its flash, stays.

    Raises:
        Unavailable: not all have yet, or the bucket does not answer.
    """
    await cell.refresh(agents)
    newest = {agent: cell.newest_assignment(agent) for agent in agents}
    told = {
        agent: without_database(one, database)
        for agent, one in newest.items()
        if one is not None and any(spec.database == database for spec in one.databases)
    }
    await publish(cell, told, store)
    for agent in agents:
        report = cell.report(agent)
        if report is not None and any(d.database == database and d.pid is not None for d in report.databases):
            raise Unavailable(f"agent {agent} has not stopped {database} yet")
    return f"no agent runs {database} any more"


async def ensure_topic(cell: Cell, topic: Topic, *, rng: Rng) -> str:
    """Create the topic, or give it its partitions and configs.

    Raises:
        Invalid: it has more partitions than the spec says, and partitions never go away.
        Unavailable: no broker is live yet, or the bucket does not answer.
    """
    try:
        accepted = await cell.decide(topic_decision(topic, rng.token()))
    except Conflict:
        # A turn and a step that decide in one moment want the same: whoever is second looks again.
        accepted = await cell.decide(topic_decision(topic, rng.token()))
    name = topic.metadata.name
    done = {
        "topic-created": f"created with {topic.spec.partitions} partitions",
        "partitions-added": f"grown to {topic.spec.partitions} partitions",
        "topic-configured": "configured",
    }
    what = " and ".join(done[command["kind"]] for command in accepted)
    return f"topic {name} {what}" if what else f"topic {name} is as it should be"


def topic_decision(topic: Topic, topic_id: str) -> Callable[[CellState], Sequence[Command]]:
    """What to append for the topic, as a function of the cell's state."""
    name, wanted = topic.metadata.name, topic.spec.partitions
    configs = topic_configs(topic)

    def decide(state: CellState) -> Sequence[Command]:
        present = state.topics.get(name)
        if present is None:
            return [topic_created(name, topic_id, owners_for(state, 0, wanted), configs)]
        count = len(present.streams)
        if count > wanted:
            raise Invalid(
                f"topic {name} has {count} partitions and the spec says {wanted}; partitions never go away",
                hint=f"write `partitions: {count}`, or make a new topic",
            )
        commands: list[Command] = []
        if count < wanted:
            commands.append(partitions_added(name, present.topic_id, count, owners_for(state, count, wanted)))
        if present.configs != configs:
            commands.append(topic_configured(name, present.topic_id, configs))
        return commands

    return decide


def topic_configs(topic: Topic) -> dict[str, str]:
    """The configs as Kafka writes them."""
    plain = topic.spec.configs.model_dump(by_alias=True, exclude_none=True)
    return {name: str(value) for name, value in plain.items()}


def owners_for(state: CellState, first: int, end: int) -> list[int]:
    """Owners of partitions [first, end): those who own the fewest, in turn.

    Raises:
        Unavailable: no broker is live.
    """
    load = {broker.node: len(state.owned(broker.id)) for broker in state.live()}
    if not load:
        raise Unavailable("no broker is live yet")
    owners = []
    for _ in range(first, end):
        node = min(load, key=lambda n: (load[n], n))
        load[node] += 1
        owners.append(node)
    return owners


async def retire_topic(cell: Cell, name: str) -> str:
    """Delete the topic if it is there.

    Raises:
        Unavailable: the bucket does not answer.
    """

    def decide(state: CellState) -> Sequence[Command]:
        present = state.topics.get(name)
        return [] if present is None else [topic_deleted(name, present.topic_id)]

    return f"topic {name} deleted" if await cell.decide(decide) else f"topic {name} is not there"
