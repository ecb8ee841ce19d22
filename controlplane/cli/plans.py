"""`yunhe plan`, `apply`, `diff`, `get`, `schema`: shells over the control plane's API. `plan` and `diff` also work from
the store's file while the control plane is down.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import output
from controlplane.cli.client import Client
from controlplane.cli.output import Format
from controlplane.cli.watch import follow
from controlplane.server.files import StateDir
from providers.base.errors import Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from controlplane.api.specs import Specs
    from controlplane.plan.model import Recorded


def read_texts(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """(name, text) of each file; - is standard input.

    Raises:
        Invalid: a file cannot be read.
    """
    from controlplane.api.source import read_text

    return [("<stdin>", sys.stdin.read()) if str(path) == "-" else (str(path), read_text(path)) for path in paths]


def plan(state_dir: StateDir, spec: Sequence[Path], *, prune: bool, form: Format) -> bool:
    """Show the plan; whether it has changes."""
    shown = make_plan(state_dir, read_texts(spec), prune=prune)
    output.data(shown["plan"], form, shown["text"])
    return not shown["empty"]


def make_plan(state_dir: StateDir, texts: Sequence[tuple[str, str]], *, prune: bool) -> dict[str, Any]:
    """Ask the control plane; while it is down, plan here over what its store holds. Such a plan has the same hash, and
    is kept when it is made again.
    """
    try:
        return Client(state_dir).plan(texts, prune=prune)
    except Unavailable:
        from controlplane.api.load import load_texts
        from controlplane.plan.plan import make_plan as plan_over
        from controlplane.plan.render import plan_plain, render_plan

        if state_dir.exists():
            output.progress("the control plane is down: planning over what its store holds")
        recorded = recorded_here(state_dir)
        made = plan_over(load_texts(texts, known=None if prune else recorded.as_specs()), recorded, prune=prune)
        return {"hash": made.hash, "empty": made.empty, "text": render_plan(made), "plan": plan_plain(made)}


def desired_after(state_dir: StateDir, texts: Sequence[tuple[str, str]]) -> Specs:
    """All objects that are desired once these files are applied: checked as the control plane will check them, and
    starting nothing.

    Raises:
        Invalid: with the place of each error.
    """
    from controlplane.api.load import load_texts
    from controlplane.plan.plan import make_plan as plan_over

    recorded = recorded_here(state_dir)
    return plan_over(load_texts(texts, known=recorded.as_specs()), recorded).desired


def recorded_here(state_dir: StateDir) -> Recorded:
    """What the store of a state directory holds, read without the control plane; nothing when there is none."""
    from controlplane.plan.model import Recorded
    from controlplane.store.recorded import recorded_of
    from controlplane.store.sqlite import SqliteStore
    from providers.base.clock import SystemClock

    state_dir.check()
    if not state_dir.store.exists():
        return Recorded()
    store = SqliteStore(state_dir.store, clock=SystemClock(), read_only=True)
    try:
        return recorded_of(store.recorded())
    finally:
        store.close()


def apply(
    state_dir: StateDir, spec: Sequence[Path], *, hash_: str | None, prune: bool, timeout_s: float, form: Format
) -> None:
    """Apply a spec, or exactly one plan, and follow it to its end.

    Raises:
        Conflict: the plan is stale.
        Unavailable: it did not come about in time; it goes on.
    """
    client = Client(state_dir)
    if (hash_ is None) == (not spec):
        raise Invalid("either a spec or --plan HASH is needed, and not both", hint="yunhe apply --help")
    if hash_ is None:
        shown = client.plan(read_texts(spec), prune=prune)
        output.progress(shown["text"])
        if shown["empty"]:
            output.data({"outcome": "Done", "steps": []}, form, "nothing to do")
            return
        hash_ = str(shown["hash"])
    operation = follow(client, client.apply(hash_.lower()), timeout_s=timeout_s)
    output.data(operation, form, f"applied plan {operation['plan'][:8]}: {len(operation['steps'])} steps")


def diff(state_dir: StateDir, spec: Sequence[Path], *, form: Format) -> None:
    """Show the differences between a spec and what is applied."""
    texts = read_texts(spec)
    try:
        shown = Client(state_dir).diff(texts)
    except Unavailable:
        from controlplane.api.load import load_texts
        from controlplane.server.differences import differences

        present = recorded_here(state_dir).as_specs()
        shown = differences(load_texts(texts, known=present), present)
    output.data(shown["changes"], form, shown["text"])


def get(state_dir: StateDir, kind: str, name: str | None, *, form: Format) -> None:
    """Show objects with their status."""
    items = Client(state_dir).objects(kind, name)
    rows = [(i["metadata"]["name"], str(i["status"].get("state")), str(i["status"].get("sentence", ""))) for i in items]
    text = output.table(("NAME", "STATE", "WHY"), rows) if rows else f"no {kind}"
    output.data(items[0] if name is not None else items, form, text)


def schema(kind: str | None) -> None:
    """Print JSON Schema."""
    from controlplane.api.kinds import KINDS, type_of_kind
    from controlplane.api.load import schema as whole

    if kind is None:
        output.data(whole(), Format.JSON, "")
        return
    chosen = next((k for k in KINDS if k.lower() == kind.lower()), None)
    if chosen is None:
        raise NotFound(f"{kind!r} is not a kind", hint=f"one of: {', '.join(KINDS)}")
    output.data(type_of_kind[chosen].model_json_schema(by_alias=True), Format.JSON, "")
