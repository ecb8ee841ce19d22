"""What an edge's upload may be told, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.contract.database import UploadSpec
from dataplane.tsdb.edge.uplink import Tries
from dataplane.tsdb.schema.files import BATCH_FILES_MAX
from providers.base.errors import Invalid


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """Of one edge."""

    database: str
    """The cloud database: its prefix in the bucket."""
    bytes_per_s: int | None = None
    """Cap on what is sent, all requests together; None: what the line takes. A request of up to 8 MiB goes out at the
    line's speed once its bytes are due."""
    interval_ms: float = 1_000
    """Between two looks at what is to be sent, and at acks; and how long a file that is sent waits for others before
    its batch is closed."""
    batch_files_max: int = 200
    batch_bytes_max: int = 64 << 20
    batches_open_max: int = 16
    """Batches without an answer: while the cloud does not import, files stay on the flash, and are not sent either."""
    files_at_once: int = 4
    keep_local_ms: int = 0
    """How long a file stays on the flash after the cloud's ack, by the wall clock."""
    aside_bytes_max: int = 64 << 20
    """Files that the cloud refuses are kept up to so many bytes; the oldest go first, each with a line in the log."""
    answer_ms_max: float = 10_000
    """Longest pause between two questions for an ack that does not come."""
    refused_ms_max: float = 300_000
    """Longest pause after a batch that was refused without naming a file: somebody has to mend something."""
    failed_ms_max: float = 60_000
    """Longest pause after a turn that failed."""
    copies_max: int = 3
    """Times that a file is sent under a fresh id."""
    tries: Tries = field(default_factory=Tries)

    def __post_init__(self) -> None:
        """Raises Invalid."""
        if not 1 <= self.batch_files_max <= BATCH_FILES_MAX:
            raise Invalid(f"a batch has 1 to {BATCH_FILES_MAX} files, not {self.batch_files_max}")
        if self.interval_ms < 1:
            raise Invalid(f"an interval of {self.interval_ms} ms leaves no pause")
        if self.bytes_per_s is not None and self.bytes_per_s < 1:
            raise Invalid(f"a cap of {self.bytes_per_s} bytes a second sends nothing", hint="leave it out for no cap")

    @classmethod
    def of(cls, spec: UploadSpec) -> UploadSettings:
        """As the contract has them."""
        return cls(
            database=spec.database,
            bytes_per_s=spec.bytes_per_s,
            interval_ms=spec.interval_ms,
            batch_files_max=spec.batch_files_max,
            keep_local_ms=spec.keep_local_ms,
        )


@dataclass(slots=True)
class ShipCounters:
    """Since the start, but for those that say `now`."""

    bytes_sent: int = 0
    """On the wire, with `uplink.REQUEST_BYTES` a request, and with what was sent in vain."""
    requests: int = 0
    retries: int = 0
    failed_turns: int = 0
    files_sent: int = 0
    batches: int = 0
    batches_imported: int = 0
    batches_refused: int = 0
    files_acked: int = 0
    bytes_acked: int = 0
    """Of files that the cloud has."""
    files_renamed: int = 0
    """Sent again under a fresh id."""
    files_dropped: int = 0
    """Set aside, and removed at last, for there were too many."""
    waiting_files: int = 0
    """Now, that the cloud is not known to have."""
    waiting_bytes: int = 0
    aside_files: int = 0
    """Now."""
    aside_bytes: int = 0
    open_batches: int = 0
    """Now, without an answer."""
    oldest_unacked_ms: float = 0.0
    """Now: how long the oldest waiting file is known; one of an earlier life since the start."""
