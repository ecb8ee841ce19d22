"""How files differ from what is applied, field by field. Pure."""

from __future__ import annotations

from typing import Any

from controlplane.api.specs import Specs
from controlplane.plan.changes import changes_between


def differences(given: Specs, present: Specs) -> dict[str, Any]:
    """What `given` would change, object by object and field by field, as text and as data. Objects that it does not
    name are no difference.
    """
    old_by_key = {(r.kind, r.metadata.name): r for r in present}
    changes: list[dict[str, Any]] = []
    lines: list[str] = []
    for resource in given:
        kind, name = resource.kind, resource.metadata.name
        old = old_by_key.get((kind, name))
        if old is None:
            changes.append({"kind": kind, "name": name, "change": "create", "fields": []})
            lines.append(f"+ {kind} {name}")
            continue
        if fields := changes_between(old, resource):
            plain = [{"field": c.field, "old": c.old, "new": c.new} for c in fields]
            changes.append({"kind": kind, "name": name, "change": "update", "fields": plain})
            lines.append(f"~ {kind} {name}")
            lines += [f"    {c.field}: {c.old!r} -> {c.new!r}" for c in fields]
    return {"changes": changes, "text": "\n".join(lines) or "no difference"}
