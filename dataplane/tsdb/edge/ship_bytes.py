"""A file's bytes on their way from the flash: a few at a time, so that writes never wait long for the store, and never
taken for the file when they are not what was written."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.schema.files import FileMeta
from providers.base.errors import Corrupt, NotFound

CHUNK_BYTES = 128 << 10
"""Read and sent at once: what the store is held for, and what the cap is kept by."""


async def chunks(database: EdgeDatabase, meta: FileMeta) -> AsyncGenerator[bytes, None]:
    """The whole file.

    Raises:
        Corrupt: before its last chunk, if they are not what was written: a stream of them is stored nowhere.
        NotFound: it is not on the flash any more.
    """
    digest = hashlib.sha256()
    for at in range(0, meta.size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, meta.size - at)
        chunk = await _part(database, meta.file_id, at, length)
        digest.update(chunk)
        if len(chunk) < length or (at + length == meta.size and digest.hexdigest() != meta.sha256):
            raise Corrupt(f"file {meta.file_id} of table {meta.table!r} is damaged on the flash")
        yield chunk


async def _part(database: EdgeDatabase, file_id: str, at: int, length: int) -> bytes:
    return await database.with_store(lambda store: store.outbox.part(file_id, at, length))


async def intact(database: EdgeDatabase, meta: FileMeta) -> bool:
    """Whether the file is what was written; so is one that is there no more."""
    try:
        async for _ in chunks(database, meta):
            pass
    except Corrupt:
        return False
    except NotFound:
        pass
    return True
