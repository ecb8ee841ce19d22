"""What has to change about databases: the part of `diff.py` that knows their tables, nodes and edges. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from controlplane.api.databases import Database, Table
from controlplane.api.specs import Specs
from controlplane.plan.changes import changes_between, phrase
from controlplane.plan.databases import ResolvedDatabase, resolve_databases
from controlplane.plan.model import Action, Change, Verb
from controlplane.plan.resolve import facts_of
from dataplane.contract.database import DatabaseRole, DatabaseSpec, needs_restart
from providers.base.errors import Invalid

RESTART_MS = 2_000
"""How long a database, or an edge, takes no writes while its process is started anew: a design figure."""
NAMES_SHOWN_MAX = 4


def refuse_relocated_databases(desired: Specs, recorded: Specs) -> None:
    """Refuse what would leave a database's data behind.

    Raises:
        Invalid: it would change its role or its cloud.
    """
    for name, old in recorded.databases.items():
        new = desired.databases.get(name)
        if new is None:
            continue
        if new.spec.role != old.spec.role:
            where = desired.where("Database", name, "spec", "role")
            raise Invalid(f"{where}: {name} is an {old.spec.role} database", hint="create another one beside it")
        if new.spec.cloud != old.spec.cloud:
            where = desired.where("Database", name, "spec", "cloud")
            raise Invalid(
                f"{where}: {name} cannot move from {old.spec.cloud} to {new.spec.cloud}",
                hint="create another one there; its data stays where it is",
            )


def database_actions(desired: Specs, recorded: Specs) -> Iterator[Action]:
    """What is created and changed.

    Raises:
        Invalid: a change of a table that its rows do not survive.
    """
    now, before = resolve_databases(desired), resolve_databases(recorded)
    # Those that are uploaded to come first.
    for name in sorted(now, key=lambda n: (now[n].role is DatabaseRole.EDGE, n)):
        if name not in before:
            yield from _created(desired, now[name])
        else:
            yield from _changed(desired, recorded, before[name], now[name])
    for name, database in desired.databases.items():
        if database.spec.engine == "greptimedb":
            yield from _greptimedb(name, recorded.databases.get(name), database)


def _greptimedb(name: str, old: Database | None, new: Database) -> Iterator[Action]:
    """Its operator decides which pods start anew; what it costs is the Kubernetes cluster's nodes' price."""
    if old is None:
        nodes = new.spec.nodes or 1
        made = "a GreptimeDBStandalone" if nodes == 1 else f"a GreptimeDBCluster of {nodes} datanodes"
        yield Action(Verb.CREATE, "Database", name, f"{made} on Kubernetes", monthly_usd=None)
    elif changes := changes_between(old, new):
        if old.spec.engine != new.spec.engine:
            raise Invalid(f"Database {name} cannot change its engine", hint="create another one beside it")
        yield Action(Verb.UPDATE, "Database", name, f"{phrase(changes)}; its operator rolls it", changes)


def deleted_databases(desired: Specs, recorded: Specs) -> Iterator[Action]:
    """What is not desired any more: edges first."""
    before = resolve_databases(recorded)
    gone = [database for name, database in before.items() if name not in desired.databases]
    for database in sorted(gone, key=lambda d: (d.role is DatabaseRole.CLOUD, d.name)):
        if database.role is DatabaseRole.CLOUD:
            what = "its nodes stop; what it has in the bucket stays"
        else:
            what = f"its {_edges(len(database.nodes))} stop; what is not uploaded stays on their flash"
        usd = _node_usd(recorded, database)
        cost = None if usd is None else -usd * len(database.nodes)
        yield Action(Verb.DELETE, "Database", database.name, what, monthly_usd=cost)
    for name, old in recorded.databases.items():
        if old.spec.engine == "greptimedb" and name not in desired.databases:
            what = "its pods go; what it has in the bucket stays, and so do its volumes unless deleteVolumes is set"
            yield Action(Verb.DELETE, "Database", name, what, monthly_usd=None)


def _created(specs: Specs, database: ResolvedDatabase) -> Iterator[Action]:
    tables = f"{len(database.nodes[0].tables)} tables"
    if database.role is DatabaseRole.EDGE:
        to = f"uploads to {database.upload.to}" if database.upload is not None else "keeps its files"
        if database.via is not None:
            to += f" through topic {database.via.topic} of {database.via.cluster}"
        what = f"role edge, {_edges(len(database.nodes))} in {', '.join(database.zones)}, {to}, {tables}"
        yield Action(Verb.CREATE, "Database", database.name, what)
        return
    yield Action(Verb.CREATE, "Database", database.name, f"role cloud, wal {database.nodes[0].wal.value}, {tables}")
    for node in database.nodes:
        yield _new_node(specs, database, node)


def _new_node(specs: Specs, database: ResolvedDatabase, node: DatabaseSpec) -> Action:
    machine = facts_of(specs.clouds[database.cloud]).economics.node
    what = f"new, zone {node.zone}, {machine}"
    usd = _node_usd(specs, database)
    return Action(Verb.CREATE, "DatabaseNode", f"{database.name}/{node.node}", what, monthly_usd=usd)


def _changed(desired: Specs, recorded: Specs, before: ResolvedDatabase, now: ResolvedDatabase) -> Iterator[Action]:
    name = now.name
    old, new = recorded.databases[name], desired.databases[name]
    _refuse_other_tables(desired, name, old, new)
    changes = tuple(c for c in changes_between(old, new) if not c.field.startswith("spec.tables"))
    changes += tuple(_table_changes(before, now))
    earlier, there = {n.node: n for n in before.nodes}, {n.node: n for n in now.nodes}
    moved = [node for node in there.values() if node.node in earlier and earlier[node.node].zone != node.zone]
    if moved:
        where = desired.where("Database", name, "spec")
        raise Invalid(
            f"{where}: {moved[0].node} would move from zone {earlier[moved[0].node].zone} to {moved[0].zone}, and its "
            "disk would stay behind",
            hint="add zones and names at the end of their lists",
        )
    restart = [
        node
        for node in there.values()
        if node.node in earlier and (needs_restart(earlier[node.node], node) or _upload(before) != _upload(now))
    ]
    other_peers = now.role is DatabaseRole.CLOUD and set(earlier) != set(there)
    if other_peers:
        # Nodes hear each other by what they were started with.
        restart = [node for node in there.values() if node.node in earlier]
    if changes:
        how = ""
        if restart:
            how = f"; {_who_restarts(len(restart), now.role)}"
            if len(restart) > 1 and now.role is DatabaseRole.CLOUD and not other_peers:
                how += ", one after the other"
        yield Action(Verb.UPDATE, "Database", name, phrase(changes) + how, changes, RESTART_MS if restart else 0)
    added, gone = [there[n] for n in there if n not in earlier], [earlier[n] for n in earlier if n not in there]
    if now.role is DatabaseRole.EDGE:
        if added:
            yield Action(Verb.CREATE, "Edges", name, f"new: {_names(added)}")
        if gone:
            what = f"stop: {_names(gone)}; what is not uploaded stays on their flash"
            yield Action(Verb.DELETE, "Edges", name, what)
        return
    for node in added:
        yield _new_node(desired, now, node)
    for node in gone:
        usd = _node_usd(recorded, before)
        what = f"zone {node.zone}; another node owns the database then"
        cost = None if usd is None else -usd
        yield Action(Verb.DELETE, "DatabaseNode", f"{name}/{node.node}", what, (), RESTART_MS, monthly_usd=cost)


def _upload(database: ResolvedDatabase) -> object:
    """What of an upload its edges are started with."""
    if database.upload is None:
        return None
    via = None if database.via is None else replace(database.via, partitions=0)
    return database.upload.model_copy(update={"via": None}), via


def _table_changes(before: ResolvedDatabase, now: ResolvedDatabase) -> Iterator[Change]:
    """One a table, in words: its whole text twice says less."""
    old = {table.name: table for table in before.nodes[0].tables}
    new = {table.name: table for table in now.nodes[0].tables}
    for name in dict.fromkeys([*old, *new]):
        field = f"spec.tables.{name}"
        if name not in old:
            yield Change(field, None, f"{len(new[name].columns)} columns")
        elif name not in new:
            yield Change(field, f"{len(old[name].columns)} columns", "no longer named (it stays until it is dropped)")
        elif old[name] != new[name]:
            options = {k: v for k, v in new[name].options.items() if old[name].options.get(k) != v}
            options |= dict.fromkeys(old[name].options.keys() - new[name].options.keys(), "unset")
            said = [f"{key} {value}" for key, value in sorted(options.items())]
            said += [f"+ {c.name} {c.type}" for c in new[name].columns[len(old[name].columns) :]]
            was = {c.name: c for c in old[name].columns}
            said += [
                f"{c.name} {was[c.name].type} -> {c.type}"
                for c in new[name].columns
                if c.name in was and was[c.name].type != c.type
            ]
            yield Change(field, f"{len(old[name].columns)} columns", ", ".join(said) or "other columns")


def _refuse_other_tables(desired: Specs, name: str, old: Database, new: Database) -> None:
    """A column's place is its identity in files that are there already."""
    was = {table.name: table for table in old.spec.tables}
    for index, table in enumerate(new.spec.tables):
        if table.name in was and (why := _no_evolution(was[table.name], table)):
            where = desired.where("Database", name, "spec", "tables", index)
            raise Invalid(
                f"{where}: table {table.name} has rows, and {why}",
                hint="add nullable fields at the end, or make another table",
            )


def _no_evolution(old: Table, new: Table) -> str | None:
    for at, column in enumerate(old.columns):
        if at >= len(new.columns):
            return f"column {column.name} would go"
        now = new.columns[at]
        if now.name != column.name or now.role != column.role:
            return f"column {at + 1}, the {column.role} {column.name}, would be the {now.role} {now.name}"
        if now.type != column.type and column.role != "field":
            return f"the type of the {column.role} {column.name} cannot change"
        if now.nullable is False and column.nullable is not False and column.role != "time":
            return f"column {column.name} was nullable"
    for column in new.columns[len(old.columns) :]:
        if column.role != "field" or column.nullable is False:
            return f"the new column {column.name} is no nullable field"
    return None


def _node_usd(specs: Specs, database: ResolvedDatabase) -> float | None:
    """A node's price a month; edges are the vehicles' own."""
    if database.role is DatabaseRole.EDGE:
        return 0.0
    return facts_of(specs.clouds[database.cloud]).economics.node_usd_month


def _who_restarts(count: int, role: DatabaseRole) -> str:
    if role is DatabaseRole.EDGE:
        return f"{_edges(count)} restart{'s' if count == 1 else ''}"
    return "its node restarts" if count == 1 else "its nodes restart"


def _edges(count: int) -> str:
    return f"{count} edge" if count == 1 else f"{count} edges"


def _names(nodes: list[DatabaseSpec]) -> str:
    shown = ", ".join(node.node for node in nodes[:NAMES_SHOWN_MAX])
    return shown if len(nodes) <= NAMES_SHOWN_MAX else f"{shown} and {len(nodes) - NAMES_SHOWN_MAX} more"
