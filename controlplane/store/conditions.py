"""What a custom resource's status says: the control plane's status document as Kubernetes' users expect it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.store.base import Plain

MESSAGE_MAX = 32_768
"""Longest message of a condition that the API server takes."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What the operator has to say of a resource beside its status document. `reason` is a word, as conditions need."""

    reason: str
    sentence: str
    hint: str | None = None
    wrong: bool = True
    """False: it only waits, for an approval or for a pause to end."""


def rendered(
    plain: Plain,
    notice: Notice | None,
    generation: int | None,
    before: Sequence[Mapping[str, Any]],
    now_ms: int,
) -> dict[str, Any]:
    """The `.status` of a resource.

    `plain`: the status document, kept whole under `detail`. `generation`: of the spec that was accepted last. `before`:
    the conditions as they are, whose times stay where nothing turned.
    """
    state = str(plain.get("state", "Pending"))
    sentence = str(plain.get("sentence", "")) or "not looked at yet"
    failed = state in ("Failed", "Unavailable")
    ready = _condition("Ready", state == "Ready", state, sentence)
    if notice is not None and notice.wrong:
        degraded = _condition("Degraded", True, notice.reason, _told(notice))
    else:
        degraded = _condition("Degraded", failed, state if failed else "AsExpected", sentence if failed else "")
    if notice is not None and not notice.wrong:
        progressing = _condition("Progressing", False, notice.reason, _told(notice))
    else:
        moving = state in ("Progressing", "Pending", "Degraded")
        progressing = _condition("Progressing", moving, state, sentence)
    times = {str(c.get("type")): c for c in before}
    conditions = []
    for one in (ready, progressing, degraded):
        earlier = times.get(one["type"])
        same = earlier is not None and earlier.get("status") == one["status"]
        since = earlier["lastTransitionTime"] if same and earlier is not None else rfc3339(now_ms)
        conditions.append(
            {**one, "lastTransitionTime": since, **({"observedGeneration": generation} if generation else {})}
        )
    brokers = plain.get("brokers")
    return {
        "state": state,
        "sentence": sentence,
        "hint": notice.hint if notice is not None else plain.get("hint"),
        "observedGeneration": generation,
        "conditions": conditions,
        "replicas": sum(b.get("state") in ("Ready", "Slow") for b in brokers) if brokers is not None else None,
        "detail": dict(plain) or None,
    }


def _told(notice: Notice) -> str:
    return f"{notice.sentence} ({notice.hint})" if notice.hint else notice.sentence


def _condition(type_: str, true: bool, reason: str, message: str) -> dict[str, Any]:
    return {"type": type_, "status": "True" if true else "False", "reason": reason, "message": message[:MESSAGE_MAX]}


def rfc3339(wall_ms: int) -> str:
    """A time as Kubernetes writes it, to the second."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
