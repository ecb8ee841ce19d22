"""Room in the log is won back from its oldest segment: what still counts there is said again at the end, and the
segment goes.

The oldest first, so that nothing older can be brought to life: a record of a removal is needed no longer than the
records before it.
"""

from __future__ import annotations

import logging
import os
import threading
from array import array
from collections.abc import Callable
from typing import Any

import crc32c

from providers.base.errors import Corrupt, YunheError
from providers.lab.storage_files import Extent
from providers.lab.storage_index import Index, Place, decode
from providers.lab.storage_log import Log
from providers.lab.storage_parts import Stored, plain_extents, plain_meta

log = logging.getLogger(__name__)

DEAD_SEGMENTS_MAX = 2
"""Room beyond what is alive that is left alone, in segments."""
FILES_MAX = 16
"""Segments beyond those that what is alive fills; each start of the server begins one."""

Commit = Callable[..., Place]


class Compactor:
    """See the module. `turn` is called by one thread."""

    def __init__(self, written: Log, index: Index, mutex: threading.Lock, commit: Commit, segment_bytes: int) -> None:
        self._log = written
        self._index = index
        self._mutex = mutex
        self._commit = commit
        self._segment_bytes = segment_bytes
        self._stuck = False

    def turn(self) -> None:
        """Compact until there is little to win. Damage, or a full disk, ends it for now: nothing is lost by waiting."""
        while not self._stuck:
            with self._mutex:
                sealed = self._log.sealed
                if not self._worth_it(sealed):
                    return
            try:
                self._compact(sealed[0])
            except Corrupt as error:
                self._stuck = True
                log.error("compaction-stuck", extra={"error": str(error)})
            except YunheError as error:
                log.warning("compaction-waits", extra={"error": str(error)})
                return

    def _worth_it(self, sealed: list[int]) -> bool:
        held = sum(self._log.sizes[number] for number in sealed)
        alive = 2 * self._index.live_bytes
        return bool(sealed) and (
            held > alive + DEAD_SEGMENTS_MAX * self._segment_bytes
            or len(sealed) > alive // self._segment_bytes + FILES_MAX
        )

    def _compact(self, number: int) -> None:
        for record in self._log.parse(number):
            plain = decode(record.meta)
            match plain[0]:
                case "bucket":
                    with self._mutex:
                        if plain[1] in self._index.buckets:
                            self._commit(["bucket", plain[1]])
                case "object" | "append" | "data":
                    self._move_object(number, plain[1], plain[2])
                case "complete":
                    self._move_object(number, plain[1], plain[3])
                case "upload":
                    self._move_upload(number, plain[1], plain[2])
        self._log.wait(self._log.written)
        with self._mutex:
            self._log.drop(number)

    def _move_object(self, number: int, bucket: str, key: str) -> None:
        stored = self._find(bucket, key)
        if stored is None or (stored.home != number and all(extent[0] != number for extent in stored.extents)):
            return
        moved: dict[int, Extent] = {}
        for extent in list(stored.extents):
            if extent[0] == number:
                data = self._read(extent)
                with self._mutex:
                    if bucket not in self._index.buckets:
                        return  # removed meanwhile; a record in its name would bring it back
                    place = self._commit(["data", bucket, key], data, extent[3][0])
                moved[extent[1]] = (place.segment, place.at, place.data_bytes, array("I", [place.data_crc32c]))
        with self._mutex:
            now = self._now(bucket, key)
            if now is None:
                return  # removed meanwhile
            extents = [moved.get(extent[1], extent) if extent[0] == number else extent for extent in now.extents]
            # Replaced meanwhile, it has no extent here any more, and saying it again does no harm.
            self._commit(["object", bucket, key, plain_meta(now.meta), plain_extents(extents)])

    def _move_upload(self, number: int, bucket: str, upload: str) -> None:
        with self._mutex:
            held = self._index.buckets.get(bucket)
            found = held.uploads.get(upload) if held is not None else None
            if found is None or found.home != number:
                return
            parts: list[Any] = [
                [part, plain_meta(stored.meta), plain_extents(stored.extents)] for part, stored in found.parts.items()
            ]
            record = ["upload", bucket, upload, found.key, found.started_ms, dict(found.attributes), parts]
            self._commit(record)

    def _find(self, bucket: str, key: str) -> Stored | None:
        with self._mutex:
            return self._now(bucket, key)

    def _now(self, bucket: str, key: str) -> Stored | None:
        """The object as it is, None when it or its bucket is gone. The mutex is held."""
        held = self._index.buckets.get(bucket)
        return held.objects.get(key) if held is not None else None

    def _read(self, extent: Extent) -> bytes:
        number, at, size, sums = extent
        file = self._log.segments[number]
        data = os.pread(file.descriptor, size, at)
        if len(data) != size or crc32c.crc32c(data) != sums[0]:
            raise Corrupt(f"{file.path} has a block that fails its checksum, and stays for that", at=at)
        return data
