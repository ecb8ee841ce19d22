"""What is owed of a stream: acked under a former owner, and not in object storage yet. That owner has it in memory, or
whoever recovers its WAL; nobody else can serve it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from dataplane.ledger.state import Span, Stream
from dataplane.stream.batch import Buffer


class ReadOwed(Protocol):
    """Reads from whoever has it."""

    async def __call__(self, stream: Stream, span: Span, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
        """Whole batches of the closed `span`, from the one that holds `offset`, up to `bytes_max`; none when it cannot
        be had now, and one has to wait for its upload."""
        ...


async def unread(stream: Stream, span: Span, offset: int, bytes_max: int, *, minimum_one: bool) -> bytes:
    """`ReadOwed` where nobody can be asked."""
    return b""


def owed_at(stream: Stream, offset: int) -> Span | None:
    """The closed span whose record at `offset` is not in object storage; None where there is none."""
    for span in reversed(stream.spans):
        if span.start <= offset and span.end is not None and offset < span.end:
            return span if span.uploaded <= offset else None
    return None


def fitting(batches: Iterable[tuple[int, Buffer]], end: int, bytes_max: int, *, minimum_one: bool) -> bytes:
    """The first of `batches`, each with the offset behind it, that end at `end` at most and are no more than
    `bytes_max` together; with `minimum_one` the first one however large it is."""
    found: list[Buffer] = []
    for behind, data in batches:
        if behind > end or (len(data) > bytes_max and (found or not minimum_one)):
            break
        found.append(data)
        bytes_max -= len(data)
    return b"".join(found)
