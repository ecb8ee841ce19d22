"""The manifest's commands: what each means, and what the fold refuses of it, is said here; `manifest_fold.py` does it.

Each carries the epoch of who asks and is refused under any other than the manifest's: a deposed owner's late flush
changes nothing. Importers and compactors work for whoever owns the database, and ask under the epoch that they read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dataplane.contract.codec import to_plain
from dataplane.ledger.entry import Command
from dataplane.tsdb.cloud.manifest_state import file_plain
from dataplane.tsdb.schema.files import FileMeta
from dataplane.tsdb.schema.tables import TableSchema

REASON_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class Consumed:
    """Records [first, next) of a partition are in the files of the same command."""

    topic: str
    partition: int
    first: int
    next: int


@dataclass(frozen=True, slots=True)
class Logged:
    """How far the WAL of `epoch` is in files, or void: its blocks below `block` wholly; of each table its records up to
    the sequence given. An epoch's WAL and a table's place in it only ever move forward."""

    epoch: int
    block: int
    tables: Mapping[str, int]


def database_owned(epoch: int, node: str, claim: str = "") -> Command:
    """`node` owns the database from here on. Refused unless `epoch` is the manifest's plus one. What earlier epochs
    have left in their WALs is owed until `wal_recovered`. `claim`: tells this life of the node from its others."""
    return {"kind": "database-owned", "epoch": epoch, "node": node, "claim": claim}


def database_released(epoch: int) -> Command:
    """The owner has put all its rows into files and stops: nobody owns the database, nothing is owed of its WAL, and
    whoever is there may own the next epoch at once."""
    return {"kind": "database-released", "epoch": epoch}


def wal_recovered(epoch: int, victim: int) -> Command:
    """All that the WAL of epoch `victim`, an earlier one, has is in files: it is forgotten. Refused when it is already,
    and for the owner's own."""
    return {"kind": "wal-recovered", "epoch": epoch, "victim": victim}


def table_created(epoch: int, schema: TableSchema) -> Command:
    """Refused when the name is taken."""
    return {"kind": "table-created", "epoch": epoch, "schema": to_plain(schema)}


def table_changed(epoch: int, schema: TableSchema) -> Command:
    """The table's next version. Refused when the present one's files could not be read as it, or when somebody else
    made that version first."""
    return {"kind": "table-changed", "epoch": epoch, "schema": to_plain(schema)}


def table_dropped(epoch: int, table: str, at_ms: int, logged: Logged | None = None) -> Command:
    """The table and its files are gone, and its records in the WAL as far as `logged` says."""
    return {"kind": "table-dropped", "epoch": epoch, "table": table, "at_ms": at_ms, "logged": _plain(logged)}


def table_truncated(epoch: int, table: str, at_ms: int, logged: Logged | None = None) -> Command:
    """The table's files are gone, and its records in the WAL as far as `logged` says."""
    return {"kind": "table-truncated", "epoch": epoch, "table": table, "at_ms": at_ms, "logged": _plain(logged)}


def _plain(logged: Logged | None) -> dict[str, object] | None:
    return None if logged is None else to_plain(logged)


def files_added(
    epoch: int,
    files: Iterable[FileMeta],
    schemas: Iterable[TableSchema] = (),
    *,
    edge: str = "",
    number: int = 0,
    create_tables: bool = False,
    consumed: Iterable[Consumed] = (),
    logged: Logged | None = None,
) -> Command:
    """Files become part of their tables, all at once and under one sequence, which is greater than every earlier one.

    `schemas`: those that files were written under. One that the table's present one evolved from is remembered; one
    that the present one evolves into becomes the present one; a table that is not there is made with `create_tables`.
    `edge`, `number`: the batch that they came in; one that is dealt with already changes nothing, and none is skipped.
    A file that is there already, or was and has been compacted, is passed over.
    `logged`: which records of a WAL these files hold.

    Refused as a whole: records that are in files already, or of a WAL that is recovered; an unknown table or
    fingerprint, a schema that is no relative of the table's, an id that is taken by other bytes, a condemned id, a
    batch that is not the edge's next, offsets that do not join what has been consumed.
    """
    return {
        "kind": "files-added",
        "epoch": epoch,
        "files": [file_plain(meta) for meta in files],
        "schemas": [to_plain(schema) for schema in schemas],
        "edge": edge,
        "number": number,
        "create_tables": create_tables,
        "consumed": [to_plain(item) for item in consumed],
        "logged": _plain(logged),
    }


def files_replaced(epoch: int, table: str, removed: Iterable[str], added: Iterable[FileMeta], at_ms: int) -> Command:
    """Compaction and retention: `added` take the place of `removed`. Each added file brings its own sequence, the
    greatest of what it was made of: rows that were flushed meanwhile are newer. Refused when any of `removed` is not
    there any more."""
    return {
        "kind": "files-replaced",
        "epoch": epoch,
        "table": table,
        "removed": list(removed),
        "added": [file_plain(meta) for meta in added],
        "at_ms": at_ms,
    }


def batch_refused(
    epoch: int, edge: str, number: int, reason: str, at_ms: int, files: Mapping[str, str] | None = None
) -> Command:
    """Nothing of that batch is taken, and the edge's next one is up. Refused unless it is the edge's next."""
    return {
        "kind": "batch-refused",
        "epoch": epoch,
        "edge": edge,
        "number": number,
        "reason": reason[:REASON_CHARS_MAX],
        "at_ms": at_ms,
        "files": {name: why[:REASON_CHARS_MAX] for name, why in (files or {}).items()},
    }


def orphans_condemned(epoch: int, orphans: Mapping[str, str], at_ms: int) -> Command:
    """`orphans`: file id to table. These ids are never imported from here on, so that their objects may be deleted.
    Ids that are part of the database by now are passed over."""
    return {"kind": "orphans-condemned", "epoch": epoch, "orphans": dict(orphans), "at_ms": at_ms}


def objects_deleted(epoch: int, ids: Iterable[str]) -> Command:
    """The objects of these removed or condemned files are deleted."""
    return {"kind": "objects-deleted", "epoch": epoch, "ids": list(ids)}
