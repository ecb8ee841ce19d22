"""`yunhe database list|show|trust`."""

from __future__ import annotations

from typing import Any

from controlplane.api.complaints import did_you_mean
from controlplane.cli import output
from controlplane.cli.client import Client
from controlplane.cli.database_text import database_table, node_table
from controlplane.cli.output import Format
from controlplane.cli.status import read_status
from controlplane.server.files import StateDir
from providers.base.errors import NotFound


def list_databases(state_dir: StateDir, *, form: Format) -> None:
    """Show all databases."""
    databases = read_status(state_dir)["databases"]
    output.data(databases, form, database_table(databases) if databases else "no database is applied")


def show(state_dir: StateDir, name: str, *, form: Format) -> None:
    """Show one database with its processes, or an edge's own.

    Raises:
        NotFound: no such database.
    """
    databases = {one["name"]: one for one in read_status(state_dir)["databases"]}
    if name not in databases:
        known = f"known: {', '.join(databases)}" if databases else "none is applied"
        raise NotFound(f"no Database is named {name}", hint=did_you_mean(name, databases, known))
    one = databases[name]
    text = [database_table([one]), "", node_table(one), "", one["sentence"]]
    if where := next(iter(one["http"]), None):
        text += ["", _example(where)]
    output.data(one, form, "\n".join(text))


def trust(state_dir: StateDir, edge: str, *, form: Format) -> None:
    """Take over the key that an edge shows now.

    Raises:
        NotFound: no such edge. Conflict: it shows no other key. Unavailable: the control plane is down.
    """
    done = Client(state_dir).trust(edge)
    said = f"{edge} is trusted by {done['uploadTo']} with key {done['publicKey'][:16]}…"
    output.data(done, form, said)


def _example(url: str) -> Any:
    return f"try: curl -s {url}/v1/sql --data-urlencode 'sql=SHOW TABLES'"
