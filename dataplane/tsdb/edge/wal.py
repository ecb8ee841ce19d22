"""The edge's log: what was written and is in no file yet, in segments that go once their rows are in files.

    record = one turn: rows of any tables, whole or not at all after a power cut
    part   = u16 length of the name | u8 deletes | u32 length of the body | name | fingerprint (16) | Arrow IPC batch
    packed = u16 0 | u32 length of the parts | the parts, by zstd: what a turn of hundreds of tables becomes, whose
             messages differ little in their heads

All tables share it: a sync serves whoever waits, and flash sees one stream of writes.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataplane.tsdb.edge.files import Files, remove_quietly
from dataplane.tsdb.edge.record_log import Log, decode, resumes_at

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20
"""A segment is closed at this size; it is removed once all its rows are in files."""
PREFIX = "wal-"
PACKED_FROM_BYTES = 4 << 10
PACKED_TO_BYTES = 8 << 20
"""Of the parts of records that are packed: small ones gain little, and of large ones there would be two copies."""
PACKED_LEVEL = 1
"""Of zstd."""
PACKED_SHARE_MAX = 0.9
"""Of a record's bytes, what it is to be packed to; else it stays as it is."""
_HEAD = struct.Struct("<HBI")
_PACKED = struct.Struct("<HI")
_FINGERPRINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one table in a record. `body`: an Arrow IPC message of one batch."""

    table: str
    fingerprint: str
    deletes: bool
    body: pa.Buffer


def encode_parts(parts: Sequence[Part]) -> list[bytes | pa.Buffer]:
    """A record's payload, in pieces."""
    pieces: list[bytes | pa.Buffer] = []
    for part in parts:
        name = part.table.encode()
        pieces += [_HEAD.pack(len(name), part.deletes, part.body.size), name, part.fingerprint.encode(), part.body]
    size = sum(map(len, pieces))
    if not PACKED_FROM_BYTES <= size <= PACKED_TO_BYTES:
        return pieces
    packed = pa.Codec("zstd", compression_level=PACKED_LEVEL).compress(b"".join(pieces), asbytes=True)
    return [_PACKED.pack(0, size), packed] if len(packed) <= PACKED_SHARE_MAX * size else pieces


def decode_parts(payload: bytes) -> Iterator[Part]:
    """What `encode_parts` made; the payload's CRC has vouched for it."""
    if payload[:2] == bytes(2):
        _, size = _PACKED.unpack_from(payload)
        payload = pa.decompress(payload[_PACKED.size :], size, codec="zstd", asbytes=True)
    at = 0
    while at < len(payload):
        name_bytes, deletes, body_bytes = _HEAD.unpack_from(payload, at)
        name_end = at + _HEAD.size + name_bytes
        body = name_end + _FINGERPRINT_BYTES
        table, fingerprint = payload[at + _HEAD.size : name_end].decode(), payload[name_end:body].decode()
        at = body + body_bytes
        yield Part(table, fingerprint, bool(deletes), pa.py_buffer(payload[body:at]))


class Wal:
    """See the module. Not for use by several threads at once."""

    def __init__(self, files: Files, replay: Callable[[int, Part], None], floor: int, segment_bytes: int) -> None:
        """Open it: `replay` gets every part that is there, with its record's sequence. Sequences up to `floor` are not
        given again: a power cut may have taken their records.

        Raises:
            Full, Unavailable: as the files.
        """
        self._files = files
        self._segment_bytes = segment_bytes
        self.appended_bytes = 0
        """Of records, since it was opened."""
        self._closed: dict[int, int] = {}
        """Closed segments: the first record's sequence and the last's."""
        following = floor + 1
        for first in sorted(int(n.removeprefix(PREFIX)) for n in files.names() if n.startswith(PREFIX)):
            last = _replay_all(first, files.read(_name(first)), replay)
            # A life that was killed leaves rows that are not durable yet, and are shown from here on.
            files.sync(_name(first))
            self._closed[first] = last
            following = max(following, last + 1)
        self._log = self._begin(following)

    @property
    def next(self) -> int:
        """The next record's sequence."""
        return self._log.next

    @property
    def in_doubt(self) -> str | None:
        """As the log's."""
        return self._log.in_doubt

    def append(self, parts: Sequence[Part]) -> int:
        """Write a record, which `sync` makes durable; its sequence.

        Raises:
            Full: no room; nothing was written. Unavailable: the device errs, now or earlier.
        """
        if self._log.size >= self._segment_bytes:
            self._roll()
        before = self._log.size
        sequence = self._log.append(*encode_parts(parts))
        self.appended_bytes += self._log.size - before
        return sequence

    def sync(self) -> None:
        """Make all records durable.

        Raises:
            Unavailable: it cannot be known what is; the log takes nothing more and is to be opened anew.
        """
        self._log.sync()

    def drop_before(self, oldest: int) -> None:
        """Remove closed segments that have nothing from record `oldest` on."""
        over = [first for first, last in self._closed.items() if last < oldest]
        remove_quietly(self._files, [_name(first) for first in over])
        for first in over:
            del self._closed[first]

    def _begin(self, first: int) -> Log:
        self._closed.pop(first, None)
        return Log.cut(self._files, _name(first), first)

    def _roll(self) -> None:
        self._log.sync()
        first = int(self._log.name.removeprefix(PREFIX))
        following = self._begin(self._log.next)
        self._closed[first] = self._log.next - 1
        self._log = following


def _name(first: int) -> str:
    return f"{PREFIX}{first:020d}"


def _replay_all(first: int, data: bytes, replay: Callable[[int, Part], None]) -> int:
    """Hand out a segment's parts; its last record's sequence. What is damaged is said, and what follows it is read: it
    may have been acked."""
    last, at = first - 1, 0
    resumed: tuple[int, int] | None = (0, first)
    while resumed is not None:
        for record in decode(data, resumed[1], resumed[0]):
            for part in decode_parts(record.payload):
                replay(record.sequence, part)
            last, at = record.sequence, record.end
        resumed = resumes_at(data, at, last)
        if resumed is not None:
            log.error("wal-damaged: records %d to %d cannot be read, and others follow", last + 1, resumed[1] - 1)
    if any(data[at:]):
        log.warning("wal-cut: %d bytes behind record %d were not whole", len(data) - at, last)
    return last
