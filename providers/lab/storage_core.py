"""What the storage's methods stand on: opening and closing, the log, waiting for the disk, room, payloads.

`storage.py` says what is where; this file holds none of the calls that dialects make.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import AlreadyExists, Invalid, NotFound, YunheError
from providers.base.files import replace_file
from providers.lab.storage_compaction import Compactor
from providers.lab.storage_files import BLOCK_BYTES, DataFiles, Spool
from providers.lab.storage_index import Bucket, Index, Place, Upload, decode, encode
from providers.lab.storage_log import SEGMENT_BYTES, Log
from providers.lab.storage_parts import (
    KEY_BYTES_MAX,
    Stored,
    plain_extents,
)
from providers.lab.storage_payload import Payload

PARTS_MAX = 10_000
"""S3 and OSS: parts of an upload; S3 Express: appends an object takes, its first put included."""

ATTRIBUTES_BYTES_MAX = 16 << 10
"""More than any cloud takes of user metadata (Azure and GCS: 8 KiB)."""

FORMAT = b"yunhe-objects 2\n"


class StorageCore:
    """Base of `Storage`. Holds a lock on `root` until `close`.

    Raises (constructor):
        Invalid: `root` cannot be written, another server holds it, or it holds something else.
        Corrupt: a durable part of the log is damaged.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock | None = None,
        rng: Rng | None = None,
        parts_max: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._rng = rng or SystemRng()
        self.parts_max = PARTS_MAX if parts_max is None else parts_max
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._local = threading.local()
        self._freed: list[tuple[int, list[int]]] = []
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"{root} cannot be written: {error.strerror}") from error
        try:
            self._open(root)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, root: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Invalid(f"another server is using {root}") from error
        _check_format(root)
        self._folder = root
        for name in ("log", "data", "buckets"):
            (root / name).mkdir(exist_ok=True)
        self.files = DataFiles(root / "data")
        self._log = Log(root / "log", segment_bytes=self._segment_bytes)
        self._index = Index()
        self._index.sorting = False
        for record in self._log.replay():
            taken, freed = self._index.apply(
                decode(record.meta),
                Place(
                    record.segment,
                    record.at,
                    record.data_bytes,
                    record.data_crc32c,
                    record.ends - record.begins,
                    record.sequence,
                ),
            )
            self.files.recount(taken, freed)
        self._index.sort()
        self.files.sweep()
        self._closed = threading.Event()
        self._compactor_wakes = threading.Event()
        self._compactor = threading.Thread(target=self._compact_for_ever, name="compact", daemon=True)
        # What was found is synced; said in a record, damage to it is told from a torn tail from now on.
        self._commit(["opened", ""])
        for folder in sorted((root / "buckets").iterdir()):
            if folder.name not in self._index.buckets:
                self._commit(["bucket", folder.name])
        self._compactor.start()

    def close(self) -> None:
        """Sync, end the threads and give up the lock on the directory."""
        self._closed.set()
        self._compactor_wakes.set()
        self._compactor.join()
        with self._mutex, contextlib.suppress(YunheError):
            self._log.add(encode(["closed", ""]), frees=True)
        self._log.close()
        os.close(self._lock)

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, this thread's calls do not wait: whoever holds back what they say must wait for `written` instead."""
        self._local.deferred = True
        try:
            yield
        finally:
            self._local.deferred = False

    @property
    def written(self) -> int:
        """Sequence of the last change."""
        return self._log.written

    @property
    def synced(self) -> int:
        """Sequence up to which all is durable."""
        return self._log.synced

    @property
    def broken(self) -> OSError | None:
        """The disk's error after which nothing is promised any more."""
        return self._log.broken

    def on_synced(self, told: Callable[[], None]) -> None:
        """Have `told` called, in a thread of the storage's, whenever `synced` or `broken` changes."""
        self._log.on_synced = told

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Holds the mutex inside; after it waits until all that was seen there is durable, errors included."""
        try:
            with self._mutex:
                yield
        finally:
            if not getattr(self._local, "deferred", False):
                self._log.wait(self._log.written)

    def _commit(self, record: Sequence[Any], data: bytes = b"", crc_32c: int = 0, *, frees: bool = False) -> Place:
        """Add a record and fold it in. The mutex is held.

        Raises:
            Full, Unavailable: nothing was changed.
        """
        if not data:
            crc_32c = 0  # a large payload's is not the record's own
        meta = encode(record)
        sequence = self._log.add(meta, data, data_crc32c=crc_32c, frees=frees)
        segment, at = self._log.last
        place = Place(segment, at, len(data), crc_32c, len(meta) + len(data) + 44, sequence)
        taken, freed = self._index.apply(record, place)
        if taken:
            self.files.hold(taken)
            self._log.new_name_in(self.files.folder)
        if freed:
            # Removed when the record is durable: until then a crash brings back who refers to them.
            self._freed.append((sequence, freed))
        if freed or frees:
            self._compactor_wakes.set()
        return place

    def _compact_for_ever(self) -> None:
        compactor = Compactor(self._log, self._index, self._mutex, self._commit, self._segment_bytes)
        while not self._closed.is_set():
            self._compactor_wakes.wait(1.0)
            self._compactor_wakes.clear()
            self._remove_freed()
            compactor.turn()

    def _remove_freed(self) -> None:
        with self._mutex:
            freed, self._freed = self._freed, []
        for sequence, numbers in freed:
            try:
                self._log.wait(sequence)
            except YunheError:
                return  # the log is broken: a restart sorts it out
            self.files.release(numbers)

    # ── inside ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bucket(self, bucket: str) -> Bucket:
        found = self._index.buckets.get(bucket)
        if found is None:
            raise NotFound(f"no bucket {bucket}", bucket=bucket)
        return found

    def _stored(self, bucket: str, key: str) -> Stored:
        found = self._bucket(bucket).objects.get(key)
        if found is None:
            raise NotFound(f"{bucket}/{key} does not exist")
        return found

    def _upload(self, bucket: str, upload: str) -> Upload:
        found = self._bucket(bucket).uploads.get(upload)
        if found is None:
            raise NotFound(f"no upload {upload} to {bucket}", upload=upload)
        return found

    @contextlib.contextmanager
    def _payload(self, data: Payload | bytes) -> Iterator[Payload]:
        if isinstance(data, Payload):
            yield data  # its maker closes it
        elif len(data) <= BLOCK_BYTES:
            yield Payload(data)
        else:
            with self._gathered((data,), len(data)) as payload:
                yield payload

    @contextlib.contextmanager
    def _gathered(self, pieces: Iterable[bytes], size: int) -> Iterator[Payload]:
        if size <= BLOCK_BYTES:
            yield Payload(b"".join(pieces))
            return
        with contextlib.ExitStack() as undo:
            spool = Spool(self.files, size)
            undo.callback(spool.abandon)
            for piece in pieces:
                spool.write(piece)
            yield Payload(spool)

    @contextlib.contextmanager
    def _in_file(self, payload: Payload) -> Iterator[Payload]:
        """Parts are in files whatever their size, for those can be shared by the object that they will make."""
        filed = payload if payload.size == 0 else payload.in_file(self.files)
        try:
            yield filed
        finally:
            if filed is not payload:
                filed.close()

    def _hold(self, numbers: Sequence[int]) -> Callable[[], None]:
        self.files.hold(numbers)
        return lambda: self.files.release(numbers)


def placed(payload: Payload) -> tuple[bytes, list[list[Any]] | None]:
    """The bytes that go into the log, and the extents of those that do not; None: the log's record has them all."""
    if payload.spool is not None:
        return b"", plain_extents([payload.spool.extent])
    return (payload.read(), None) if payload.size else (b"", [])


def exists_error(bucket: str, key: str) -> AlreadyExists:
    return AlreadyExists(f"{bucket}/{key} exists")


def check_key(key: str) -> None:
    if not key or len(key.encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
        raise Invalid(f"a key has 1 to {KEY_BYTES_MAX} bytes")


def check_attributes(attributes: Mapping[str, str] | None) -> None:
    if attributes and sum(len(name) + len(value) for name, value in attributes.items()) > ATTRIBUTES_BYTES_MAX:
        raise Invalid(f"what is kept beside an object has at most {ATTRIBUTES_BYTES_MAX} characters")


def _check_format(root: Path) -> None:
    """Take up an empty directory, or one that was taken up before."""
    try:
        found = (root / "format").read_bytes()
    except FileNotFoundError:
        older = any(path.is_file() for path in (root / "buckets").glob("*/*")) or any((root / "log").glob("*"))
        found = b"older" if older else FORMAT
        if not older:
            replace_file(root / "format", FORMAT, durable=True)
    if found != FORMAT:
        raise Invalid(
            f"{root} holds objects in another layout than this version's",
            hint="begin with an empty directory; what is there can be read by the version that wrote it",
        )
