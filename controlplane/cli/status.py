"""`yunhe status`: the control plane's view, or, while it is down, what can be seen on this host."""

from __future__ import annotations

import json
from typing import Any

from controlplane.cli import output
from controlplane.cli.client import Client
from controlplane.cli.database_text import correct_database, database_table, node_table
from controlplane.cli.output import Format
from controlplane.cli.watch import answers
from controlplane.server.files import StateDir
from providers.base.errors import NotFound, Unavailable


def status(state_dir: StateDir, *, cloud: str | None, form: Format) -> None:
    """Show it.

    Raises:
        NotFound: no such cloud.
    """
    shown = read_status(state_dir)
    if cloud is not None:
        chosen = [one for one in shown["clouds"] if one["name"] == cloud]
        if not chosen:
            known = ", ".join(one["name"] for one in shown["clouds"]) or "none is applied"
            raise NotFound(f"no Cloud is named {cloud}", hint=f"known: {known}")
        mine = [one for one in shown["databases"] if one["cloud"] == cloud]
        shown = {**shown, "clouds": chosen, "databases": mine}
    output.data(shown, form, render(shown, detail=cloud is not None))


def read_status(state_dir: StateDir) -> dict[str, Any]:
    """The status document, wherever it can be had from."""
    try:
        return Client(state_dir).status()
    except Unavailable as error:
        return local_status(state_dir, error.message)


def local_status(state_dir: StateDir, why: str) -> dict[str, Any]:
    """What is seen without the control plane: its last record, corrected by what runs and which ports answer."""
    from controlplane.cli.plans import recorded_here
    from controlplane.plan.resolve import resolve
    from controlplane.server.overview import LOCAL, overview, summary_state
    from controlplane.store.sqlite import SqliteStore
    from providers.base.clock import SystemClock

    recorded = recorded_here(state_dir)
    statuses = {}
    if state_dir.store.exists():
        store = SqliteStore(state_dir.store, clock=SystemClock(), read_only=True)
        statuses = store.statuses()
        store.close()
    specs = recorded.as_specs()
    shown = overview(specs, resolve(specs, settled=recorded.settled()), statuses, control_plane_pid=0)
    for cloud in shown["clouds"]:
        _correct(state_dir, cloud)
    for database in shown["databases"]:
        correct_database(state_dir, database)
    for cloud in shown["clouds"]:
        if not cloud["brokers"]:
            _by_databases(cloud, [one for one in shown["databases"] if one["cloud"] == cloud["name"]])
    states = [one["state"] for one in (*shown["clouds"], *shown["databases"])]
    state = summary_state(states)
    # All cells serve, and yet not all is as it should be: nobody could change anything now.
    shown["state"] = "Degraded" if state == "Ready" else state
    shown["controlPlane"] = [{"cloud": LOCAL, "pid": None, "state": "Down", "sentence": why}]
    return shown


def _correct(state_dir: StateDir, cloud: dict[str, Any]) -> None:
    """Replace what the control plane had recorded by what is so now."""
    from controlplane.server.host import LocalHost

    host = LocalHost(state_dir)
    for agent in cloud["agents"]:
        pid = host.agent_pid(cloud["name"], agent["zone"])
        agent.update(pid=pid, state="Down" if pid is None else "Running")
    if not cloud["brokers"]:
        return
    journals = _journals(state_dir, cloud)
    for broker in cloud["brokers"]:
        known = journals.get(broker["name"], {})
        pid, port = known.get("pid", broker["pid"]), known.get("port", broker.get("kafkaPort"))
        serves = pid is not None and host.alive(pid) and answers(broker.get("host") or "127.0.0.1", port)
        if serves:
            broker.update(pid=pid, kafkaPort=port, state="Ready", sentence="its process runs and its port answers")
        elif broker.get("spare") and not (pid is not None and host.alive(pid)):
            broker.update(pid=None, state="Spare", sentence="does not run, and need not")
        else:
            broker.update(pid=None, state="Down", sentence="its process does not run, or its port does not answer")
    up = [broker for broker in cloud["brokers"] if broker["state"] == "Ready"]
    if not up:
        cloud.update(state="Down", sentence="none of its brokers runs")
    elif len(up) < (shall := _shall_run(cloud)):
        cloud.update(state="Degraded", sentence=f"{len(up)} of {shall} brokers serve")
    else:
        cloud.update(state="Ready", sentence=f"{len(up)} brokers serve, seen from this host")
    addresses = [f"{broker.get('host') or '127.0.0.1'}:{broker['kafkaPort']}" for broker in up]
    cloud.update(bootstrap=next(iter(addresses), None), bootstrapServers=",".join(addresses) or None)


def _by_databases(cloud: dict[str, Any], databases: list[dict[str, Any]]) -> None:
    """What can be said of a cloud without brokers."""
    from controlplane.server.overview import summary_state

    if databases:
        state = summary_state(one["state"] for one in databases)
        cloud.update(state=state, sentence=f"its {len(databases)} databases, seen from this host: {state}")


def _journals(state_dir: StateDir, cloud: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the agents wrote down about their brokers' processes, by broker: newer than the control plane's record."""
    known: dict[str, dict[str, Any]] = {}
    for zone in {broker["zone"] for broker in cloud["brokers"]}:
        try:
            journal = json.loads((state_dir.agent(cloud["name"], zone) / "journal.json").read_bytes())
            known.update(journal["processes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no agent has run there yet, or it writes another form: the control plane's record stands
    return known


def render(shown: dict[str, Any], *, detail: bool = False) -> str:
    """The table: cloud, WAL mode, brokers, bootstrap address, state; what is not Ready says why below it."""
    rows = []
    databases = shown.get("databases", [])
    for cloud in shown["clouds"]:
        ready = sum(broker["state"] == "Ready" for broker in cloud["brokers"])
        mode = cloud["wal"]["mode"] if cloud["wal"] else "-"
        brokers = f"{ready}/{_shall_run(cloud)}"
        rows.append((cloud["name"], mode, brokers, cloud["bootstrap"] or "-", cloud["state"]))
    lines = [output.table(("CLOUD", "WAL", "BROKERS", "BOOTSTRAP", "STATE"), rows)] if rows else ["nothing is applied"]
    lines += ["", database_table(databases)] if databases else []
    if detail:
        for cloud in shown["clouds"]:
            lines += ["", cloud["sentence"], *(["", _brokers(cloud)] if cloud["brokers"] else []), "", _agents(cloud)]
        for database in databases:
            lines += ["", f"{database['name']}: {database['sentence']}", "", node_table(database)]
    else:
        every = [*shown["clouds"], *shown["topics"], *databases]
        lacking = [one for one in every if one["state"] not in ("Ready", "Stopped") or _has_slow(one)]
        lines += ["", *(f"{one['name']}: {one['sentence']}" for one in lacking)] if lacking else []
    down = [one for one in shown["controlPlane"] if one["state"] == "Down"]
    if down and rows:
        lines += ["", "the control plane is down; the cells serve and fail over without it"]
    return "\n".join(lines)


def _shall_run(cloud: dict[str, Any]) -> int:
    """How many brokers: all but the spare ones that are not needed."""
    return sum(broker["state"] != "Spare" for broker in cloud["brokers"])


def _has_slow(one: dict[str, Any]) -> bool:
    """Whether it is a cloud of whose brokers one is slow: its sentence says so, though all is served."""
    return any(broker["state"] == "Slow" for broker in one.get("brokers", ()))


def _brokers(cloud: dict[str, Any]) -> str:
    rows = [
        (
            b["name"],
            b["zone"],
            str(b["pid"] or "-"),
            str(b.get("kafkaPort") or "-"),
            str(b.get("epoch") or "-"),
            b["state"],
        )
        for b in cloud["brokers"]
    ]
    return output.table(("BROKER", "ZONE", "PID", "PORT", "EPOCH", "STATE"), rows)


def _agents(cloud: dict[str, Any]) -> str:
    rows = [(a["zone"], str(a["pid"] or "-"), a["state"], a.get("sentence", "")) for a in cloud["agents"]]
    return output.table(("AGENT", "PID", "STATE", "WHY"), rows)
