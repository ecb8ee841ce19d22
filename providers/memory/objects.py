"""An object store in memory: `MemoryBucket` is the truth, each process has its `MemoryObjectStore` onto it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from providers.base.errors import AlreadyExists, Conflict, Invalid, NotFound, Unavailable, WrongOffset
from providers.base.objects import ObjectInfo
from providers.base.resumed import Progress, store_resumed
from providers.base.streams import fetch_stream, store_stream
from providers.memory.faults import CALM, Faults, Place, Process, World

KEY_BYTES_MAX = 1024
"""The longest key of S3, GCS and Azure (OSS: 1023)."""

PART_BYTES = 256 << 10
"""Small, so that a test's streams have several parts."""


@dataclass(slots=True)
class _Upload:
    key: str
    began_ms: float
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryBucket(Place):
    """A bucket's content. `append_supported`: as an S3 Express directory bucket, which appends to existing objects at
    their very end and lists in no order, only prefixes that end in `/`."""

    def __init__(self, world: World, name: str, *, append_supported: bool = False, faults: Faults = CALM) -> None:
        super().__init__(world, name, faults)
        self.append_supported = append_supported
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, _Upload] = {}

    def put(self, key: str, data: bytes, if_absent: bool) -> None:
        if if_absent and key in self.objects:
            raise AlreadyExists(f"{key} exists", key=key)
        self.objects[key] = data

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"no object {key}", key=key)
        return self.objects[key]

    def append(self, key: str, offset: int, data: bytes) -> None:
        size = len(self.get(key))
        if size != offset:
            raise WrongOffset(f"{key} has {size} bytes, not {offset}", key=key, actual=size, expected=offset)
        self.objects[key] += data

    def begin_upload(self, key: str, upload: str) -> None:
        self.uploads[upload] = _Upload(key, self.world.clock.monotonic_ms())

    def put_part(self, upload: str, number: int, data: bytes) -> None:
        self._upload(upload).parts[number] = data

    def complete_upload(self, upload: str, count: int, if_absent: bool) -> None:
        found = self._upload(upload)
        self.put(found.key, b"".join(found.parts[number] for number in range(1, count + 1)), if_absent)
        del self.uploads[upload]

    def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        horizon_ms = self.world.clock.monotonic_ms() - older_than_ms
        old = [name for name, row in self.uploads.items() if row.key.startswith(prefix) and row.began_ms <= horizon_ms]
        for name in old:
            del self.uploads[name]
        return len(old)

    def _upload(self, upload: str) -> _Upload:
        if upload not in self.uploads:
            raise Unavailable(f"no upload {upload}: it was collected, and nothing was stored")
        return self.uploads[upload]

    def list(self, prefix: str, start_after: str, limit: int) -> list[ObjectInfo]:
        names = [key for key in self.objects if key.startswith(prefix) and key > start_after]
        if not self.append_supported:
            return [ObjectInfo(key, len(self.objects[key])) for key in sorted(names)[:limit]]
        # In no order that a caller could lean on, yet the same in every run and pageable: by the key read backwards.
        after = start_after[::-1]
        page = sorted(key[::-1] for key in self.objects if key.startswith(prefix) and key[::-1] > after)[:limit]
        return [ObjectInfo(key[::-1], len(self.objects[key[::-1]])) for key in page]


class MemoryObjectStore:
    """`ObjectStore` of one process."""

    def __init__(self, process: Process, bucket: MemoryBucket) -> None:
        self._process = process
        self._bucket = bucket
        self._closed = False

    async def ensure_bucket(self) -> None:
        """Nothing to do: whoever made this store made its bucket."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._check(key)
        what = f"{'create' if if_absent else 'put'} {key}"
        kept = bytes(data)
        await self._process.call(
            self._bucket, what, lambda: self._bucket.put(key, kept, if_absent), changes=True, repeats=True
        )

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._check(key)
        if start < 0 or (length is not None and length < 0):
            raise Invalid("a range has no negative bounds", start=start, length=length)
        data = await self._process.call(self._bucket, f"get {key}", lambda: self._bucket.get(key), changes=False)
        return data[start:] if length is None else data[start : start + length]

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        self._check(key)

        async def single(data: bytes) -> None:
            await self.put(key, data, if_absent=if_absent)

        upload = _PartUpload(self._process, self._bucket, key, if_absent)
        await store_stream(chunks, single, lambda: upload, part_bytes=PART_BYTES)

    @property
    def resumes_from(self) -> int:
        return PART_BYTES

    async def put_resumed(
        self, key: str, chunks: AsyncIterable[bytes], progress: Progress, *, if_absent: bool = False
    ) -> None:
        self._check(key)
        upload = _PartUpload(self._process, self._bucket, key, if_absent)
        await store_resumed(chunks, upload, progress, part_bytes=PART_BYTES)

    async def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        self._check(key)
        if start < 0 or (length is not None and length < 0):
            raise Invalid("a range has no negative bounds", start=start, length=length)
        what = f"get {key}"
        whole = await self._process.call(self._bucket, what, lambda: self._bucket.get(key), changes=False)
        end = len(whole) if length is None else min(len(whole), start + length)

        def piece(at: int, size: int) -> bytes:
            if self._bucket.objects.get(key) is not whole:
                raise Conflict(f"{key} was replaced while it was read", key=key)
            return whole[at : at + size]

        async def fetch(at: int, size: int) -> bytes:
            return await self._process.call(self._bucket, what, lambda: piece(at, size), changes=False)

        async with aclosing(fetch_stream(fetch, start, end, piece_bytes=PART_BYTES, abreast=1)) as found:
            async for data in found:
                yield data

    async def head(self, key: str) -> ObjectInfo:
        self._check(key)
        data = await self._process.call(self._bucket, f"head {key}", lambda: self._bucket.get(key), changes=False)
        return ObjectInfo(key, len(data))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        self._check(None)
        if limit < 1:
            raise Invalid("a listing has room for at least one object", limit=limit)
        if self._bucket.append_supported and prefix and not prefix.endswith("/"):
            raise Invalid(f"this bucket lists only prefixes that end in /, not {prefix!r}")
        return await self._process.call(
            self._bucket, f"list {prefix}", lambda: self._bucket.list(prefix, start_after, limit), changes=False
        )

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._check(key)
        names = tuple(keys)

        def apply() -> None:
            for key in names:
                self._bucket.objects.pop(key, None)

        if names:
            what = f"delete {names[0]} and {len(names) - 1} more"
            await self._process.call(self._bucket, what, apply, changes=True, repeats=True)

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        self._check(source)
        self._check(key)
        await self._process.call(
            self._bucket,
            f"copy {source} to {key}",
            lambda: self._bucket.put(key, self._bucket.get(source), if_absent),
            changes=True,
            repeats=True,
        )

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        self._check(None)
        what = f"collect uploads of {prefix}"
        return await self._process.call(
            self._bucket, what, lambda: self._bucket.collect_uploads(prefix, older_than_ms), changes=True
        )

    async def create_appendable(self, key: str) -> None:
        self._check(key)
        if not self._bucket.append_supported:
            raise Invalid(f"bucket {self._bucket.name} cannot append")
        await self.put(key, b"", if_absent=True)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        self._check(key)
        if not self._bucket.append_supported:
            raise Invalid(f"bucket {self._bucket.name} cannot append")
        if offset < 0 or not data:
            raise Invalid("an append has an offset and at least one byte", offset=offset)
        kept = bytes(data)
        await self._process.call(
            self._bucket,
            f"append {key} at {offset}",
            lambda: self._bucket.append(key, offset, kept),
            changes=True,
            repeats=True,
        )

    async def close(self) -> None:
        self._closed = True

    def _check(self, key: str | None) -> None:
        if self._closed:
            raise Invalid("this store is closed")
        if key is None:
            return
        if not key or not key.isascii() or key.startswith("/") or len(key) > KEY_BYTES_MAX:
            raise Invalid(f"{key!r} is not a key", hint="ASCII, no leading slash, at most 1,024 bytes")


class _PartUpload:
    """`PartUpload` of one stream."""

    def __init__(self, process: Process, bucket: MemoryBucket, key: str, if_absent: bool) -> None:
        self._process = process
        self._bucket = bucket
        self._key = key
        self._if_absent = if_absent
        self._name = ""
        self._there: dict[int, bytes] = {}

    @property
    def name(self) -> str:
        return self._name

    async def resume(self, name: str) -> bool:
        def parts() -> dict[int, bytes] | None:
            found = self._bucket.uploads.get(name)
            return None if found is None else dict(found.parts)

        what = f"upload {self._key}: look"
        there = await self._process.call(self._bucket, what, parts, changes=False)
        if there is None:
            return False
        self._name, self._there = name, there
        return True

    def passed(self, number: int, data: bytes) -> bool:
        return self._there.get(number) == data

    async def begin(self) -> None:
        self._name = self._bucket.world.rng.token()
        await self._call("begin", lambda: self._bucket.begin_upload(self._key, self._name))

    async def part(self, number: int, data: bytes) -> None:
        await self._call(f"part {number}", lambda: self._bucket.put_part(self._name, number, data))

    async def complete(self, count: int) -> None:
        await self._call("complete", lambda: self._bucket.complete_upload(self._name, count, self._if_absent))

    async def abort(self) -> None:
        await self._call("abort", lambda: self._bucket.uploads.pop(self._name, None))

    async def _call(self, what: str, apply: Callable[[], object]) -> None:
        await self._process.call(self._bucket, f"upload {self._key}: {what}", apply, changes=True)
