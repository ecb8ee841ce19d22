"""What the control plane does for its callers: plan, apply, show. Holds the runner, the executor and the one running
operation.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from controlplane.api.complaints import did_you_mean
from controlplane.api.kinds import KINDS
from controlplane.api.load import load_texts
from controlplane.api.specs import Specs, to_plain
from controlplane.apply import acts
from controlplane.apply.executor import Act, Executor, Say
from controlplane.apply.observe import READY, SLOW, ClusterView
from controlplane.apply.steps import Step, What, refuse_elsewhere, steps_for
from controlplane.plan.plan import Plan, make_plan
from controlplane.plan.render import plan_plain, render_plan
from controlplane.reconcile.kinds import CloudReconciler, ClusterReconciler, DatabaseReconciler, TopicReconciler
from controlplane.reconcile.queue import WorkQueue
from controlplane.reconcile.runner import Reconciler, Runner
from controlplane.reconcile.world import Desired, World
from controlplane.server.differences import differences
from controlplane.server.overview import overview
from controlplane.store.base import Key, Operation, StepRecord, StepState, Store, StoredPlan
from controlplane.store.recorded import recorded_plain
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError

log = logging.getLogger(__name__)

NOT_LOOKED_AT = "not looked at since the control plane started"
TURN_AFTER_APPLY_MS = 2_000.0
BROKERS_TIMEOUT_MS = 90_000.0
"""How long an apply waits for brokers to serve without any of them getting on; they are looked after beyond it, too."""
BROKERS_TIMEOUTS_MAX = 20
"""How many times that an apply waits at most, however much they get on."""


class Service:
    """One a process. `run` works until cancelled; the other methods are the API's routes."""

    def __init__(self, store: Store, world: World, *, clock: Clock, rng: Rng) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._world = world
        self._queue = WorkQueue(rng=rng)
        reconcilers: dict[str, Reconciler] = {
            "Cloud": CloudReconciler(self._world),
            "BrokerCluster": ClusterReconciler(self._world),
            "Topic": TopicReconciler(self._world),
            "Database": DatabaseReconciler(self._world),
        }
        self._runner = Runner(self._queue, reconcilers, self._world.keys)
        self._executor = Executor(store, clock=clock, rng=rng)
        self._task: asyncio.Task[None] | None = None
        self._accepting = asyncio.Lock()

    def _specs(self) -> Specs:
        return self._world.desired().specs

    def doubt(self) -> None:
        """What was recorded before this start is history: nothing is Ready until it has been looked at."""
        for key, status in self._store.statuses().items():
            self._store.put_status(key, {**status, "state": "Pending", "sentence": NOT_LOOKED_AT})

    async def run(self) -> None:
        """Take up what was interrupted, then reconcile until cancelled."""
        unfinished = self._store.unfinished()
        if unfinished:
            log.info("operation %s was interrupted: going on with it", unfinished[-1].id)
            self._start(unfinished[-1])
        await self._runner.run()

    async def close(self) -> None:
        """Stop the running operation, which is taken up at the next start, and close the cells."""
        await self._stop_operation()
        await self._world.close()

    # ── plan, diff, apply ────────────────────────────────────────────────────────────────────────────────────────────

    async def plan(self, files: Sequence[tuple[str, str]], *, prune: bool) -> dict[str, Any]:
        """Plan, and keep the plan so that it can be applied by its hash.

        Raises:
            Invalid: with the place of each error.
        """
        plan = self._make_plan(files, prune)
        shown = {"hash": plan.hash, "empty": plan.empty, "text": render_plan(plan), "plan": plan_plain(plan)}
        if not plan.empty:
            recorded = recorded_plain(plan.recorded_after())
            self._store.put_plan(StoredPlan(plan.hash, plan.base_revision, recorded, shown))
        return shown

    def _make_plan(self, files: Sequence[tuple[str, str]], prune: bool) -> Plan:
        recorded = self._world.recorded()
        # With prune, no files at all say that nothing is wanted any more.
        empty = prune and not files
        desired = Specs() if empty else load_texts(files, known=None if prune else recorded.as_specs())
        return make_plan(desired, recorded, prune=prune)

    async def diff(self, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Field by field, what these files say and what is applied."""
        present = self._world.recorded().as_specs()
        return differences(load_texts(files, known=present), present)

    async def apply(self, hash_: str) -> dict[str, Any]:
        """Accept the plan with that hash, and begin to bring it about.

        Raises:
            NotFound: no such plan.
            Conflict: it is stale.
            Invalid: something of it is no agent's to run.
        """
        plan = self._store.plan(hash_)
        if plan is None:
            raise NotFound(f"no plan begins with {hash_}", hint="run `yunhe plan SPEC` and use its hash")
        refuse_elsewhere([" ".join(key) for key in World.preview(plan.recorded).elsewhere])
        return asdict(await self.accept(plan))

    async def accept(self, plan: StoredPlan, changed: Collection[Key] | None = None) -> Operation:
        """Make what the plan records the desired state, and begin to bring it about. `changed`: only the steps of these
        objects, and of what is in a cloud that is among them; whoever gives it leaves the others to the reconcilers.

        Raises:
            Conflict: the plan is stale.
        """
        async with self._accepting:
            before, after = self._world.desired(), World.preview(plan.recorded)
            planned = steps_for(after.specs, after.resolved, before.specs, before.resolved)
            steps = [step.record() for step in planned if changed is None or _concerns(step, changed)]
            steps += self._left_over(steps, after)
            operation = Operation(self._rng.token(), plan.hash, self._clock.wall_ms(), tuple(steps))
            self._store.accept(plan, operation)
            # The operation that was running ends here: what it has not done yet, this one does, or undoes.
            await self._stop_operation()
            for key in self._world.keys():  # noqa: SIM118
                # The steps go first; where one is held up, a turn says why in the status.
                if changed is None or key in changed:
                    self._queue.add_later(key, TURN_AFTER_APPLY_MS)
            self._start(operation)
        return operation

    def _left_over(self, steps: Sequence[StepRecord], after: Desired) -> list[StepRecord]:
        """Removals of volumes and topics that the operation which ends here has not done: they follow from no later
        plan."""
        again = {step.id for step in steps}
        wanted = {f"{on}/{name}" for name, topic in after.specs.topics.items() for on in topic.spec.clusters}
        return [
            StepRecord(step.id, step.cloud, step.title)
            for operation in self._store.unfinished()
            for step in operation.steps
            if step.state is not StepState.DONE and _removal(step.id, wanted) in after.resolved and step.id not in again
        ]

    def _start(self, operation: Operation) -> None:
        acts_by_id = {step.id: self._act(step.id, step.cloud) for step in operation.steps}
        self._task = asyncio.create_task(self._execute(operation, acts_by_id), name="operation")

    async def _execute(self, operation: Operation, acts_by_id: Mapping[str, Act]) -> None:
        try:
            await self._executor.run(operation, acts_by_id)
        except YunheError as error:
            # The journal cannot be written (a full disk): the operation is taken up again at the next start.
            log.error("operation %s stopped: %s", operation.id, error)

    async def _stop_operation(self) -> None:
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    def operation(self, id_: str) -> dict[str, Any]:
        """The journal's record.

        Raises:
            NotFound: no such operation.
        """
        found = self._store.operation(id_)
        if found is None:
            raise NotFound(f"no operation is called {id_}")
        return asdict(found)

    def _act(self, id_: str, cloud: str) -> Act:
        what, _, name = id_.partition("/")
        match What(what):
            case What.BUCKET:
                return partial(self._bucket, name)
            case What.VOLUMES:
                return partial(self._volumes, name)
            case What.ASSIGN:
                return partial(self._assign, name)
            case What.SWITCH:
                return partial(self._switch, name)
            case What.BROKERS:
                return partial(self._brokers, name)
            case What.RETIRE_VOLUMES:
                return partial(self._retire_volumes, name)
            case What.TOPIC:
                return partial(self._topic, name)
            case What.RETIRE_TOPIC:
                return partial(self._retire_topic, name)
            case What.RETIRE_CLUSTER:
                return partial(self._retire_cluster, cloud, name)
            case What.ASSIGN_DATABASE:
                return partial(self._assign_database, cloud, name)
            case What.DATABASE:
                return partial(self._database, name)
            case What.RETIRE_DATABASE:
                return partial(self._retire_database, name)

    async def _bucket(self, cloud: str, _: Say) -> str:
        world = self._world
        cell = await world.cell_at(cloud)
        create = self._specs().clouds[cloud].spec.target == "lab"
        sentence = await acts.verify_bucket(cell, create=create, rng=self._rng)
        key = ("Cloud", cloud)
        world.put_status(key, {**world.status(key), "state": "Progressing", "bucket": cell.bucket_name})
        self._look("Cloud", cloud)
        return sentence

    async def _volumes(self, cluster: str, _: Say) -> str:
        return await acts.ensure_volumes(await self._world.cell_of(cluster), self._world.volume_needs(cluster))

    async def _assign(self, cluster: str, _: Say) -> str:
        world = self._world
        _cell, sentence = await world.publish(cluster)
        self._look("BrokerCluster", cluster)
        return sentence

    async def _brokers(self, cluster: str, say: Say) -> str:
        """Wait until a turn of the cluster's reconciler, begun after this, sees all brokers serve.

        Raises:
            Unavailable: not within the bound of a step.
        """
        return (await self._seen(("BrokerCluster", cluster), lambda seen: seen.ready, say)).sentence

    async def _switch(self, cluster_broker: str, say: Say) -> str:
        """Wait until the broker serves on the WAL that it shall have. That it is its turn is `staged`'s to say, with
        each turn of the reconciler."""
        cluster, _slash, name = cluster_broker.partition("/")

        def broker(seen: ClusterView) -> dict[str, Any]:
            removed = {"state": READY, "walMode": None}
            return next((dict(b) for b in seen.plain["brokers"] if b["name"] == name), removed)

        self._look("BrokerCluster", cluster)
        serves = (READY, SLOW)
        done = broker(await self._seen(("BrokerCluster", cluster), lambda seen: broker(seen)["state"] in serves, say))
        if done["walMode"] is None:
            return f"{cluster_broker} is not wanted any more"
        return f"{cluster_broker} serves on wal {done['walMode']} under epoch {done['epoch']}"

    async def _seen(self, key: Key, enough: Callable[[ClusterView], bool], say: Say) -> ClusterView:
        """The first view of the cluster or database, of a turn begun after this, that is enough."""
        world, sentence = self._world, "no turn has looked at it yet"
        await world.next_view(key)  # that turn may have read the cell before the assignment was published
        loop, limit_s = asyncio.get_running_loop(), BROKERS_TIMEOUT_MS / 1000
        latest = loop.time() + BROKERS_TIMEOUTS_MAX * limit_s
        try:
            async with asyncio.timeout(limit_s) as patience:
                while not enough(seen := await world.next_view(key)):
                    if seen.sentence != sentence:
                        patience.reschedule(min(loop.time() + limit_s, latest))
                    sentence = seen.sentence
                    say(sentence)
        except TimeoutError as error:
            raise Unavailable(sentence, hint="its agents go on; see yunhe status") from error
        return seen

    async def _retire_volumes(self, cluster: str, _: Say) -> str:
        world = self._world
        cell = await world.cell_of(cluster)
        needed = {need.id for need in world.volume_needs(cluster)}
        return await acts.retire_volumes(cell, cluster, needed)

    async def _topic(self, cluster_topic: str, _: Say) -> str:
        cluster, _slash, name = cluster_topic.partition("/")
        topic = self._specs().topics[name]
        sentence = await acts.ensure_topic(await self._world.cell_of(cluster), topic, rng=self._rng)
        self._look("Topic", name)
        return sentence

    async def _retire_topic(self, cluster_topic: str, _: Say) -> str:
        cluster, _slash, name = cluster_topic.partition("/")
        return await acts.retire_topic(await self._world.cell_of(cluster), name)

    async def _retire_cluster(self, cloud: str, name: str, _: Say) -> str:
        cell = await self._world.cell(cloud, name)
        agents = [str(a["name"]) for a in self._world.status(("BrokerCluster", name)).get("agents", [])]
        async with self._world.publishing(cloud):
            return await acts.retire_cluster(cell, name, agents, self._store)

    async def _assign_database(self, cloud: str, name: str, _: Say) -> str:
        _cell, sentence = await self._world.publish_cell(cloud)
        self._look("Database", name)
        return sentence

    async def _database(self, name: str, say: Say) -> str:
        """Wait until a turn of the database's reconciler, begun after this, sees all its processes serve.

        Raises:
            Unavailable: not within the bound of a step.
        """
        return (await self._seen(("Database", name), lambda seen: seen.ready, say)).sentence

    async def _retire_database(self, name: str, _: Say) -> str:
        return await self._world.retire_database(name)

    def trust(self, edge: str) -> dict[str, Any]:
        """Take over the key that an edge shows now in place of the one that was pinned.

        Raises:
            NotFound: no such edge. Conflict: it shows no other key.
        """
        database = next(
            (d for d in self._world.desired().databases.values() if any(n.node == edge for n in d.nodes)), None
        )
        if database is None or database.upload is None:
            edges = [n.node for d in self._world.desired().databases.values() if d.upload is not None for n in d.nodes]
            raise NotFound(
                f"no edge that uploads is named {edge}", hint=did_you_mean(edge, edges, "yunhe database list")
            )
        status = dict(self._world.status(("Database", database.name)))
        key = status.get("strangers", {}).get(edge)
        if key is None:
            raise Conflict(
                f"{edge} shows no other key than the one that is trusted"
                if edge in status.get("pins", {})
                else f"{edge} has shown no key yet",
                hint="see yunhe database show",
            )
        status["pins"] = {**status["pins"], edge: key}
        status["strangers"] = {name: other for name, other in status["strangers"].items() if name != edge}
        self._world.put_status(("Database", database.name), status)
        self._look("Database", database.name)
        self._look("Database", database.upload.to)
        return {"edge": edge, "database": database.name, "uploadTo": database.upload.to, "publicKey": key}

    def _look(self, kind: str, name: str) -> None:
        self._queue.add((kind, name), user=True)

    # ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def healthz(self) -> dict[str, Any]:
        """This process."""
        return {"status": "ok", "pid": os.getpid(), "turns": self._runner.turns, "waiting": len(self._queue)}

    def status(self) -> dict[str, Any]:
        """`yunhe status -o json`."""
        desired = self._world.desired()
        return overview(desired.specs, desired.resolved, self._store.statuses(), control_plane_pid=os.getpid())

    def objects(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """Objects of a kind, each with its status.

        Raises:
            Invalid: no such kind.
            NotFound: no such object.
        """
        chosen = next((k for k in KINDS if kind.lower() in (k.lower(), f"{k.lower()}s")), None)
        if chosen is None:
            raise Invalid(f"{kind!r} is not a kind", hint=f"one of: {', '.join(KINDS)}")
        statuses: Mapping[tuple[str, str], Mapping[str, Any]] = self._store.statuses()
        items = [
            {**to_plain(r), "status": statuses.get((r.kind, r.metadata.name), {"state": "Pending"})}
            for r in self._specs()
            if r.kind == chosen and name in (None, r.metadata.name)
        ]
        if name is not None and not items:
            raise NotFound(f"no {chosen} is named {name}", hint=f"see yunhe get {chosen}")
        return items


def _removal(id_: str, wanted: Collection[str]) -> str | None:
    """The cluster on which a step removes what is in no plan any more. `wanted`: topics, as `<cluster>/<name>`."""
    what, _, name = id_.partition("/")
    if what == What.RETIRE_VOLUMES or (what == What.RETIRE_TOPIC and name not in wanted):
        return name.partition("/")[0]
    return None


def _concerns(step: Step, changed: Collection[Key]) -> bool:
    return step.key in changed or ("Cloud", step.cloud) in changed
