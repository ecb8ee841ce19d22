"""Makes what `controlplane.plan.kubernetes_engines` renders be there: applied, pruned, rolled pod by pod, and replaced
where a node is lost.

    apply all ──► prune what is rendered no more ──► replace pods of lost nodes ──► roll the next pod, or wait

A level, not a sequence: each turn reads what is there, and does the next thing. Whoever comes after a crash, or another
replica, goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.operator.engine_objects import (
    ATTACHMENT,
    CLAIM,
    MADE,
    NODE,
    POD,
    STATEFUL_SET,
    EngineObjects,
    Object,
)
from controlplane.plan.kubernetes import OF, PART, ZONE, Manifest, Rendered
from controlplane.plan.kubernetes_roll import (
    Attachment,
    Next,
    Nodes,
    Pod,
    Replacements,
    Wanted,
    next_to_roll,
    quorum_of,
    to_replace,
)
from providers.base.errors import NotFound

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
PARTS = ("controller", "broker", "agent")
"""In the order in which they are rolled."""
REVISION = "controller-revision-hash"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did, and why. `settled`: all is as rendered, every pod ready and of the newest revision."""

    sentence: str
    settled: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is there of one object."""

    sets: Sequence[Object]
    pods: Sequence[Object]


class Engines:
    """See the module. `api` is blocking; its calls run in threads, and one object has one turn at a time."""

    def __init__(self, api: EngineObjects) -> None:
        self._api = api
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}

    async def reconcile(self, rendered: Rendered, owner: Mapping[str, Any] | None = None) -> Turn:
        """One turn for one object. `owner`: the owner reference of its custom resource, which is in the same
        namespace; with it what was made goes when the resource goes.

        Raises:
            Unavailable: the API server does not answer. Invalid: it refuses an object; nothing was pruned.
            NotFound: the custom resources of an operator that the engine needs are not installed.
        """
        async with self._lock(rendered):
            for manifest in rendered.manifests:
                await asyncio.to_thread(self._apply, _owned(manifest, owner))
            pruned = await asyncio.to_thread(self._prune, rendered.namespace, rendered.of, _keys(rendered.manifests))
            seen = await asyncio.to_thread(self._look, rendered)
            said = [f"removed {name}" for name in pruned]
            replaced = await asyncio.to_thread(self._replace, rendered, seen)
            said += [f"makes {pod.name} anew: its node {pod.node} is lost" for pod in replaced.pods]
            said += replaced.waits
            waiting = bool(said)
            if not replaced.pods and (turn := await asyncio.to_thread(self._roll, rendered, seen)):
                said.append(turn)
                waiting = True
            unready = self._unready(seen)
            if unready and not waiting:
                said.append(f"waits for {unready[0]} to be ready")
        return Turn("; ".join(said) or "all is as it should be", not said)

    async def retire(self, namespace: str, of: str) -> Turn:
        """Remove all that was made for an object that is no longer wanted. Volumes stay, unless its StatefulSets were
        told otherwise.

        Raises:
            Unavailable: the API server does not answer.
        """
        async with self._turns.setdefault((namespace, of), asyncio.Lock()):
            removed = await asyncio.to_thread(self._prune, namespace, of, set())
        self._turns.pop((namespace, of), None)
        return Turn(f"removed {len(removed)} objects" if removed else "nothing of it is left", not removed)

    def _lock(self, rendered: Rendered) -> asyncio.Lock:
        return self._turns.setdefault((rendered.namespace, rendered.of), asyncio.Lock())

    def _apply(self, manifest: Manifest) -> None:
        try:
            self._api.apply(manifest)
        except NotFound as error:
            raise NotFound(
                f"{manifest['apiVersion']} {manifest['kind']} is not known to this cluster",
                hint="install the operator that it belongs to, and its namespace",
            ) from error

    def _prune(self, namespace: str, of: str, keep: set[tuple[str, str]]) -> list[str]:
        removed = []
        for kind in MADE:
            try:
                there = self._api.list(kind, namespace, f"{OF}={of}")
            except NotFound:
                continue  # an upstream operator that is not installed has made nothing
            for found in there:
                metadata = found["metadata"]
                labels = metadata.get("labels", {})
                # Others copy a pod's labels onto what they make; that is theirs to remove.
                ours = labels.get("app.kubernetes.io/managed-by") == "yunhe"
                if not ours or (kind.kind, metadata["name"]) in keep or metadata.get("deletionTimestamp"):
                    continue
                self._api.delete(kind, namespace, metadata["name"], metadata["uid"])
                removed.append(f"{kind.kind} {metadata['name']}")
        return removed

    def _look(self, rendered: Rendered) -> _Seen:
        selector = f"{OF}={rendered.of},app.kubernetes.io/managed-by=yunhe"
        return _Seen(
            self._api.list(STATEFUL_SET, rendered.namespace, selector),
            self._api.list(POD, rendered.namespace, selector),
        )

    def _replace(self, rendered: Rendered, seen: _Seen) -> Replacements:
        if not seen.pods:
            return Replacements()
        nodes = _nodes(self._api.list(NODE))
        pods = [_pod(found, {}) for found in seen.pods]
        lost = [p for p in pods if p.node is not None and (p.node not in nodes.present or p.node in nodes.off)]
        if not lost:
            return Replacements()
        claims = self._api.list(CLAIM, rendered.namespace)
        decided = to_replace(lost, nodes, _attachments(self._api.list(ATTACHMENT), claims))
        uids = {found["metadata"]["name"]: found["metadata"]["uid"] for found in seen.pods}
        for pod in decided.pods:
            # No kubelet is left to confirm its end.
            self._api.delete(POD, rendered.namespace, pod.name, uids[pod.name], grace_s=0)
        return decided

    def _roll(self, rendered: Rendered, seen: _Seen) -> str:
        turn = decide_roll(seen.sets, seen.pods)
        if turn.pod is None:
            return turn.sentence
        [uid] = [f["metadata"]["uid"] for f in seen.pods if f["metadata"]["name"] == turn.pod.name]
        if not self._api.evict(rendered.namespace, turn.pod.name, uid):
            return f"waits: a disruption budget keeps {turn.pod.name} from being rolled now"
        return turn.sentence

    @staticmethod
    def _unready(seen: _Seen) -> list[str]:
        # The status of a set lags behind: of a pod that was deleted just now it does not know yet.
        there = Counter(
            owner["name"]
            for pod in seen.pods
            if pod["metadata"].get("deletionTimestamp") is None
            for owner in pod["metadata"].get("ownerReferences", ())
        )
        names = []
        for found in seen.sets:
            wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
            observed = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
            missing = there[found["metadata"]["name"]] < wanted or status.get("readyReplicas", 0) < wanted
            if not observed or missing or status.get("replicas", 0) > wanted:
                names.append(found["metadata"]["name"])
        return names


def decide_roll(sets: Sequence[Object], pods: Sequence[Object]) -> Next:
    """Whose turn it is, by what is there. A StatefulSet that its controller has not looked at since it was changed
    says nothing of revisions yet."""
    revisions: dict[str, str] = {}
    counts = dict.fromkeys(PARTS, 0)
    for found in sets:
        metadata, status = found["metadata"], found.get("status", {})
        if status.get("observedGeneration", 0) < metadata.get("generation", 0):
            return Next(None, f"waits: the change of {metadata['name']} has not been looked at yet")
        revisions[metadata["name"]] = status.get("updateRevision", "")
        part = metadata["labels"].get(PART)
        if part in counts:
            counts[part] += found["spec"].get("replicas", 1)
    wanted = [
        Wanted(part, count, quorum_of(count) if part == "controller" else 0) for part, count in counts.items() if count
    ]
    return next_to_roll([_pod(found, revisions) for found in pods], wanted)


def _pod(found: Object, revisions: Mapping[str, str]) -> Pod:
    metadata, spec, status = found["metadata"], found["spec"], found.get("status", {})
    labels = metadata.get("labels", {})
    owners = [owner["name"] for owner in metadata.get("ownerReferences", ()) if owner["kind"] == "StatefulSet"]
    revision = revisions.get(owners[0], "") if owners else ""
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec.get("volumes", ())
        if "persistentVolumeClaim" in volume
    ]
    return Pod(
        name=metadata["name"],
        part=labels.get(PART, ""),
        zone=labels.get(ZONE, ""),
        node=spec.get("nodeName"),
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())),
        current=not revision or labels.get(REVISION) == revision,
        leaving=metadata.get("deletionTimestamp") is not None,
        claims=tuple(claims),
    )


def _nodes(found: Sequence[Object]) -> Nodes:
    off = [
        node["metadata"]["name"]
        for node in found
        if any(taint["key"] == OUT_OF_SERVICE for taint in node["spec"].get("taints", ()))
    ]
    return Nodes(frozenset(node["metadata"]["name"] for node in found), frozenset(off))


def _attachments(found: Sequence[Object], claims: Sequence[Object]) -> list[Attachment]:
    claim_of = {claim["spec"].get("volumeName"): claim["metadata"]["name"] for claim in claims}
    attached = []
    for one in found:
        volume = one["spec"]["source"].get("persistentVolumeName")
        if volume in claim_of:
            attached.append(Attachment(one["metadata"]["name"], one["spec"]["nodeName"], claim_of[volume]))
    return attached


def _keys(manifests: Sequence[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}


def _owned(manifest: Manifest, owner: Mapping[str, Any] | None) -> Manifest:
    if owner is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [dict(owner)]}}
