"""What a database's manifest folds to: who owns it, its tables, and which files each of them is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dataplane.contract.codec import from_plain, to_plain
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Internal

GONE_MAX = 50_000
"""Removed and condemned file ids that are remembered, so that a late import of one is recognised. The oldest whose
object is deleted are forgotten first."""
REFUSALS_MAX = 1_000
"""Refused batches that the manifest remembers; each has an object under `quarantine/` for ever."""

_META_FIELDS = tuple(f.name for f in fields(FileMeta))


@dataclass(slots=True)
class TableState:
    """A table as of now. `history` has every version that a file may be written under, by fingerprint."""

    schema: TableSchema
    history: dict[str, TableSchema] = field(default_factory=dict)
    files: dict[str, FileMeta] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gone:
    """A file that is no more part of the database, or never may be: its id is not imported again."""

    table: str
    sha256: str
    """Empty: condemned as an orphan, before anybody committed it."""
    at_ms: int
    """The clock of who removed it: its object is deleted a grace period later, when no query reads it any more."""
    deleted: bool = False
    """Whether its object is gone as well."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A batch that was not taken. `files`: of those at fault, why."""

    edge: str
    number: int
    reason: str
    at_ms: int
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class LogState:
    """How far the WAL of one epoch is in files. It is kept until all of it is: a take-over that forgot would double the
    rows of tables that append."""

    block: int = 1
    """Blocks below are in files, whole."""
    tables: dict[str, int] = field(default_factory=dict)
    """Of each table: its records up to this sequence are in files, or void because it was truncated or dropped."""


@dataclass(slots=True)
class ManifestState:
    """The fold. Only `ManifestMachine` changes it."""

    epoch: int = 0
    """Of the owner; 0: nobody has owned it yet."""
    owner: str = ""
    """Empty: it was released, or never owned."""
    claim: str = ""
    """Which life of the owner."""
    sequence: int = 0
    """Greatest that files have been given."""
    tables: dict[str, TableState] = field(default_factory=dict)
    edges: dict[str, int] = field(default_factory=dict)
    """Each edge's last batch that was imported or refused."""
    consumed: dict[str, int] = field(default_factory=dict)
    """Of each `topic/partition`, the next offset: what is below is in files of this manifest."""
    logs: dict[int, LogState] = field(default_factory=dict)
    """WALs of which rows may not be in files yet, by epoch: the owner's, and those that it has still to recover."""
    gone: dict[str, Gone] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def find(self, file_id: str) -> FileMeta | None:
        """The file of that id, in whichever table."""
        return next((t.files[file_id] for t in self.tables.values() if file_id in t.files), None)


def file_plain(meta: FileMeta) -> dict[str, Any]:
    """A file as JSON values. (The contract's codec does the same by reflection, at ten times the cost: a manifest has
    hundreds of thousands of these.)"""
    return {name: getattr(meta, name) for name in _META_FIELDS}


def file_meta(plain: Mapping[str, Any]) -> FileMeta:
    """What `file_plain` made.

    Raises:
        Internal: another version's fields: a reader stops, it does not skip.
    """
    try:
        return FileMeta(**plain)
    except TypeError as error:
        raise Internal(f"a manifest names a file in a form that is not known here: {error}") from error


def dump(state: ManifestState) -> dict[str, Any]:
    """As JSON values, for a snapshot."""
    return {
        "epoch": state.epoch,
        "owner": state.owner,
        "sequence": state.sequence,
        "tables": [
            {
                "schema": to_plain(table.schema),
                "history": [to_plain(schema) for schema in table.history.values()],
                "files": [file_plain(meta) for meta in table.files.values()],
            }
            for table in state.tables.values()
        ],
        "edges": dict(state.edges),
        "consumed": dict(state.consumed),
        "claim": state.claim,
        "logs": [[epoch, log.block, dict(log.tables)] for epoch, log in state.logs.items()],
        "gone": [[name, g.table, g.sha256, g.at_ms, g.deleted] for name, g in state.gone.items()],
        "refusals": [[r.edge, r.number, r.reason, r.at_ms, dict(r.files)] for r in state.refusals],
    }


def load(plain: Any) -> ManifestState:
    """What `dump` made."""
    return ManifestState(
        epoch=plain["epoch"],
        owner=plain["owner"],
        sequence=plain["sequence"],
        tables={table.schema.name: table for table in _tables(plain["tables"])},
        edges=dict(plain["edges"]),
        consumed=dict(plain["consumed"]),
        claim=plain.get("claim", ""),
        logs={epoch: LogState(block, dict(tables)) for epoch, block, tables in _logs(plain)},
        gone={name: Gone(*rest) for name, *rest in plain["gone"]},
        refusals=[Refusal(*item) for item in plain["refusals"]],
    )


def _logs(plain: Any) -> Iterable[Any]:
    """Snapshots of the first form had `wal_floor`, of the owner's epoch alone, and nobody wrote a WAL."""
    if "logs" in plain:
        return list(plain["logs"])
    return [[plain["epoch"], max(1, plain["wal_floor"]), {}]] if plain["epoch"] else []


def _tables(plain: Iterable[Any]) -> Iterable[TableState]:
    for item in plain:
        history = [from_plain(TableSchema, schema) for schema in item["history"]]
        yield TableState(
            from_plain(TableSchema, item["schema"]),
            {schema.fingerprint: schema for schema in history},
            {meta["file_id"]: file_meta(meta) for meta in item["files"]},
        )
