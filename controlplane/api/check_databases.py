"""Checks of databases against clouds and each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from controlplane.api.across import at, unknown
from controlplane.api.check_via import problems_of_via
from controlplane.api.databases import Database, Table, differs_from_target
from controlplane.api.source import Problem
from controlplane.api.specs import Specs
from dataplane.contract.codec import to_json

LAB_DATABASES_MAX = 64
"""Database processes on one machine: each takes some 100 MiB."""
TOLD_BYTES_MAX = 2 << 20
"""Of the tables that one cell's agents are told, all databases together: half of what an entry of a ledger holds."""
_BROKER = re.compile(r"b-[0-9]+")


def problems_of_databases(specs: Specs) -> Iterator[Problem]:
    """What is wrong between databases, and between them and their clouds."""
    for database in specs.databases.values():
        name, spec = database.metadata.name, database.spec
        if spec.cloud not in specs.clouds:
            yield unknown(specs, "Database", name, ("spec", "cloud"), "Cloud", spec.cloud)
        if spec.upload is not None:
            yield from _upload(specs, database, spec.upload.to)
            if spec.upload.via is not None:
                yield from problems_of_via(specs, database, spec.upload.to, spec.upload.via)
    yield from _each_process_once(specs)
    yield from _prefixes(specs)
    yield from _sizes(specs)


def _upload(specs: Specs, database: Database, to: str) -> Iterator[Problem]:
    name, path = database.metadata.name, ("spec", "upload", "to")
    target = specs.databases.get(to)
    if target is None:
        yield unknown(specs, "Database", name, path, "Database", to)
        return
    if target.spec.role != "cloud":
        clouds = [d.metadata.name for d in specs.databases.values() if d.spec.role == "cloud"]
        what = f"{to} has role {target.spec.role}, and files go to a Database with role cloud"
        yield at(specs, "Database", name, path, what, f"known: {', '.join(clouds)}" if clouds else "add one")
        return
    there = {table.name: table for table in target.spec.tables}
    for index, table in enumerate(database.spec.tables):
        where = ("spec", "tables", index)
        if table.name not in there:
            if not target.spec.create_tables:
                what = f"table {table.name} is not in {to}, which refuses files of tables that it does not have"
                yield at(specs, "Database", name, where, what, f"add it there, or set `createTables: true` in {to}")
        elif why := differs_from_target(table, there[table.name]):
            what = f"table {table.name} is another one in {to}: {why}"
            yield at(specs, "Database", name, where, what, "columns are one by place, name, role, type and decimals")


def _each_process_once(specs: Specs) -> Iterator[Problem]:
    """An edge's name says whose batch it is, and a process's which folder on its host is its own."""
    first: dict[str, str] = {}
    # Names that were written come last, and so are the ones to be blamed.
    for name, database in sorted(specs.databases.items(), key=lambda item: item[1].spec.edge_names is not None):
        path: tuple[str | int, ...] = ("spec", "edgeNames") if database.spec.edge_names else ("metadata", "name")
        for node in database.node_names:
            taken = first.setdefault(node, name)
            if taken != name:
                yield at(specs, "Database", name, path, f"{node} is a process of Database {taken} too", "rename one")
                break
            if _BROKER.fullmatch(node):
                yield at(specs, "Database", name, path, f"{node} is what a broker is called", "choose another name")
                break


def _prefixes(specs: Specs) -> Iterator[Problem]:
    """In one bucket a database and a cluster have each their own prefix: their names."""
    for name, database in specs.databases.items():
        cluster = specs.clusters.get(name)
        if database.spec.role == "cloud" and cluster is not None and cluster.spec.cloud == database.spec.cloud:
            what = f"BrokerCluster {name} keeps its data under that name in the bucket of {cluster.spec.cloud}"
            yield at(specs, "Database", name, ("metadata", "name"), what, "give the database another name")
        if database.spec.role == "cloud" and name == database.spec.cloud:
            what = f"the cell {name} keeps its own ledger under that name in its bucket"
            yield at(specs, "Database", name, ("metadata", "name"), what, f"for example {name}-db")


def _sizes(specs: Specs) -> Iterator[Problem]:
    total = 0
    told: dict[str, int] = {}
    for name, database in specs.databases.items():
        spec, count = database.spec, len(database.node_names)
        cloud = specs.clouds.get(spec.cloud)
        if cloud is not None and cloud.spec.target == "lab":
            before, total = total, total + count
            if before <= LAB_DATABASES_MAX < total:
                what = f"{total} database processes so far in the lab, which runs on one machine: at most "
                yield at(specs, "Database", name, ("spec",), f"{what}{LAB_DATABASES_MAX}", "fewer edges show the same")
        size = sum(len(to_json(table.to_contract())) for table in tables_of(database, specs)) * count
        before, told[spec.cloud] = told.get(spec.cloud, 0), told.get(spec.cloud, 0) + size
        if before <= TOLD_BYTES_MAX < told[spec.cloud]:
            what = (
                f"the tables of {spec.cloud}'s database processes take {told[spec.cloud]} bytes, and {TOLD_BYTES_MAX}"
            )
            yield at(
                specs, "Database", name, ("spec", "tables"), f"{what} can be told", "leave some to be made by clients"
            )


def tables_of(database: Database, specs: Specs) -> tuple[Table, ...]:
    """Its tables: of edges that upload and name none, those of the database that they upload to."""
    spec = database.spec
    if spec.tables or spec.upload is None:
        return spec.tables
    target = specs.databases.get(spec.upload.to)
    return target.spec.tables if target is not None else ()
