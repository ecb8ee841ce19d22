"""What the data plane needs of an object store.

One protocol, one conformance suite (`tests/conformance/`), one implementation a cloud. Keys are `/`-separated ASCII
paths without a leading
slash. Everything is bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a head request shows it. `size` in bytes."""

    key: str
    size: int
    modified_ms: int | None = None
    """Wall-clock milliseconds of the last write by the store's own clock, as coarse as the cloud states it; None where
    the call does not say. For reports and for collecting what is old, never for ownership."""
    etag: str = ""
    """The cloud's name of this version (GCS: its generation); empty where the call does not say. To be compared with
    another of the same store for equality and nothing else."""


class ObjectStore(Protocol):
    """A bucket. Obligations, by number:

    1. *Durable on return*: when `put` or `append` returns, the cloud's documented durability holds for all bytes.
    2. *Create-if-absent is atomic*: of any number of concurrent `put(..., if_absent=True)` on one key, at most one ever
       succeeds while the
       object exists. A success means that this very request created it.
    3. *No silent retry*: an implementation never re-sends a conditional put or an append by itself (the SDK's own
       retries are off
       for these): a lost answer is `OutcomeUnknown`, and the caller reads back. Other calls may be retried inside a
       bounded budget.
    4. *Read-your-writes*: after `put` returns, `get`, `head` and `list` by anybody see it.
    5. *Reads are whole or an error*: the bytes returned are exactly those stored; a failed checksum or a short body is
       an error,
       never a shorter answer.
    6. *Bounded*: every call ends within the implementation's time-out, with a result or with one of the errors below.
       Of a stream each piece does, and no more of it is in memory than a few pieces, whatever its length.
    7. `list` returns keys in lexicographic order, except on S3 Express, which lists in no order and only with prefixes
       that end in `/`.
    8. *Streams are stored whole or not at all*: nothing of a `put_stream` is visible before all of it is, and it is
       then as durable as a `put`. One that fails, is cancelled or whose process is killed leaves nothing visible, at
       most parts that `collect_uploads` removes. Parts may be repeated; the request that makes the object visible is
       sent once where `if_absent` is asked for.
    9. *Streams are read of one version*: the bytes of a `get_stream` are all of the object as it was when the stream
       began. Replaced meanwhile, the stream ends with `Conflict`; of a whole object the cloud's checksum is compared
       at the end, and a stream that does not match ends with `Corrupt` instead of ending.
    10. *Checked*: every write carries a checksum (crc32c, or the cloud's own) that the cloud compares before it
       answers.

    Every method may raise `Unavailable` (nothing was changed), `Invalid` (bad key, bad arguments, credentials refused)
    or `Full` (a quota is used up). What a user can mend has a `hint` that says how.
    """

    async def ensure_bucket(self) -> None:
        """Create the bucket if it is missing, idempotent: for `apply` and the lab, never needed by a data plane at
        work.

        Raises:
            Invalid: the name is somebody else's, or not one this cloud takes; credentials refused.
        """
        ...

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store `data` under `key`, in a single request.

        Raises:
            AlreadyExists: `if_absent` and the name is taken, perhaps by the caller's own earlier attempt.
            OutcomeUnknown: the answer was lost; the object may exist now or later.
        """
        ...

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        """Store what `chunks` yields, of any length, under `key`: a short one as `put` does, a long one in parts
        (multipart upload, staged blocks, composed pieces), of which a few are sent at once. What `chunks` raises is
        passed on, and nothing is stored.

        Raises:
            AlreadyExists: `if_absent` and the name is taken, perhaps found out only after all was sent.
            OutcomeUnknown: the last answer was lost; the whole object may exist now or later.
        """
        ...

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The bytes [start, start + length), or all from `start`. A range that reaches past the end is cut there; one
        that begins at or past the end is empty.

        Raises:
            NotFound: no such object.
        """
        ...

    def get_stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes that `get` would return, in pieces of a few MiB. Nothing is asked before the first piece is; end it
        early by closing the iterator (`contextlib.aclosing`).

        Raises, while it is read:
            NotFound: no such object.
            Conflict: the object was replaced or removed since the stream began.
            Corrupt: all bytes came and their checksum is wrong. What was yielded before must not be used.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size without content.

        Raises:
            NotFound: no such object.
        """
        ...

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        """Up to `limit` objects whose keys begin with `prefix` and sort after `start_after`; fewer than `limit` means
        the end.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects, any number; names that do not exist are passed over.

        Raises:
            Unavailable, Invalid: some were not removed; `fields["failed"]` maps each of these keys to why.
        """
        ...

    async def copy(self, source: str, key: str, *, if_absent: bool = False) -> None:
        """Copy an object inside the bucket without its bytes passing through here, atomic as `put` is.

        Raises:
            NotFound: no object `source`.
            AlreadyExists: `if_absent` and `key` is taken, perhaps by the caller's own earlier attempt.
            OutcomeUnknown: the answer was lost; the copy may exist now or later.
        """
        ...

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        """Remove what unfinished `put_stream` calls left under `prefix`: parts of uploads that began more than
        `older_than_ms` milliseconds ago. Returns how many uploads there were. An upload that is still going on and is
        as old fails in its owner's hands, so the age should be a day rather than a minute."""
        ...

    async def create_appendable(self, key: str) -> None:
        """Make an empty object that takes appends: on Azure and OSS only such ones do, on S3 Express every one does.

        Of several creators more than one may succeed (OSS cannot tell them apart while the object is empty): who was
        first, the first `append` at offset 0 decides.

        Raises:
            AlreadyExists: the name is taken, by anything but an empty appendable object.
            OutcomeUnknown: the answer was lost; the object may exist now or later.
            Invalid: this store cannot append.
        """
        ...

    async def append(self, key: str, offset: int, data: bytes) -> None:
        """Append `data` to an existing object of exactly `offset` bytes (S3 Express: `x-amz-write-offset-bytes`; OSS:
        `position`; Azure: `x-ms-blob-condition-appendpos`).

        Raises:
            WrongOffset: the object's size is not `offset`, perhaps through the caller's own earlier attempt;
                `fields["actual"]` is its size where the cloud says it.
            NotFound: no such object (where the cloud would create one at offset 0, the implementation refuses instead).
            OutcomeUnknown: the answer was lost; the bytes may be there now or later.
            Invalid: this store cannot append, or not to this object.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. Further calls are errors."""
        ...
