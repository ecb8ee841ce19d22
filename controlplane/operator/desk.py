"""From custom resources to the control plane: one loop, woken by the watches, that brings what is recorded to what the
resources say, and lets go of those that are gone.

    verdict on all resources ──► our finalizer on each that counts ──► accept the plan, begin its operation
      ──► say what was refused, and which generations count ──► take our finalizer from what is gone for good

Each turn begins anew from what is there, so a replica that takes over in the middle goes on. It runs in the loop of the
`Service`; what blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from controlplane.api.specs import Key, Specs
from controlplane.apply.steps import key_of_step
from controlplane.operator.admission import Custom
from controlplane.operator.engine_turns import EngineTurns
from controlplane.operator.events import Events
from controlplane.operator.wanted import Parser, Wanted, wanted
from controlplane.operator.watching import Index, list_into
from controlplane.plan.model import Action, Recorded
from controlplane.plan.plan import HASH_CHARS_SHOWN
from controlplane.reconcile.world import World
from controlplane.server.service import Service
from controlplane.store.base import Operation, StoredPlan
from controlplane.store.conditions import Notice
from controlplane.store.kube_api import Kube, resources_path
from controlplane.store.kubernetes import KubernetesStore
from controlplane.store.recorded import recorded_plain
from providers.base.clock import Clock
from providers.base.errors import Conflict, Fenced, Invalid, NotFound, YunheError

log = logging.getLogger(__name__)

FINALIZER = "yunhe.io/operator"
APPROVE = "yunhe.io/approve"
"""Annotation: the beginning of the hash of a plan that may be carried out."""
RELIST_MS = 60_000.0
"""How old what the watches have told may become until everything is listed anew."""
WATCHED_OVER_MS = 500.0
"""Between two turns while something leaves or an operation runs: nobody tells of their ends."""
RETRY_MIN_MS, RETRY_MAX_MS = 250.0, 10_000.0
EVENTS_MAX = 100
"""Events of one kind that a turn writes."""


class Desk:
    """See the module."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        store: KubernetesStore,
        world: World,
        service: Service,
        index: Index,
        engines: EngineTurns,
        events: Events,
        *,
        clock: Clock,
        approve: bool = False,
    ) -> None:
        """`approve`: plans wait until somebody approves them by an annotation."""
        self._kube, self._namespace, self._store, self._world = kube, namespace, store, world
        self._service, self._index, self._engines, self._events = service, index, engines, events
        self._clock, self._approve = clock, approve
        self._news = asyncio.Event()
        self._parser = Parser()
        self._listed_ms: float | None = None
        self._looked = False
        self._told: str | None = None
        """The operation whose failure was told last."""

    def wake(self) -> None:
        """Something changed; from the loop's own thread."""
        self._news.set()

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            Fenced: another replica leads.
        """
        retry_ms, said = RETRY_MIN_MS, ""
        while True:
            self._news.clear()
            try:
                wait_ms = await self.turn()
                retry_ms, said = RETRY_MIN_MS, ""
            except Fenced:
                raise
            except Conflict as error:
                log.info("looks again: %s", error.message)
                wait_ms = retry_ms
            except YunheError as error:
                wait_ms, retry_ms = retry_ms, min(2 * retry_ms, RETRY_MAX_MS)
                if error.message != said:
                    log.error("nothing is taken up now: %s", error.message)
                said = error.message
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def turn(self) -> float:
        """Do what there is to do; returns after how many ms to look again at the latest.

        Raises:
            YunheError: it could not be done now.
        """
        await self._list()
        customs = self._index.snapshot()
        recorded = self._world.recorded()
        verdict = await asyncio.to_thread(
            wanted, customs, recorded, self._clock.wall_ms(), self._parser, self._world.desired().whole
        )
        self._parser.forget_others(customs)
        self._store.resources.resources_are({key: str(c["metadata"]["uid"]) for key, c in customs.items()})
        await self._hold(customs[key] for key in verdict.accepted)
        awaited: dict[Key, Notice] = {}
        if not verdict.plan.empty:
            changed = _changed(recorded, verdict.specs)
            if self._approve and not _approved(verdict.plan.hash, changed, customs):
                awaited = _awaited(verdict, changed)
            else:
                await self._accept(verdict, changed, customs)
        self._say(customs, verdict, awaited)
        self._tell_of_failure(customs)
        leaving = await self._let_go(customs)
        if not self._looked:
            self._looked = True
            log.info("looked at all of %d resources", len(customs))
        return self._next_ms(verdict, leaving)

    def _next_ms(self, verdict: Wanted, leaving: bool) -> float:
        bounds = [RELIST_MS]
        if leaving or self._running() is not None:
            bounds.append(WATCHED_OVER_MS)
        if verdict.resume_ms is not None:
            bounds.append(max(10.0, verdict.resume_ms - self._clock.wall_ms()))
        return min(bounds)

    async def _list(self) -> None:
        """Everything anew, where it is due: a plan from an index that lacks something would remove that."""
        now_ms = self._clock.monotonic_ms()
        if self._listed_ms is not None and now_ms - self._listed_ms < RELIST_MS:
            return
        try:
            await asyncio.to_thread(list_into, self._index, self._kube, self._namespace, self._store.resources.seen)
        except NotFound as error:
            hint = "install them: yunhe crds | kubectl apply --server-side -f -"
            raise NotFound(f"the definitions of Yunhe's kinds are not installed; {hint}", hint=hint) from error
        self._listed_ms = now_ms

    # ── taking up ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hold(self, customs: Iterable[Custom]) -> None:
        """Our finalizer on each of them, before anything is made for it.

        Raises:
            Conflict: one has changed meanwhile; look again.
        """
        free = [c for c in customs if FINALIZER not in c["metadata"].get("finalizers", ())]
        await self._each(self._set_finalizers, [(c, [*c["metadata"].get("finalizers", ()), FINALIZER]) for c in free])

    def _set_finalizers(self, custom: Custom, finalizers: list[str]) -> None:
        metadata = custom["metadata"]
        path = resources_path(self._namespace, custom["kind"], metadata["name"])
        body = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
        try:
            changed = self._kube.patch(path, body)
        except (NotFound, Invalid) as error:
            raise Conflict(f"{custom['kind']} {metadata['name']} is going away meanwhile") from error
        # Without a finalizer left, what leaves is gone with this answer.
        gone = metadata.get("deletionTimestamp") and not finalizers
        self._index.heard("DELETED" if gone else "MODIFIED", changed)

    @staticmethod
    async def _each(act: Callable[..., None], arguments: Collection[tuple[object, ...]]) -> None:
        """All of them, some at once; the first error is raised after all have been tried."""
        done = await asyncio.gather(*(asyncio.to_thread(act, *one) for one in arguments), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _accept(self, verdict: Wanted, changed: Collection[Key], customs: Mapping[Key, Custom]) -> None:
        plan = verdict.plan
        stored = StoredPlan(plan.hash, plan.base_revision, recorded_plain(plan.recorded_after()), {})
        operation = await self._service.accept(stored, changed)
        short = plan.hash[:HASH_CHARS_SHOWN]
        log.info("plan %s of %d actions is operation %s", short, len(plan.actions), operation.id)
        self._engines.wake()
        by_key = _sentences(verdict)
        for key in [key for key in changed if key in customs][:EVENTS_MAX]:
            self._events.say(customs[key], "Planned", f"plan {short}: {by_key[key]}")

    def _say(self, customs: Mapping[Key, Custom], verdict: Wanted, awaited: Mapping[Key, Notice]) -> None:
        for key, custom in customs.items():
            notice = verdict.notices.get(key) or awaited.get(key) or self._engines.notices.get(key)
            generation = verdict.accepted.get(key) if key not in awaited else None
            if self._store.resources.note(key, notice, generation) and notice is not None:
                self._events.notice(custom, notice)

    def _running(self) -> Operation | None:
        return next(iter(self._store.unfinished()), None)

    def _tell_of_failure(self, customs: Mapping[Key, Custom]) -> None:
        """Of the newest operation, once. The reconcilers go on with what it could not do."""
        newest = self._store.newest()
        if newest is None or newest.outcome != "Failed" or self._told == newest.id:
            return
        self._told = newest.id
        failed = [step for step in newest.steps if step.error is not None and key_of_step(step.id) in customs]
        for step in failed[:EVENTS_MAX]:
            custom = customs[key_of_step(step.id)]
            self._events.say(custom, "StepFailed", f"{step.title}: {step.error}", warning=True)

    # ── letting go ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _let_go(self, customs: Mapping[Key, Custom]) -> bool:
        """Take our finalizer from what is gone for good. True: something is still leaving."""
        held = {
            key: custom
            for key, custom in customs.items()
            if custom["metadata"].get("deletionTimestamp") and FINALIZER in custom["metadata"].get("finalizers", ())
        }
        if not held:
            return False
        recorded, statuses, running = self._world.recorded(), self._store.statuses(), self._running()
        specs = self._world.desired().whole
        busy = {key_of_step(step.id) for step in running.steps} if running is not None else set()
        named = {str(c.get("spec", {}).get("cloud")) for c in customs.values() if c["kind"] != "Cloud"}
        free = [
            (custom, [name for name in custom["metadata"]["finalizers"] if name != FINALIZER])
            for key, custom in held.items()
            if key not in recorded.specs
            and key not in statuses
            and key not in busy
            and self._engines.clean(key, specs, customs)
            # What is left of its cluster in Kubernetes is found by what the Cloud says.
            and not (key[0] == "Cloud" and key[1] in named)
        ]
        await self._each(self._set_finalizers, free)
        for custom, _ in free:
            self._store.forget_status((str(custom["kind"]), str(custom["metadata"]["name"])))
        return len(free) < len(held)


def _changed(recorded: Recorded, specs: Specs) -> set[Key]:
    before, after = recorded.specs, specs.plain()
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _sentences(verdict: Wanted) -> dict[Key, str]:
    """What the plan does with each object; parts of one (brokers, nodes) are told by their own lines."""
    lines: dict[Key, list[str]] = {}
    for action in verdict.plan.actions:
        lines.setdefault(_object_of(action), []).append(f"{action.verb.value}: {action.what}")
    return _Default({key: "; ".join(said) for key, said in lines.items()})


class _Default(dict[Key, str]):
    def __missing__(self, key: Key) -> str:
        return "changed in what others see of it"


def _object_of(action: Action) -> Key:
    match action.kind:
        case "Topic":
            return "Topic", action.name.rpartition("/")[2]
        case "Broker":
            return "BrokerCluster", action.name.partition("/")[0]
        case "DatabaseNode" | "Edges":
            return "Database", action.name.partition("/")[0]
    return action.kind, action.name


def _approved(hash_: str, changed: Collection[Key], customs: Mapping[Key, Custom]) -> bool:
    said = [(customs[key]["metadata"].get("annotations") or {}).get(APPROVE, "") for key in changed if key in customs]
    return any(len(text) >= HASH_CHARS_SHOWN and hash_.startswith(text) for text in said)


def _awaited(verdict: Wanted, changed: Collection[Key]) -> dict[Key, Notice]:
    short, said = verdict.plan.hash[:HASH_CHARS_SHOWN], _sentences(verdict)
    hint = f"annotate one of its objects: {APPROVE}={short}"
    return {
        key: Notice("AwaitsApproval", f"plan {short} waits for approval: {said[key]}", hint, wrong=False)
        for key in changed
    }
