"""`yunhe database render`: a Database with `engine: greptimedb` as files for whoever runs GreptimeDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controlplane.api.complaints import did_you_mean
from controlplane.api.load import load
from controlplane.cli import output
from controlplane.cli.output import Format
from controlplane.plan.greptimedb import (
    IMPORT_NOTE,
    SECRETS_NOTE,
    Deployment,
    configuration,
    copy_files,
    create_table,
)
from providers.base.errors import Invalid, NotFound
from providers.base.registry import StoreAddress


def render(
    name: str,
    spec: Sequence[Path],
    *,
    bucket: str,
    endpoint: str | None,
    kafka: Sequence[str],
    etcd: Sequence[str],
    to: Path | None,
    form: Format,
) -> None:
    """Show the files, or write them.

    Raises:
        NotFound: no such Database. Invalid: it has another engine, or several nodes and no etcd.
    """
    specs = load(spec)
    database = specs.databases.get(name)
    if database is None:
        raise NotFound(f"no Database is named {name}", hint=did_you_mean(name, specs.databases))
    if database.spec.engine != "greptimedb":
        raise Invalid(
            f"Database {name} has engine {database.spec.engine}, which `yunhe apply` runs", hint="engine: greptimedb"
        )
    nodes = database.spec.nodes or 1
    if nodes > 1 and not etcd:
        raise Invalid(f"Database {name} has {nodes} nodes, whose metadata is in etcd", hint="--etcd host:2379")
    cloud = specs.clouds[database.spec.cloud].spec
    store = StoreAddress(cloud.provider, bucket, cloud.region, endpoint)
    deployment = Deployment(name, store, nodes=nodes, kafka=tuple(kafka), etcd=tuple(etcd))
    tables = [table.to_contract() for table in database.spec.tables]
    files = configuration(deployment)
    if tables:
        files["tables.sql"] = "\n\n".join(map(create_table, tables)) + "\n"
        copies = [copy_files(table.name, deployment, f"{name}/sst/{table.name}") for table in tables]
        files["copy.sql"] = f"-- {IMPORT_NOTE}\n" + "\n".join(copies) + "\n"
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (to / file).write_text(text)
    shown = [str(to / file) for file in files] if to else [f"# {file}\n{text}" for file, text in files.items()]
    output.data(files, form, "\n".join(shown))
    output.progress(SECRETS_NOTE)
    if tables:
        output.progress(IMPORT_NOTE)
