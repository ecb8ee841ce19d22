"""Files: what is known of an SST without opening it, and the batch of them that an edge signs.

    <database>/sst/<table>/<file id>.parquet          an SST; written once, under an id that nobody else picks
    <database>/shipped/<edge>/<number, 20 digits>     a signed batch, by put-if-absent: consecutive from 1, so that
                                                      nobody lists; the next absent one is where an edge has got to
    <database>/acked/<edge>/<number>                  what became of that batch, for the edge to read
    <database>/quarantine/<edge>/<number>             why that batch was not taken

An edge's SSTs are put where the cloud reads them: an import moves no bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dataplane.contract.codec import from_json, to_json
from dataplane.tsdb.schema.tables import TableSchema
from providers.base.errors import Invalid

BATCH_FORMAT = 1
BATCH_FILES_MAX = 2_000
BATCH_BYTES_MAX = 3 << 20
"""Of a signed batch: what it becomes has to fit into one manifest entry."""
FRESH_ID = "it needs a fresh id"
"""How a file's reason ends where not the file is at fault but what lies in the bucket, or its id: its edge may put it
there once more under another id."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """An SST. Times are in the unit of the table's time index, both ends included."""

    file_id: str
    """32 hex digits. An import is idempotent by it."""
    table: str
    fingerprint: str
    """Of the schema that it was written under (`TableSchema.fingerprint`)."""
    rows: int
    time_min: int
    time_max: int
    size: int
    """Bytes of the whole file."""
    footer_bytes: int
    """How many of the last bytes are Parquet's footer, its length and magic included: one ranged read gets it."""
    sha256: str
    """Of the whole file, 64 hex digits."""
    origin: str
    """The edge, or the cloud database's node, that wrote it."""
    footer_crc32c: int | None = None
    """Of the last `footer_bytes` bytes: pages have checksums of their own, the footer that names them has not. None:
    another writer's file, of which it is not known."""
    series: int = 0
    """How many series it holds, 0 where that was not counted."""
    series_min: str = ""
    """Smallest and greatest series in it, as the tags' text joined by commas, for pruning; both empty: not known."""
    series_max: str = ""
    deletes: bool = False
    """Whether rows in it delete others (column `__op_type`)."""
    level: int = 0
    """0: flushed; 1: compacted."""
    sequence: int = 0
    """Order of writing among the table's files: of rows with the same series and time the greatest wins. Given by the
    manifest at the commit; 0 before."""


@dataclass(frozen=True, slots=True)
class ShippedBatch:
    """What an edge says it has put into the bucket: files with all their checksums, and the schemas that they were
    written under. One batch becomes one manifest entry, or none of it does."""

    database: str
    edge: str
    number: int
    """From 1, consecutive: its name in the bucket."""
    made_ms: int
    """The edge's own clock. For reports: a vehicle's clock may be years off."""
    files: tuple[FileMeta, ...]
    schemas: tuple[TableSchema, ...]
    format: int = BATCH_FORMAT


def sst_key(database: str, table: str, file_id: str) -> str:
    """Where an SST is."""
    return f"{sst_prefix(database)}{_safe(table)}/{file_id}.parquet"


def sst_prefix(database: str) -> str:
    """What all keys of SSTs begin with."""
    return f"{database}/sst/"


def file_of(database: str, key: str) -> tuple[str, str] | None:
    """Table and file id of an SST's key; None: it is no such key."""
    rest = key.removeprefix(sst_prefix(database))
    segment, slash, name = rest.partition("/")
    if rest == key or not slash or not name.endswith(".parquet"):
        return None
    return unquote(segment.replace("=", "%")), name.removesuffix(".parquet")


def batch_key(database: str, edge: str, number: int) -> str:
    """Where an edge's signed batch is."""
    return _numbered(database, "shipped", edge, number)


def ack_key(database: str, edge: str, number: int) -> str:
    """Where an edge reads what became of its batch."""
    return _numbered(database, "acked", edge, number)


def numbered_prefixes(database: str, edge: str) -> tuple[str, str]:
    """What the keys of an edge's batches, and of the acks to them, begin with."""
    return batch_key(database, edge, 0)[:-20], ack_key(database, edge, 0)[:-20]


def quarantine_key(database: str, edge: str, number: int) -> str:
    """Where a refused batch's reasons are."""
    return _numbered(database, "quarantine", edge, number)


def topic_quarantine_key(database: str, topic: str, partition: int, offset: int) -> str:
    """Where the reasons are for records of a partition that were passed over, the first of them at `offset`."""
    return f"{database}/quarantine/topic={_safe(topic)}/{partition}/{offset:020d}"


def _numbered(database: str, what: str, edge: str, number: int) -> str:
    return f"{database}/{what}/{_safe(edge)}/{number:020d}"


def _safe(name: str) -> str:
    """As one segment of a key, in the characters that every cloud takes."""
    return quote(name, safe="-_.").replace("%", "=")


def ack(number: int, refused: str | None = None, files: Mapping[str, str] | None = None) -> bytes:
    """What lies under `ack_key`: `outcome` is `imported`, and each file is in the database, or `refused`, and none is.
    `files`: of those at fault, why; the others may be shipped again under the same ids, in another batch."""
    outcome = "imported" if refused is None else "refused"
    return json.dumps(
        {"number": number, "outcome": outcome, "reason": refused or "", "files": dict(files or {})}
    ).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cloud says of a batch. `refused`: why none of it was taken; `files`: of those at fault, why."""

    refused: str | None
    files: Mapping[str, str]


def answer(data: bytes, number: int) -> Answer:
    """What `ack` made.

    Raises:
        Invalid: it is no ack of that batch.
    """
    try:
        plain = json.loads(data)
        outcome = {"imported": None, "refused": str(plain["reason"])}[plain["outcome"]]
        files = {str(name): str(why) for name, why in plain["files"].items()}
        if plain["number"] != number:
            raise KeyError(plain["number"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"what lies under the ack of batch {number} is none: {data[:100]!r}") from error
    return Answer(outcome, files)


def signed(batch: ShippedBatch, key: Ed25519PrivateKey) -> bytes:
    """The batch as it lies in the bucket: a line of JSON with the signature, then the signed bytes themselves, so that
    nobody has to agree on a canonical form.

    Raises:
        Invalid: more than `BATCH_FILES_MAX` files, or none.
    """
    if not 0 < len(batch.files) <= BATCH_FILES_MAX:
        raise Invalid(f"a batch has 1 to {BATCH_FILES_MAX} files, not {len(batch.files)}")
    body = to_json(batch)
    return _signature_line(key.sign(body)) + b"\n" + body


def _signature_line(signature: bytes) -> bytes:
    return json.dumps({"ed25519": signature.hex()}).encode()


def opened(data: bytes, key: Ed25519PublicKey, database: str, edge: str, number: int) -> ShippedBatch:
    """The batch in `data`, once `key` has vouched for it and it says of itself what its name says.

    Raises:
        Invalid: a signature that is not of `key`, bytes that are no batch, another database's, edge's or number's.
    """
    head, newline, body = data.partition(b"\n")
    try:
        signature = bytes.fromhex(json.loads(head)["ed25519"])
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"batch {number} of edge {edge!r} carries no signature") from error
    if head != _signature_line(signature):  # hex digits have two cases: every flipped bit is found, this one as well
        raise Invalid(f"batch {number} of edge {edge!r} carries its signature in another form than it was written in")
    try:
        key.verify(signature, body)
    except InvalidSignature as error:
        raise Invalid(
            f"batch {number} of edge {edge!r} is not signed with that edge's key",
            hint="the file was changed, or another vehicle wrote under this name",
        ) from error
    batch = from_json(ShippedBatch, body)
    claimed = (batch.database, batch.edge, batch.number)
    if not newline or claimed != (database, edge, number):
        raise Invalid(f"a batch of {claimed} lies under the name of {(database, edge, number)}")
    if batch.format != BATCH_FORMAT:
        raise Invalid(f"batch {number} of edge {edge!r} has format {batch.format}, and this code knows {BATCH_FORMAT}")
    return batch
