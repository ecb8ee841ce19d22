"""One reconciler a kind: Cloud, BrokerCluster, Topic, Database."""

from __future__ import annotations

from typing import Any

from controlplane.apply import acts
from controlplane.apply.observe import READY
from controlplane.reconcile.runner import Turn
from controlplane.reconcile.world import World
from providers.base.errors import Unavailable, YunheError

READY_AGAIN_MS = 2_000.0
"""How old the status of a healthy cluster may be; each look is a small read of each of its logs."""
NOT_READY_AGAIN_MS = 300.0
"""The same while it is coming up or degraded: somebody is waiting."""
WAITING_AGAIN_MS = 1_500.0
"""The same of one of perhaps a thousand topics that wait for brokers."""


def condition(type_: str, true: bool, sentence: str) -> dict[str, Any]:
    """A condition as status shows it."""
    return {"type": type_, "status": "True" if true else "False", "reason": sentence}


class _Recording:
    """What the reconcilers share: how a failure is recorded."""

    kind: str

    def __init__(self, world: World) -> None:
        self._world = world

    def failed(self, name: str, error: YunheError) -> None:
        """Keep what was last observed, and say that it could not be looked at, or brought about, now."""
        key = (self.kind, name)
        before = dict(self._world.status(key))
        before.update(state="Unavailable" if isinstance(error, Unavailable) else "Failed", sentence=error.message)
        before["hint"] = error.hint
        self._world.put_status(key, before)


class CloudReconciler(_Recording):
    """The bucket is verified, and the volumes of its cluster are there and attached."""

    kind = "Cloud"

    async def reconcile(self, name: str) -> Turn:
        world, key = self._world, ("Cloud", name)
        desired = world.desired()
        cloud = desired.specs.clouds.get(name)
        if cloud is None:
            world.store.forget_status(key)
            return Turn("not desired any more; its bucket is left as it is")
        clusters = [cluster for cluster in desired.resolved.values() if cluster.cloud == name]
        cell = await world.cell_at(name)
        if world.status(key).get("bucket") == cell.bucket_name:
            await cell.touch()
            sentence = "its bucket answers"
        else:
            sentence = await acts.verify_bucket(cell, create=cloud.spec.target == "lab", rng=world.rng)
        conditions = [condition("BucketVerified", True, sentence)]
        for cluster in clusters:
            if needs := world.volume_needs(cluster.name):
                attached = await acts.ensure_volumes(cell, needs)
                conditions.append(condition("VolumesAttached", True, attached))
                sentence = f"{sentence}; {attached}"
        status = {"state": READY, "sentence": sentence, "conditions": conditions, "bucket": cell.bucket_name}
        world.put_status(key, status)
        return Turn(sentence)


class ClusterReconciler(_Recording):
    """The agents have been told what to run, and status says how far they are."""

    kind = "BrokerCluster"

    async def reconcile(self, name: str) -> Turn:
        world, key = self._world, ("BrokerCluster", name)
        resolved = world.desired().resolved.get(name)
        if resolved is None:
            return await self._retire(name)
        if not world.status(("Cloud", resolved.cloud)).get("bucket"):
            # Nothing is written into a bucket that has not been proved to keep create-if-absent.
            return Turn(f"waits until the bucket of {resolved.cloud} is verified", again_ms=NOT_READY_AGAIN_MS)
        cell, published = await world.publish(name)
        seen = world.observe(name, cell)
        was_ready = bool(world.status(key).get("wasReady")) or seen.ready
        conditions = [
            condition("AssignmentsPublished", True, published),
            condition("BrokersReady", seen.ready, seen.sentence),
        ]
        world.put_status(key, {**seen.plain, "conditions": conditions, "wasReady": was_ready})
        return Turn(seen.sentence, again_ms=READY_AGAIN_MS if seen.ready else NOT_READY_AGAIN_MS)

    async def _retire(self, name: str) -> Turn:
        world, key = self._world, ("BrokerCluster", name)
        status = world.status(key)
        cloud = status.get("cloud")
        if cloud is None:
            world.store.forget_status(key)
            return Turn("not desired any more, and it never ran")
        cell = await world.cell(str(cloud), name)
        async with world.publishing(str(cloud)):
            sentence = await acts.retire_cluster(
                cell, name, [str(a["name"]) for a in status.get("agents", [])], world.store
            )
        world.store.forget_status(key)
        return Turn(f"not desired any more: {sentence}")


class TopicReconciler(_Recording):
    """The topic is on each of its clusters as it should be."""

    kind = "Topic"

    async def reconcile(self, name: str) -> Turn:
        world, key = self._world, ("Topic", name)
        desired = world.desired()
        topic = desired.specs.topics.get(name)
        wanted = topic.spec.clusters if topic is not None else ()
        gone = [c for c in world.status(key).get("clusters", []) if c not in wanted and c in desired.resolved]
        sentences = [f"{cluster}: {await acts.retire_topic(await world.cell_of(cluster), name)}" for cluster in gone]
        if topic is None:
            world.store.forget_status(key)
            return Turn("; ".join(sentences) or "not desired any more")
        for cluster in wanted:
            if not world.status(("BrokerCluster", cluster)).get("wasReady"):
                # No failure: a topic needs brokers to own its partitions, and they come later.
                sentence = f"waits until the brokers of {cluster} serve"
                world.put_status(key, {**world.status(key), "state": "Progressing", "sentence": sentence})
                return Turn(sentence, again_ms=WAITING_AGAIN_MS)
            done = await acts.ensure_topic(await world.cell_of(cluster), topic, rng=world.rng)
            sentences.append(f"{cluster}: {done}")
        # What is, and not what was done: a sentence that the next turn would change is a write more of each topic.
        stands = f"is on {', '.join(wanted)} as it should be"
        world.put_status(key, {"state": READY, "sentence": stands, "clusters": list(wanted)})
        return Turn("; ".join(sentences))


class DatabaseReconciler(_Recording):
    """The agents have been told which databases to run, edges' keys are pinned, and status says how far they are."""

    kind = "Database"

    async def reconcile(self, name: str) -> Turn:
        world, key = self._world, ("Database", name)
        resolved = world.desired().databases.get(name)
        if resolved is None:
            return await self._retire(name)
        if not world.status(("Cloud", resolved.cloud)).get("bucket"):
            return Turn(f"waits until the bucket of {resolved.cloud} is verified", again_ms=NOT_READY_AGAIN_MS)
        cell, published = await world.publish_cell(resolved.cloud)
        # Nothing is awaited from here on: an approval of a key must not be written over.
        seen = world.observe_database(name, cell)
        was_ready = bool(world.status(key).get("wasReady")) or seen.ready
        conditions = [
            condition("AssignmentsPublished", True, published),
            condition("DatabaseReady", seen.ready, seen.sentence),
        ]
        world.put_status(key, {**seen.plain, "conditions": conditions, "wasReady": was_ready})
        return Turn(seen.sentence, again_ms=READY_AGAIN_MS if seen.ready else NOT_READY_AGAIN_MS)

    async def _retire(self, name: str) -> Turn:
        world, key = self._world, ("Database", name)
        sentence = await world.retire_database(name)
        world.store.forget_status(key)
        return Turn(f"not desired any more: {sentence}")
