"""The engines that run on Kubernetes, turn by turn: what is recorded is rendered and made so (`engines.py`), and what
was made for objects that are rendered no more is removed.

Nothing is remembered of what was made: whoever takes over asks once, of every object that could have something there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.api.specs import Key, Specs
from controlplane.operator.admission import Custom
from controlplane.operator.engines import Engines, Turn
from controlplane.plan.kubernetes import Rendered
from controlplane.plan.kubernetes_engines import render_engines
from controlplane.plan.resolve import resolve
from controlplane.reconcile.world import World
from controlplane.store.conditions import Notice
from providers.base.errors import Fenced, Unavailable, YunheError

log = logging.getLogger(__name__)

AGAIN_MS = 1_000.0
"""Between two looks while something is not as it should be."""
SETTLED_MS = 30_000.0
KINDS_OF_ENGINES = ("Cloud", "BrokerCluster", "Database")

Connect = Callable[[str | None], Engines]
"""Context of the kubeconfig, None: the operator's own cluster → its engines. Raises Invalid where there is none."""


@dataclass(frozen=True, slots=True)
class _Place:
    context: str | None
    namespace: str


@dataclass(slots=True)
class EngineTurns:
    """See the module. `customs`: the resources as they are; `namespace`: where they are."""

    connect: Connect
    world: World
    customs: Callable[[], Mapping[Key, Custom]]
    namespace: str
    notices: dict[Key, Notice] = field(default_factory=dict)
    """What is wrong, for objects whose status is another's to write."""
    _clean: set[Key] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """What is recorded has changed."""
        self._news.set()

    def clean(self, key: Key, specs: Specs, customs: Mapping[Key, Custom]) -> bool:
        """Whether nothing is left in Kubernetes of an object that is not recorded any more. `specs`: what is."""
        return key in self._clean or self._place(key, specs, customs) is None

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._news.clear()
            try:
                settled = await self.turn()
            except Fenced:
                raise
            except YunheError as error:
                log.error("the engines on Kubernetes were not looked at: %s", error.message)
                settled = False
            try:
                async with asyncio.timeout((SETTLED_MS if settled else AGAIN_MS) / 1000):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def turn(self) -> bool:
        """One turn of every object. True: all is as it should be.

        Raises:
            YunheError: what is recorded cannot be read or rendered.
        """
        recorded, customs = self.world.recorded(), self.customs()
        specs = self.world.desired().whole
        rendered = render_engines(specs, resolve(specs, settled=recorded.settled()))
        made = {(one.kind, one.name): one for one in rendered}
        settled = True
        for key, one in made.items():
            self._clean.discard(key)
            place = self._place(key, specs, customs)
            settled &= await self._make(key, one, place.context if place is not None else None, customs)
        for key in {*recorded.specs, *customs} - made.keys() - self._clean:
            if (left := self._place(key, specs, customs)) is not None:
                settled &= await self._remove(key, left)
        known = {*recorded.specs, *customs}
        self._clean &= known
        self.notices = {key: notice for key, notice in self.notices.items() if key in known}
        return settled

    async def _make(self, key: Key, one: Rendered, context: str | None, customs: Mapping[Key, Custom]) -> bool:
        owner = customs.get(key) if context is None and one.namespace == self.namespace else None
        try:
            turn = await self.connect(context).reconcile(one, _reference(owner) if owner is not None else None)
        except YunheError as error:
            self._failed(key, one, error)
            return False
        self.notices.pop(key, None)
        self._show(key, one, turn)
        return turn.settled

    async def _remove(self, key: Key, place: _Place) -> bool:
        try:
            turn = await self.connect(place.context).retire(place.namespace, ".".join(key))
        except YunheError as error:
            self.notices[key] = Notice("Engine", f"what was made for it is not removed: {error.message}", error.hint)
            return False
        self.notices.pop(key, None)
        if turn.settled:
            self._clean.add(key)
        return turn.settled

    def _show(self, key: Key, one: Rendered, turn: Turn) -> None:
        if key in self.world.desired().elsewhere:
            status: dict[str, Any] = {
                "state": "Ready" if turn.settled else "Progressing",
                "sentence": turn.sentence,
                "namespace": one.namespace,
                "notes": list(one.notes),
            }
            self.world.put_status(key, status)

    def _failed(self, key: Key, one: Rendered, error: YunheError) -> None:
        if key not in self.world.desired().elsewhere:
            # Its status says how the cloud and its brokers are.
            self.notices[key] = Notice("Engine", error.message, error.hint)
            return
        state = "Unavailable" if isinstance(error, Unavailable) else "Failed"
        status = {**self.world.status(key), "state": state, "sentence": error.message, "hint": error.hint}
        self.world.put_status(key, {**status, "namespace": one.namespace})

    @staticmethod
    def _place(key: Key, specs: Specs, customs: Mapping[Key, Custom]) -> _Place | None:
        """Where something of it could be: where its Cloud says, as recorded or as its resource has it."""
        if key[0] not in KINDS_OF_ENGINES:
            return None
        if key[0] == "Cloud":
            cloud: Any = key[1]
        else:
            recorded = specs.clusters.get(key[1]) if key[0] == "BrokerCluster" else specs.databases.get(key[1])
            cloud = recorded.spec.cloud if recorded is not None else customs.get(key, {}).get("spec", {}).get("cloud")
        found = specs.clouds.get(str(cloud))
        if found is not None:
            kubernetes = found.spec.kubernetes
            return _Place(kubernetes.context, kubernetes.namespace) if kubernetes is not None else None
        written = (customs.get(("Cloud", str(cloud))) or {}).get("spec", {}).get("kubernetes")
        return _Place(written.get("context"), str(written.get("namespace", "yunhe"))) if written is not None else None


def _reference(custom: Custom) -> dict[str, Any]:
    """With it, what was made goes when the resource goes."""
    metadata = custom["metadata"]
    found = {"apiVersion": custom["apiVersion"], "kind": custom["kind"], "name": metadata["name"]}
    return {**found, "uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}
