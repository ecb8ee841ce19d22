"""Objects that nobody reads any more: files that compaction, retention or a drop removed, and files that were uploaded
and never committed.

An orphan's deletion has two phases, for its batch may be on its way: first the manifest says that this id is never
imported (whoever commits it later is refused, and ships it again under a fresh id), then the object is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.manifest_commands import objects_deleted, orphans_condemned
from dataplane.tsdb.cloud.manifest_state import ManifestState
from dataplane.tsdb.schema.files import file_of, sst_key, sst_prefix
from providers.base.clock import Clock
from providers.base.objects import ObjectInfo, ObjectStore

PAGE = 1_000


@dataclass(frozen=True, slots=True)
class OrphanSettings:
    """How long what might still be needed is left alone."""

    removed_grace_ms: int = 3_600_000
    """Of a file that left the manifest: longer than any query, and than a replica may lag behind."""
    orphan_age_ms: int = 7 * 86_400_000
    """Of an object that is in no manifest. A vehicle may be switched off for days between upload and batch; if it is
    for longer, it uploads once more. So long are parts of unfinished uploads kept, too."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one collection did."""

    condemned: int
    deleted: int


def orphans(state: ManifestState, database: str, objects: Iterable[ObjectInfo], before_ms: int) -> dict[str, str]:
    """File id to table of those objects, last written before `before_ms`, that are no part of the database. One whose
    age the store does not say is left alone."""
    found: dict[str, str] = {}
    for info in objects:
        file = file_of(database, info.key)
        if file is None or info.modified_ms is None or info.modified_ms >= before_ms:
            continue
        table, file_id = file
        if file_id not in state.gone and state.find(file_id) is None:
            found[file_id] = table
    return found


def deletable(state: ManifestState, now_ms: int, settings: OrphanSettings) -> list[tuple[str, str]]:
    """Table and id of files whose objects may be deleted now: condemned ones at once, removed ones after the grace."""
    return [
        (gone.table, file_id)
        for file_id, gone in state.gone.items()
        if not gone.deleted and (not gone.sha256 or now_ms - gone.at_ms >= settings.removed_grace_ms)
    ]


async def collect(
    manifest: Manifest, store: ObjectStore, clock: Clock, settings: OrphanSettings = OrphanSettings()
) -> Collected:
    """One collection. Idempotent; anybody may run it, and what is cut short is done by the next.

    Raises:
        Unavailable: the bucket refuses for now.
    """
    await manifest.poll()
    prefix = sst_prefix(manifest.database)
    condemned = 0
    after = ""
    while True:
        page = await store.list(prefix, start_after=after, limit=PAGE)
        condemned += await _condemn(manifest, page, clock.wall_ms(), settings)
        if len(page) < PAGE:
            break
        after = page[-1].key
    gone = deletable(manifest.state, clock.wall_ms(), settings)
    for at in range(0, len(gone), PAGE):
        some = gone[at : at + PAGE]
        await store.delete([sst_key(manifest.database, table, file_id) for table, file_id in some])
        ids = [file_id for _, file_id in some]
        await manifest.commit_one(lambda state, ids=ids: objects_deleted(state.epoch, ids))  # type: ignore[misc]
    # Parts of files that no vehicle goes on sending.
    await store.collect_uploads(prefix, settings.orphan_age_ms)
    return Collected(condemned, len(gone))


async def _condemn(manifest: Manifest, page: Sequence[ObjectInfo], now_ms: int, settings: OrphanSettings) -> int:
    before = now_ms - settings.orphan_age_ms
    if not orphans(manifest.state, manifest.database, page, before):
        return 0
    count = 0

    def decide(state: ManifestState) -> dict[str, object] | None:
        nonlocal count
        found = orphans(state, manifest.database, page, before)
        count = len(found)
        return orphans_condemned(state.epoch, found, now_ms) if found else None

    await manifest.commit_one(decide)
    return count
