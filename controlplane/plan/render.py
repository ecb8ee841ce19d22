"""A plan as text and as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from controlplane.plan.databases import resolve_databases, shown_via
from controlplane.plan.explain import summary
from controlplane.plan.model import Action, Verb
from controlplane.plan.plan import HASH_CHARS_SHOWN, Plan
from controlplane.plan.resolve import ResolvedCluster

_SIGN = {Verb.CREATE: "+", Verb.UPDATE: "~", Verb.MOVE: ">", Verb.DELETE: "-"}
_NOUN = {"BrokerCluster": "cluster", "DatabaseNode": "node"}


def render_plan(plan: Plan) -> str:
    """The text, without a final newline: where each cluster's WAL is, the actions, the sum, and how to apply it."""
    if plan.empty:
        return f"nothing to do: revision {plan.base_revision} is what the specs say"
    touched = {action.name.partition("/")[0] for action in plan.actions}
    clusters = [cluster for name, cluster in plan.resolved.items() if name in touched]
    lines = [_cell(cluster, clusters) for cluster in clusters]
    width = max(len(_subject(action)) for action in plan.actions)
    lines += [f"  {_SIGN[a.verb]} {_subject(a):<{width}}   {a.what}{_blast(a)}" for a in plan.actions]
    lines.append(f"{_sum(plan)}. Apply with `yunhe apply --plan {plan.hash[:HASH_CHARS_SHOWN]}`")
    return "\n".join(lines)


def plan_plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready data; a cost that is not known is null."""
    return {
        "plan": plan.hash,
        "baseRevision": plan.base_revision,
        "empty": plan.empty,
        "actions": [_action_plain(action) for action in plan.actions],
        "monthlyUsd": _monthly(plan),
        "clusters": [
            {
                "name": name,
                "cloud": cluster.cloud,
                "wal": {
                    "mode": cluster.choice.mode.value,
                    "row": cluster.choice.row,
                    "reasons": list(cluster.choice.reasons),
                },
                "brokers": [{"id": b.node_id, "name": b.name, "zone": b.zone} for b in cluster.brokers],
            }
            for name, cluster in plan.resolved.items()
        ],
        "databases": [
            {
                "name": name,
                "cloud": database.cloud,
                "role": database.role.value,
                "uploadTo": database.upload.to if database.upload is not None else None,
                "uploadVia": shown_via(database.upload),
                "nodes": [{"name": node.node, "zone": node.zone} for node in database.nodes],
            }
            for name, database in resolve_databases(plan.desired).items()
        ],
    }


def _action_plain(action: Action) -> dict[str, Any]:
    return {
        "verb": action.verb.value,
        "kind": action.kind,
        "name": action.name,
        "what": action.what,
        "changes": [asdict(change) for change in action.changes],
        "downtimeMs": action.downtime_ms,
        "dataAtRisk": action.data_at_risk,
        "apiCalls": action.api_calls,
        "monthlyUsd": action.monthly_usd,
    }


def _cell(cluster: ResolvedCluster, clusters: list[ResolvedCluster]) -> str:
    names = max(len(other.cloud) for other in clusters)
    modes = max(len(other.choice.mode.value) for other in clusters)
    mode = cluster.choice.mode.value
    engine = _engine_notes(cluster)
    return f"cloud {cluster.cloud:<{names}}   wal {mode:<{modes}}   {summary(cluster.choice)}{engine}"


def _engine_notes(cluster: ResolvedCluster) -> str:
    """What the engine's edition took away from the choice, on a line of its own; "" where nothing."""
    return "".join(f"\n  note: {cluster.name}: {note}" for note in cluster.choice.edition_notes)


def _subject(action: Action) -> str:
    return f"{_NOUN.get(action.kind, action.kind.lower())} {action.name}"


def _blast(action: Action) -> str:
    parts = []
    if action.downtime_ms:
        what = "writes wait" if action.kind in ("Database", "DatabaseNode") else "each partition away"
        parts.append(f"{what} up to {action.downtime_ms / 1000:g} s")
    if action.data_at_risk:
        parts.append(f"at risk: {action.data_at_risk}")
    return f"   ({'; '.join(parts)})" if parts else ""


def _sum(plan: Plan) -> str:
    counts = Counter(action.verb for action in plan.actions)
    total = len(plan.actions)
    verbs = ", ".join(f"{counts[verb]} {verb.value}" for verb in Verb if counts[verb])
    calls = sum(action.api_calls for action in plan.actions)
    return f"{total} {'change' if total == 1 else 'changes'}: {verbs}; {calls} calls of cloud APIs; {_cost(plan)}"


def _cost(plan: Plan) -> str:
    known = sum(action.monthly_usd for action in plan.actions if action.monthly_usd is not None)
    unknown = sum(action.monthly_usd is None for action in plan.actions)
    text = f"{known:+,.0f} USD a month on real clouds before traffic" if known else "no change of standing cost known"
    return f"{text}, {unknown} of unknown price" if unknown else text


def _monthly(plan: Plan) -> float | None:
    if any(action.monthly_usd is None for action in plan.actions):
        return None
    return sum(action.monthly_usd or 0.0 for action in plan.actions)
