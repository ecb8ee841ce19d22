"""Databases as `yunhe status` and `yunhe database` show them, and what this host can see of them by itself."""

from __future__ import annotations

import json
from typing import Any

from controlplane.cli import output
from controlplane.cli.watch import answers
from controlplane.server.files import StateDir
from controlplane.server.overview import postgres_address

DOWN = "its process does not run, or its port does not answer"


def database_table(databases: list[dict[str, Any]]) -> str:
    """A line a database: who owns it, and where it is reached."""
    rows = []
    for one in databases:
        ready = sum(node["state"] == "Ready" for node in one["nodes"])
        edge = one["role"] == "edge"
        whom = f"to {one['uploadTo']}" if one["uploadTo"] else one["owner"] or "-"
        where = next(iter(one["http"]), "-")
        # Each edge has its own address, and none speaks for the others.
        address = "-" if edge and len(one["nodes"]) > 1 else where
        mysql = next(iter(one["mysql"]), "-")
        postgres = next(iter(one.get("postgres", ())), "-")
        count = f"{ready}/{len(one['nodes'])}"
        rows.append((one["name"], one["role"], count, whom, address, mysql, postgres, one["state"]))
    return output.table(("DATABASE", "ROLE", "NODES", "OWNER", "HTTP", "MYSQL", "POSTGRES", "STATE"), rows)


def node_table(database: dict[str, Any]) -> str:
    """A line a process."""
    rows = []
    edge = database["role"] == "edge"
    for node in database["nodes"]:
        if edge:
            last = "another key" if node["name"] in database["strangers"] else "yes" if node.get("trusted") else "-"
        else:
            last = "owner" if node["name"] == database["owner"] else "-"
        http = f"{scheme(database)}://{node['host']}:{node['httpPort']}" if node["httpPort"] else "-"
        rows.append((node["name"], node["zone"] or "-", str(node["pid"] or "-"), http, last, node["state"]))
    return output.table(("NODE", "ZONE", "PID", "HTTP", "TRUSTED" if edge else "ROLE", "STATE"), rows)


def scheme(database: dict[str, Any]) -> str:
    """What its HTTP ports speak."""
    return "https" if database.get("tls") else "http"


def correct_database(state_dir: StateDir, database: dict[str, Any]) -> None:
    """Replace what the control plane had recorded by what is so now, as far as this host can see it."""
    from controlplane.server.host import LocalHost

    host = LocalHost(state_dir)
    journals = _journals(state_dir, database)
    for node in database["nodes"]:
        known = journals.get(node["name"], {})
        pid, port = known.get("pid", node["pid"]), known.get("port", node["httpPort"])
        if pid is not None and host.alive(pid) and answers(node["host"] or "127.0.0.1", port):
            node.update(pid=pid, httpPort=port, state="Ready", sentence="its process runs and its port answers")
        else:
            node.update(pid=None, state="Down", sentence=DOWN)
    up = [node for node in database["nodes"] if node["state"] == "Ready"]
    count = f"{len(up)} of {len(database['nodes'])} processes serve, seen from this host"
    state = "Down" if not up else "Ready" if len(up) == len(database["nodes"]) else "Degraded"
    database.update(state=state, sentence=count)
    if database["owner"] not in {node["name"] for node in up}:
        database["owner"] = None  # another may own it by now: nobody here knows
    database["http"] = [f"{scheme(database)}://{node['host'] or '127.0.0.1'}:{node['httpPort']}" for node in up]
    database["mysql"] = [f"{n['host'] or '127.0.0.1'}:{n['mysqlPort']}" for n in up if n["mysqlPort"]]
    tls = bool(database.get("tls"))
    database["postgres"] = [postgres_address(n, tls=tls) for n in up if n.get("postgresPort")]


def _journals(state_dir: StateDir, database: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the agents wrote down about the processes, by node: newer than the control plane's record."""
    known: dict[str, dict[str, Any]] = {}
    for zone in {node["zone"] for node in database["nodes"] if node["zone"]}:
        try:
            journal = json.loads((state_dir.agent(database["cloud"], zone) / "journal.json").read_bytes())
            known.update(journal["databases"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no agent has run there yet, or it writes another form: the control plane's record stands
    return known
