"""What the data plane needs of an object store.

One protocol, one conformance suite (`tests/conformance/`), one implementation a cloud. Keys are `/`-separated ASCII
paths without a leading
slash. Everything is bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing or a head request shows it. `size` in bytes."""

    key: str
    size: int


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
    7. `list` returns keys in lexicographic order, except on S3 Express, which lists in no order and only with prefixes
       that end in `/`.

    Every method may raise `Unavailable` (nothing was changed) or `Invalid` (bad key, bad arguments, credentials
    refused).
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

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The bytes [start, start + length), or all from `start`. A range that reaches past the end is cut there; one
        that begins at or past the end is empty.

        Raises:
            NotFound: no such object.
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
        """Remove the objects; names that do not exist are passed over."""
        ...

    async def append(self, key: str, offset: int, data: bytes) -> None:
        """Append `data` to an existing object of exactly `offset` bytes (S3 Express: `x-amz-write-offset-bytes`).

        Raises:
            WrongOffset: the object's size is not `offset`, perhaps through the caller's own earlier attempt.
            NotFound: no such object (where the cloud would create one at offset 0, the implementation refuses instead).
            OutcomeUnknown: the answer was lost; the bytes may be there now or later.
            Invalid: this store cannot append.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads. Further calls are errors."""
        ...
