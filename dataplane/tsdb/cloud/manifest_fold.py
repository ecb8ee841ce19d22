"""The manifest's fold: pure, the same at every reader. Checks come first and changes after them, so that a command is
carried out whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from dataplane.contract.codec import from_plain
from dataplane.ledger.entry import Command, Entry
from dataplane.tsdb.cloud.manifest_state import (
    GONE_MAX,
    REFUSALS_MAX,
    Gone,
    LogState,
    ManifestState,
    Refusal,
    TableState,
    dump,
    file_meta,
    load,
)
from dataplane.tsdb.schema.files import FRESH_ID, FileMeta
from dataplane.tsdb.schema.tables import TableSchema, why_not_older
from providers.base.errors import Internal


class ManifestMachine:
    """`StateMachine[ManifestState]`."""

    level_max = 1

    def initial(self) -> ManifestState:
        return ManifestState()

    def apply(self, state: ManifestState, entry: Entry) -> Sequence[str | None]:
        return [_apply(state, command, entry) for command in entry.commands]

    def dump(self, state: ManifestState) -> Any:
        return dump(state)

    def load(self, plain: Any) -> ManifestState:
        return load(plain)


def _apply(state: ManifestState, command: Command, entry: Entry) -> str | None:
    fold = _FOLDS.get(command["kind"])
    if fold is None:
        raise Internal(f"manifest entry {entry.seq} has a command {command['kind']!r} that this version does not know")
    if fold is not _owned and command["epoch"] != state.epoch:
        return f"epoch {command['epoch']} asks, and {state.owner or 'nobody'} owns the database in epoch {state.epoch}"
    return fold(state, command)


def _owned(state: ManifestState, command: Command) -> str | None:
    if command["epoch"] != state.epoch + 1:
        return f"epoch {command['epoch']} does not follow epoch {state.epoch} of {state.owner or 'nobody'}"
    state.epoch, state.owner, state.claim = command["epoch"], command["node"], command.get("claim", "")
    state.logs[state.epoch] = LogState()
    return None


def _released(state: ManifestState, command: Command) -> str | None:
    owed = sorted(set(state.logs) - {state.epoch})
    if owed:
        return f"the WAL of epoch {owed[0]} is not recovered"
    if not state.owner:
        return "the database is released already"
    state.owner, state.claim = "", ""
    state.logs.clear()
    return None


def _wal_recovered(state: ManifestState, command: Command) -> str | None:
    victim = command["victim"]
    if victim >= state.epoch or victim not in state.logs:
        return f"the WAL of epoch {victim} is not one that is to be recovered"
    del state.logs[victim]
    return None


def _why_not_logged(state: ManifestState, logged: Any) -> str | None:
    if logged is None:
        return None
    log = state.logs.get(logged["epoch"])
    if log is None:
        return f"the WAL of epoch {logged['epoch']} is recovered"
    for table, sequence in logged["tables"].items():
        if sequence <= log.tables.get(table, 0):
            return f"records of table {table!r} up to {log.tables[table]} are in files already"
    return None


def _note_logged(state: ManifestState, logged: Any) -> None:
    if logged is not None:
        log = state.logs[logged["epoch"]]
        log.block = max(log.block, logged["block"])
        log.tables.update(logged["tables"])


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table_created(state: ManifestState, command: Command) -> str | None:
    schema = from_plain(TableSchema, command["schema"])
    if schema.name in state.tables:
        return f"there is a table {schema.name!r} already"
    state.tables[schema.name] = TableState(schema, {schema.fingerprint: schema})
    return None


def _table_changed(state: ManifestState, command: Command) -> str | None:
    schema = from_plain(TableSchema, command["schema"])
    table = state.tables.get(schema.name)
    if table is None:
        return f"there is no table {schema.name!r}"
    if schema.version != table.schema.version + 1:
        return f"version {schema.version} of table {schema.name!r} does not follow version {table.schema.version}"
    if why := why_not_older(table.schema, schema):
        return why
    table.schema = schema
    table.history[schema.fingerprint] = schema
    return None


def _table_dropped(state: ManifestState, command: Command) -> str | None:
    why = _table_truncated(state, command)
    if why is None:
        del state.tables[command["table"]]
    return why


def _table_truncated(state: ManifestState, command: Command) -> str | None:
    table = state.tables.get(command["table"])
    if table is None:
        return f"there is no table {command['table']!r}"
    if why := _why_not_logged(state, command.get("logged")):
        return why
    _remove(state, table, list(table.files), command["at_ms"])
    _note_logged(state, command.get("logged"))
    return None


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _files_added(state: ManifestState, command: Command) -> str | None:
    edge, number = command["edge"], command["number"]
    if edge and number <= state.edges.get(edge, 0):
        return None  # somebody else has dealt with this batch: importers may race
    if edge and number != state.edges.get(edge, 0) + 1:
        return f"batch {number} of edge {edge!r} comes after batch {state.edges.get(edge, 0)}, and none is skipped"
    for item in command["consumed"]:
        partition = f"{item['topic']}/{item['partition']}"
        if item["first"] != state.consumed.get(partition, 0):
            return f"records of {partition} from {item['first']}, where {state.consumed.get(partition, 0)} is next"
    if why := _why_not_logged(state, command.get("logged")):
        return why
    tables: dict[str, TableState] = {}
    for plain in command["schemas"]:
        schema = from_plain(TableSchema, plain)
        known = tables.get(schema.name) or state.tables.get(schema.name)
        if known is None and not command["create_tables"]:
            return f"there is no table {schema.name!r}"
        grown = _with_schema(known, schema)
        if isinstance(grown, str):
            return grown
        tables[schema.name] = grown
    fresh: dict[str, FileMeta] = {}
    for plain in command["files"]:
        meta = file_meta(plain)
        table = tables.get(meta.table) or state.tables.get(meta.table)
        if table is None:
            return f"file {meta.file_id} is of table {meta.table!r}, which is not there"
        if meta.fingerprint not in table.history:
            return f"file {meta.file_id} has a schema {meta.fingerprint} that table {meta.table!r} never had"
        why = _why_not_added(state, meta, fresh)
        if why is not None:
            return why
        if meta.file_id not in state.gone and meta.file_id not in table.files:
            fresh[meta.file_id] = meta
    state.tables.update(tables)
    if fresh:
        state.sequence += 1
    for meta in fresh.values():
        state.tables[meta.table].files[meta.file_id] = replace(meta, sequence=state.sequence)
    if edge:
        state.edges[edge] = number
    for item in command["consumed"]:
        state.consumed[f"{item['topic']}/{item['partition']}"] = item["next"]
    _note_logged(state, command.get("logged"))
    return None


def faults(state: ManifestState, files: Iterable[FileMeta], schemas: Iterable[TableSchema]) -> dict[str, str]:
    """Of a batch that `files-added` refused: the files at fault, each with why. None, where the refusal is not about
    files: a table that is not there yet, for one."""
    strange = {
        (schema.name, schema.fingerprint): grown
        for schema in schemas
        if isinstance(grown := _with_schema(state.tables.get(schema.name), schema), str)
    }
    whys = {
        meta.file_id: strange.get((meta.table, meta.fingerprint)) or _why_not_added(state, meta, {}) for meta in files
    }
    return {file_id: why for file_id, why in whys.items() if why is not None}


def _with_schema(known: TableState | None, schema: TableSchema) -> TableState | str:
    """The table, a copy that shares its files, once it knows `schema`; or why it cannot."""
    if known is None:
        return TableState(schema, {schema.fingerprint: schema})
    if schema.fingerprint in known.history:
        return known
    history = {**known.history, schema.fingerprint: schema}
    if why_not_older(schema, known.schema) is None:
        return TableState(known.schema, history, known.files)
    why = why_not_older(known.schema, schema)
    if why is not None:
        return f"table {schema.name!r} cannot take version {schema.version} of its sender: {why}"
    version = max(schema.version, known.schema.version + 1)
    present = replace(schema, version=version, options=known.schema.options)
    return TableState(present, history, known.files)


def _why_not_added(state: ManifestState, meta: FileMeta, fresh: dict[str, FileMeta]) -> str | None:
    gone = state.gone.get(meta.file_id)
    if gone is not None and not gone.sha256:
        return f"file {meta.file_id} was found to be an orphan and given up; {FRESH_ID}"
    there = fresh.get(meta.file_id) or state.find(meta.file_id)
    sha256, table = (there.sha256, there.table) if there else (gone.sha256, gone.table) if gone else ("", "")
    if sha256 and (sha256, table) != (meta.sha256, meta.table):
        return f"file {meta.file_id} is there already, with other bytes or in another table; {FRESH_ID}"
    return None


def _files_replaced(state: ManifestState, command: Command) -> str | None:
    table = state.tables.get(command["table"])
    if table is None:
        return f"there is no table {command['table']!r}"
    absent = [file_id for file_id in command["removed"] if file_id not in table.files]
    if absent:
        return f"{len(absent)} of the files to be replaced are not there any more, among them {absent[0]}"
    added = [file_meta(plain) for plain in command["added"]]
    for meta in added:
        if meta.table != command["table"] or meta.fingerprint not in table.history:
            return f"file {meta.file_id} has a schema {meta.fingerprint} that table {command['table']!r} never had"
        if meta.file_id in state.gone or state.find(meta.file_id) is not None:
            return f"file {meta.file_id} is there already, or was"
        if not 0 < meta.sequence <= state.sequence:
            return f"file {meta.file_id} says sequence {meta.sequence}, and {state.sequence} is the greatest given"
    _remove(state, table, command["removed"], command["at_ms"])
    table.files.update({meta.file_id: meta for meta in added})
    return None


def _remove(state: ManifestState, table: TableState, ids: Sequence[str], at_ms: int) -> None:
    for file_id in ids:
        meta = table.files.pop(file_id)
        state.gone[file_id] = Gone(meta.table, meta.sha256, at_ms)
    _forget(state)


def _forget(state: ManifestState) -> None:
    """Only what has no object left is forgotten: the rest has still to be deleted."""
    excess = len(state.gone) - GONE_MAX
    if excess > 0:
        for file_id in [name for name, gone in state.gone.items() if gone.deleted][:excess]:
            del state.gone[file_id]


# ── refusals and orphans ────────────────────────────────────────────────────────────────────────────────────────────


def _batch_refused(state: ManifestState, command: Command) -> str | None:
    edge, number = command["edge"], command["number"]
    if number != state.edges.get(edge, 0) + 1:
        return f"batch {number} of edge {edge!r} is not the next after {state.edges.get(edge, 0)}"
    state.edges[edge] = number
    state.refusals.append(Refusal(edge, number, command["reason"], command["at_ms"], command["files"]))
    del state.refusals[:-REFUSALS_MAX]
    return None


def _orphans_condemned(state: ManifestState, command: Command) -> str | None:
    for file_id, table in command["orphans"].items():
        if file_id not in state.gone and state.find(file_id) is None:
            state.gone[file_id] = Gone(table, "", command["at_ms"])
    _forget(state)
    return None


def _objects_deleted(state: ManifestState, command: Command) -> str | None:
    for file_id in command["ids"]:
        if gone := state.gone.get(file_id):
            state.gone[file_id] = replace(gone, deleted=True)
    _forget(state)
    return None


_FOLDS: dict[str, Callable[[ManifestState, Command], str | None]] = {
    "database-owned": _owned,
    "database-released": _released,
    "wal-recovered": _wal_recovered,
    "table-created": _table_created,
    "table-changed": _table_changed,
    "table-dropped": _table_dropped,
    "table-truncated": _table_truncated,
    "files-added": _files_added,
    "files-replaced": _files_replaced,
    "batch-refused": _batch_refused,
    "orphans-condemned": _orphans_condemned,
    "objects-deleted": _objects_deleted,
}
