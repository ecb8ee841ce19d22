"""What a Pulumi resource does with the control plane: plan its objects, apply exactly that plan, read them back, remove
them. It starts what has to run on this machine as `yunhe up` does. Nothing of Pulumi is imported here.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.api.kinds import API_VERSION, KINDS
from controlplane.api.load import load_texts
from controlplane.api.specs import Key, Specs, to_plain
from controlplane.cli.client import Client
from controlplane.cli.lab import Launch, cells_of, stop_everything
from controlplane.cli.plans import recorded_here
from controlplane.plan.model import Recorded
from controlplane.plan.plan import make_plan
from controlplane.plan.render import plan_plain, render_plan
from controlplane.server.files import StateDir
from providers.base.errors import Conflict, Invalid, Unavailable
from providers.lab.processes import stop
from stacks.waiting import Deadline, Say, follow, locked, wait_for

FILES_MAX = 60
"""Files in one request: the control plane takes a few more."""
RETRIES_MAX = 5
"""Times that a plan is made again because somebody applied in between."""
TIMEOUT_S = 120.0

_at_work = threading.Lock()
"""Resources of one stack apply one after the other: an operation ends the one before it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A resource's inputs: the objects that it applies at once."""

    state_dir: StateDir
    objects: tuple[Mapping[str, Any], ...]
    """As in YAML: apiVersion, kind, metadata, spec."""
    requires: tuple[Mapping[str, Any], ...] = ()
    """Objects of other resources that these refer to. They are checked and planned with them, for in a preview of a new
    stack they are not there yet."""
    accept_data_loss: bool = False
    timeout_s: float = TIMEOUT_S

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(_key(one) for one in self.objects)


@dataclass(frozen=True, slots=True)
class Shown:
    """A plan as it is shown before it is applied."""

    hash: str
    text: str
    actions: tuple[Mapping[str, Any], ...]

    @property
    def empty(self) -> bool:
        return not self.actions

    @property
    def digest(self) -> str:
        """Of the actions alone: equal when the same is done on another revision."""
        return hashlib.sha256(json.dumps(self.actions, sort_keys=True).encode()).hexdigest()

    @property
    def at_risk(self) -> list[str]:
        """What would be lost for ever."""
        return [f"{a['kind']} {a['name']}: {a['dataAtRisk']}" for a in self.actions if a["dataAtRisk"]]


def plan(bundle: Bundle, removed: Iterable[Key] = (), *, alone: bool = False) -> Shown:
    """What applying the bundle would do. Of the same objects on the same store, the plan that `yunhe plan` makes.

    `removed`: objects that go. `alone`: what is required is there by now, and stays as it is.

    Raises:
        Invalid: with the place of each error.
        Conflict: others apply all the time.
    """
    gone = set(removed) - set(bundle.keys)
    for _ in range(RETRIES_MAX):
        recorded = recorded_here(bundle.state_dir)
        objects = [*bundle.objects]
        if not alone:
            objects += [one for one in bundle.requires if _key(one) not in bundle.keys]
        gone &= set(recorded.specs)
        if gone:
            mine = {_key(one) for one in objects}
            objects += [plain for key, plain in recorded.specs.items() if key not in gone and key not in mine]
        shown = _shown(bundle.state_dir, recorded, _texts(objects), prune=bool(gone))
        if shown["plan"]["baseRevision"] == recorded.revision:
            return Shown(str(shown["hash"]), str(shown["text"]), tuple(shown["plan"]["actions"]))
    raise Conflict("others apply all the time: the plan was stale each time it was made", hint="try again")


def apply(
    bundle: Bundle,
    removed: Iterable[Key] = (),
    *,
    approved: tuple[str, str] | None,
    say: Say,
    cancelled: Callable[[], bool],
) -> None:
    """Start what has to run, apply exactly the approved plan, and wait until the bundle's objects are Ready.

    `approved`: hash and digest of the plan that was shown; None where none could be shown.

    Raises:
        Conflict: the plan has changed since it was shown.
        Invalid: it would lose data, and that was not accepted.
        Unavailable: not in time, or cancelled. What was begun goes on, and the next call goes on with it.
    """
    deadline = Deadline(bundle.timeout_s, cancelled)
    removed = tuple(removed)
    with _at_work, locked(bundle.state_dir, deadline):
        # All that can be refused is refused before anything is started.
        _approve(plan(bundle, removed, alone=True), approved, bundle)
        recorded = recorded_here(bundle.state_dir).as_specs()
        launch(bundle.state_dir, _load(bundle.objects, recorded).merged_over(recorded), deadline)
        shown = plan(bundle, removed, alone=True)
        _approve(shown, approved, bundle)
        client = Client(bundle.state_dir)
        if not shown.empty:
            follow(client, client.apply(shown.hash), deadline, say)
        wait_for(client, bundle.keys, deadline, say)


def remove(bundle: Bundle, *, say: Say, cancelled: Callable[[], bool]) -> None:
    """Remove the bundle's objects, and stop what ran for them; with the last object everything stops, and a lab's data
    go too.

    Raises:
        Invalid: it would lose data, and that was not accepted.
        Unavailable: not in time, or cancelled; the next call goes on.
    """
    deadline = Deadline(bundle.timeout_s, cancelled)
    nothing = Bundle(bundle.state_dir, (), (), bundle.accept_data_loss, bundle.timeout_s)
    if not bundle.state_dir.exists():
        return
    with _at_work, locked(bundle.state_dir, deadline):
        shown = plan(nothing, bundle.keys)
        _approve(shown, None, bundle)
        present = recorded_here(bundle.state_dir).as_specs()
        if not shown.empty:
            launch(bundle.state_dir, present, deadline)
            client = Client(bundle.state_dir)
            follow(client, client.apply(plan(nothing, bundle.keys).hash), deadline, say)
        left = recorded_here(bundle.state_dir)
        if left.specs:
            _stop_clouds(bundle.state_dir, [name for kind, name in bundle.keys if kind == "Cloud"])
        else:
            _end(bundle.state_dir, purge=_all_lab(bundle, present))


def read(state_dir: StateDir, keys: Sequence[Key]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Those of the objects that are applied, and each one's state; Unknown while the control plane is down."""
    recorded = recorded_here(state_dir)
    found = [dict(recorded.specs[key]) for key in keys if key in recorded.specs]
    states: dict[str, str] = {}
    for kind, name in (key for key in keys if key in recorded.specs):
        try:
            state = str(Client(state_dir).objects(kind, name)[0]["status"].get("state"))
        except Unavailable:
            state = "Unknown"
        states[f"{kind}/{name}"] = state
    return found, states


def endpoints(state_dir: StateDir) -> dict[str, str]:
    """Bootstrap servers by cloud; empty while the control plane is down."""
    try:
        status = Client(state_dir).status()
    except Unavailable:
        return {}
    return {str(c["name"]): str(c["bootstrapServers"]) for c in status["clouds"] if c.get("bootstrapServers")}


def same(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], known: Specs) -> bool:
    """Whether two lists of objects say the same, defaults written out."""
    try:
        return _load(one, known).plain() == _load(other, known).plain()
    except Invalid:
        return list(one) == list(other)


def runs(bundle: Bundle) -> bool:
    """Whether all processes that the bundle's clouds need are there."""
    recorded = recorded_here(bundle.state_dir).as_specs()
    if not bundle.state_dir.exists():
        return False
    table = Launch(bundle.state_dir).table
    clouds = {name for kind, name in bundle.keys if kind == "Cloud"}
    clouds |= {
        recorded.clusters[name].spec.cloud for name in recorded.clusters if ("BrokerCluster", name) in bundle.keys
    }
    wanted = ["controlplane"]
    for cell in cells_of(recorded):
        if cell.name in clouds:
            wanted += [f"{cell.name}.agent.{zone}" for zone in cell.zones]
            wanted += [f"{cell.name}.objects"] if cell.lab is not None else []
    return all(table.alive(name) is not None for name in wanted)


def launch(state_dir: StateDir, specs: Specs, deadline: Deadline) -> None:
    """Start what does not run yet for these objects."""
    state_dir.create()
    Launch(state_dir).all(cells_of(specs), timeout_s=deadline.left_s())


def _approve(shown: Shown, approved: tuple[str, str] | None, bundle: Bundle) -> None:
    if approved is not None and not shown.empty and approved[0] != shown.hash and approved[1] != shown.digest:
        raise Conflict(
            f"the plan has changed since it was shown: {approved[0][:8] or 'nothing'} then, {shown.hash[:8]} now",
            hint="run preview again and look at it",
        )
    if shown.at_risk and not bundle.accept_data_loss:
        raise refused_loss(shown)


def refused_loss(shown: Shown) -> Invalid:
    """The refusal of a plan that loses data."""
    return Invalid(
        f"this would lose data for ever: {'; '.join(shown.at_risk)}",
        hint="to accept that, set acceptDataLoss (accept_data_loss=True), run `up`, and then do this",
    )


def _shown(state_dir: StateDir, recorded: Recorded, texts: list[tuple[str, str]], *, prune: bool) -> dict[str, Any]:
    try:
        return Client(state_dir).plan(texts, prune=prune)
    except Unavailable:
        # Down, or never started: planned here, to the same hash.
        wanted = load_texts(texts, known=None if prune else recorded.as_specs()) if texts else Specs()
        made = make_plan(wanted, recorded, prune=prune)
        return {"hash": made.hash, "text": render_plan(made), "plan": plan_plain(made)}


def _load(objects: Sequence[Mapping[str, Any]], known: Specs) -> Specs:
    return load_texts(_texts(objects), known=known) if objects else Specs()


def _texts(objects: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Named after the object, so that an error says whose it is; with very many, several go into one."""
    if len(objects) <= FILES_MAX:
        return [("/".join(_key(one)), json.dumps(one)) for one in objects]
    return [("objects", "\n---\n".join(json.dumps(one) for one in objects))]


def _key(one: Mapping[str, Any]) -> Key:
    metadata = one.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return str(one.get("kind")), str(name)


def keys_of(id_: str) -> tuple[Key, ...]:
    """Keys of a resource id: `Kind/name`, several with commas between.

    Raises:
        Invalid: not so written, or no such kind.
    """
    keys = []
    for part in id_.split(","):
        kind, slash, name = part.strip().partition("/")
        if kind not in KINDS or not slash or not name:
            raise Invalid(f"{part.strip()!r} names no object", hint=f"write KIND/NAME; kinds: {', '.join(KINDS)}")
        keys.append((kind, name))
    return tuple(keys)


def objects_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The objects of YAML files, checked.

    Raises:
        Invalid: with the place of each error.
    """
    specs = load_texts([(str(path), path.read_text()) for path in paths])
    return [to_plain(specs_object) for specs_object in specs]


def _all_lab(bundle: Bundle, present: Specs) -> bool:
    mine = [one.get("spec", {}) for one in bundle.objects if one.get("kind") == "Cloud"]
    return all(cloud.spec.target == "lab" for cloud in present.clouds.values()) and all(
        spec.get("target", "lab") == "lab" for spec in mine
    )


def _end(state_dir: StateDir, *, purge: bool) -> None:
    ended, stuck = stop_everything(state_dir)
    if stuck:
        pids = ", ".join(str(process.pid) for process in stuck)
        raise Unavailable(f"stopped {ended} processes, and these outlived SIGKILL: {pids}", hint="try again")
    state_dir.ready.unlink(missing_ok=True)
    if purge:
        state_dir.purge()


def _stop_clouds(state_dir: StateDir, clouds: Sequence[str]) -> None:
    """Agents before the servers that they write to."""
    table = Launch(state_dir).table
    records = [r for r in table.records() if r.name.partition(".")[0] in clouds]
    for agents in (True, False):
        some = [r for r in records if (".agent." in r.name) is agents]
        stuck = stop(r.id for r in some)
        for record in some:
            if record.id not in stuck:
                table.forget(record.name)


def document(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """An object as in YAML."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
