"""What earlier owners have acked and not put into files, put into files by the owner of now.

    logs of the manifest, oldest first ──► fence, read ──► rows above each table's floor ──► files, and the floors, in
                                                                                             one entry ──► recovered

A row is in a file if and only if its record is at or below its table's floor, for one entry says both: whoever dies in
the middle, and however often it is begun again, no row is lost or doubled. Until all is done nothing is served.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import Logged, files_added, wal_recovered
from dataplane.tsdb.cloud.manifest_state import ManifestState
from dataplane.tsdb.cloud.records import WAL_NODE, decode, identity, rows_of
from dataplane.tsdb.cloud.sst_files import SstFiles
from dataplane.tsdb.schema.tables import TableSchema
from dataplane.tsdb.sst.memtable import joined
from dataplane.wal.base import Block
from dataplane.wal.modes import WalPlaces, WalSettings, open_readers
from dataplane.wal.recover import recover
from providers.base.clock import Clock
from providers.base.errors import Corrupt

log = logging.getLogger(__name__)
TABLES_AN_ENTRY = 500
"""Tables whose files one manifest entry adds: about half of what an entry holds."""


@dataclass(slots=True)
class Owed:
    """Of one table: rows that are in no file, oldest first, and their last record."""

    rows: list[pa.Table] = field(default_factory=list)
    last: int = 0


Versions = Mapping[str, Mapping[str, TableSchema]]
"""Of each table, those that rows may be of, by fingerprint."""


def owed(versions: Versions, floors: Mapping[str, int], blocks: Sequence[Block]) -> dict[str, Owed]:
    """Of each table what is in `blocks` and above its floor.

    Raises:
        Corrupt: a record is of a table, or of a version of it, that the manifest does not know.
    """
    found: dict[str, Owed] = {}
    for block in blocks:
        for record in block.records:
            for section in decode(record):
                if record.base_offset <= floors.get(section.table, 0):
                    continue
                schema = versions.get(section.table, {}).get(section.fingerprint)
                if schema is None:
                    raise Corrupt(
                        f"record {record.base_offset} of the WAL of epoch {record.stream_epoch} has rows of table "
                        f"{section.table!r} in columns {section.fingerprint}, which the manifest does not know"
                    )
                item = found.setdefault(section.table, Owed())
                item.rows.append(pa.Table.from_batches([rows_of(section, schema)]))
                item.last = record.base_offset
    return found


async def recover_logs(
    manifest: Manifest, files: SstFiles, epoch: int, *, clock: Clock, settings: WalSettings | None = None
) -> int:
    """Recover the WALs of all epochs before `epoch`, which this node owns; returns how many rows that were.

    Raises:
        Fenced: another node owns the database now. Unavailable: the bucket refuses for now; begin again.
        Corrupt: an acked record is damaged: nothing is concluded, nothing served.
    """
    rows = 0
    for victim in sorted(e for e in manifest.state.logs if e < epoch):
        rows += await _recover_one(manifest, files, epoch, victim, clock=clock, settings=settings)
    return rows


async def _recover_one(
    manifest: Manifest, files: SstFiles, epoch: int, victim: int, *, clock: Clock, settings: WalSettings | None
) -> int:
    block, floors = manifest.state.logs[victim].block, dict(manifest.state.logs[victim].tables)
    whose = identity(files.database, victim)
    readers = open_readers(
        WalSpec(WalMode.OBJECT),
        whose,
        WalPlaces(bucket=files.store),
        own_key=whose.recovery_key(WAL_NODE, epoch),
        floor=block,
        clock=clock,
        settings=settings,
    )
    recovered = await recover(readers, ("object",), block)
    versions = {name: dict(table.history) for name, table in manifest.state.tables.items()}
    tables = await files.compute(lambda: owed(versions, floors, recovered.blocks))
    names = sorted(tables)
    rows = sum(len(part) for item in tables.values() for part in item.rows)
    for at in range(0, len(names), TABLES_AN_ENTRY):
        await _commit(manifest, files, epoch, victim, block, {n: tables[n] for n in names[at : at + TABLES_AN_ENTRY]})
    await manifest.commit_one(lambda state: wal_recovered(epoch, victim) if _is_owed(state, epoch, victim) else None)
    for reader in readers.values():
        await reader.release()
    log.info("wal-recovered", extra={"victim": victim, "blocks": len(recovered.blocks), "rows": rows})
    return rows


async def _commit(
    manifest: Manifest, files: SstFiles, epoch: int, victim: int, block: int, tables: dict[str, Owed]
) -> None:
    metas = []
    for name, item in tables.items():
        schema = manifest.state.tables[name].schema
        metas.append(
            await files.write(schema, lambda s=schema, i=item: joined(s, i.rows), files.fresh_id())  # type: ignore[misc]
        )
    floors = {name: item.last for name, item in tables.items()}

    def decide(state: ManifestState) -> dict[str, object] | None:
        if not _is_owed(state, epoch, victim):
            return None
        return files_added(epoch, metas, logged=Logged(victim, block, floors))

    await manifest.commit_one(decide)


def _is_owed(state: ManifestState, epoch: int, victim: int) -> bool:
    """Whether it is for this epoch to say. (Under another epoch the fold refuses, and that is what is to be told.)"""
    return state.epoch != epoch or victim in state.logs
