"""Which pod is replaced next: by zone, one at a time, never below quorum; and when a lost node's pod may come back
elsewhere. Pure.

    all ready ──(some are of an old revision)──► roll one ──► wait until it is ready ──► … the zone done, the next zone

A volume is used again only after the lost node's VolumeAttachment is gone: until then nobody knows that the node has
ceased to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a StatefulSet whose updates are ours."""

    name: str
    part: str
    """controller, broker or agent."""
    zone: str
    node: str | None
    """None: not scheduled."""
    ready: bool
    current: bool
    """Whether it is of its StatefulSet's newest revision."""
    leaving: bool = False
    """Whether its deletion has begun."""
    claims: tuple[str, ...] = ()
    """Its PersistentVolumeClaims."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many pods of a part there shall be, in the order in which parts are rolled."""

    part: str
    count: int
    quorum: int = 0
    """So many must stay ready; 0: all but one, and of one alone none."""

    @property
    def least(self) -> int:
        """Pods that must be ready while one is away."""
        return min(self.quorum, self.count - 1) if self.quorum else self.count - 1


@dataclass(frozen=True, slots=True)
class Next:
    """`pod`: to be evicted now; None: nobody. `sentence`: what is done, and why."""

    pod: Pod | None
    sentence: str

    @property
    def done(self) -> bool:
        return self.pod is None and not self.sentence


def quorum_of(count: int) -> int:
    """Of a metadata quorum: more than half."""
    return count // 2 + 1


def next_to_roll(pods: Sequence[Pod], wanted: Iterable[Wanted]) -> Next:
    """The pod whose turn it is.

    Nobody's, while any pod is away or not ready: one that is of an old revision and not ready itself is the exception,
    for its replacement takes nothing away, and may be what cures it. A zone that was begun is finished first.
    """
    parts = list(wanted)
    known = {one.part for one in parts}
    mine = [pod for pod in pods if pod.part in known]
    old = [pod for pod in mine if not pod.current]
    if not old:
        return Next(None, "")
    if leaving := next((pod for pod in mine if pod.leaving), None):
        return Next(None, f"waits for {leaving.name} to end")
    for one in parts:
        there = [pod for pod in mine if pod.part == one.part]
        if len(there) < one.count:
            return Next(None, f"waits: {len(there)} of {one.count} {one.part} pods are there")
    renewed = sorted((pod for pod in mine if pod.current and not pod.ready), key=lambda pod: pod.name)
    if renewed:
        return Next(None, f"waits for {renewed[0].name}, of the new revision, to be ready")
    sick = sorted((pod for pod in old if not pod.ready), key=lambda pod: pod.name)
    if sick:
        return Next(sick[0], f"rolls {sick[0].name}: it is of an old revision, and not ready")
    for one in parts:
        there = [pod for pod in mine if pod.part == one.part]
        outdated = [pod for pod in there if not pod.current]
        if not outdated:
            continue
        ready = sum(pod.ready for pod in there)
        if ready - 1 < one.least:
            return Next(None, f"waits: {ready} of {one.count} {one.part} pods are ready, and {one.least} must stay so")
        begun = {pod.zone for pod in there if pod.current}
        chosen = min(outdated, key=lambda pod: (pod.zone not in begun, pod.zone, pod.name))
        return Next(chosen, f"rolls {chosen.name} in zone {chosen.zone or 'any'}: {len(outdated)} {one.part} pods left")
    return Next(None, "")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VolumeAttachment: which claim's volume is attached to which node."""

    name: str
    node: str
    claim: str


@dataclass(frozen=True, slots=True)
class Nodes:
    """What is known of nodes. `off`: shut down for certain, by the taint node.kubernetes.io/out-of-service, which only
    who has seen it may set."""

    present: frozenset[str]
    off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Replacements:
    """Pods to be removed so that their StatefulSets make them anew; and what is waited for, a sentence each."""

    pods: tuple[Pod, ...] = ()
    waits: tuple[str, ...] = field(default=())


def reusable(claim: str, lost_node: str, attachments: Iterable[Attachment]) -> Attachment | None:
    """What still stands between a claim's volume and its next user: its attachment to the lost node. None: nothing."""
    return next((a for a in attachments if a.claim == claim and a.node == lost_node), None)


def to_replace(pods: Iterable[Pod], nodes: Nodes, attachments: Sequence[Attachment]) -> Replacements:
    """Pods of lost nodes that may be made anew elsewhere. A node that only does not answer is not lost: its pods may
    run, and two of one name would both think that they are the one."""
    found: list[Pod] = []
    waits: list[str] = []
    for pod in sorted(pods, key=lambda p: p.name):
        if pod.node is None or (pod.node in nodes.present and pod.node not in nodes.off):
            continue
        held = [a for claim in pod.claims if (a := reusable(claim, pod.node, attachments)) is not None]
        if held:
            waits.append(f"{pod.name} waits: the volume of {held[0].claim} is still attached to the lost {pod.node}")
        else:
            found.append(pod)
    return Replacements(tuple(found), tuple(waits))
