"""The families of a database's own counters, beside those of its HTTP requests. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dataplane.metrics.page import Page
from dataplane.metrics.process import ProcessFamilies, write_stores
from dataplane.tsdb.protocols.http import Figures
from providers.base.blocking import health_of_open_stores
from providers.base.clock import Clock

Described = tuple[str, str, str]
"""Field of a counters' dataclass, name of the family without its prefix, and what it means. A name that ends in
`_total` is a counter's; of one that ends in `_seconds` the field is in milliseconds."""

CLOUD: tuple[Described, ...] = (
    ("rows", "rows_total", "Rows written since this node owns the database."),
    ("flushes", "flushes_total", "Flushes of rows to files since this node owns the database."),
    ("file_bytes", "file_bytes_total", "Bytes of files flushed since this node owns the database."),
    ("refused", "refused_total", "Writes refused since this node owns the database."),
)
CLOUD_TOPIC: tuple[Described, ...] = (
    ("records", "topic_records_total", "Records taken from topics."),
    ("rows", "topic_rows_total", "Rows taken from topics."),
    ("refused", "topic_refused_total", "Records of topics passed over; the reasons are in the bucket's quarantine."),
)
CLOUD_CACHE: tuple[Described, ...] = (
    ("requests", "cache_requests_total", "Reads of files that queries sent to the bucket."),
    ("fetched_bytes", "cache_fetched_bytes_total", "Bytes of files that queries fetched of the bucket."),
    ("hits", "cache_hits_total", "Reads of files that the local disk had."),
    ("dropped", "cache_dropped_total", "Files whose cached bytes failed their check, and were fetched anew."),
)
EDGE: tuple[Described, ...] = (
    ("rows", "rows_total", "Rows taken."),
    ("row_bytes", "row_bytes_total", "Bytes of rows taken."),
    ("log_bytes", "log_bytes_total", "Bytes written to the log."),
    ("syncs", "syncs_total", "Syncs of the log."),
    ("flushes", "flushes_total", "Flushes of rows to files."),
    ("file_bytes", "file_bytes_total", "Bytes of files flushed."),
    ("refused", "refused_total", "Writes refused."),
)
EDGE_RING: tuple[Described, ...] = (
    ("connections", "ring_connections_total", "Writers that have come to the ring."),
    ("turns", "ring_turns_total", "Turns in which something was read of a ring."),
    ("records", "ring_records_total", "Records read of rings."),
    ("rows", "ring_rows_total", "Rows read of rings."),
    ("values", "ring_values_total", "Values of all columns read of rings."),
    ("refused_rows", "ring_refused_rows_total", "Rows of rings refused."),
    ("waits", "ring_waits_total", "Times that rings had to wait, for the database was full."),
)
EDGE_UPLOAD: tuple[Described, ...] = (
    ("bytes_sent", "upload_sent_bytes_total", "Bytes uploaded, what was sent in vain included."),
    ("requests", "upload_requests_total", "Requests of uploads sent."),
    ("retries", "upload_retries_total", "Requests of uploads sent again after a failure."),
    ("failed_turns", "upload_failed_turns_total", "Turns of the upload that ended for want of the far side."),
    ("files_sent", "upload_files_sent_total", "Files sent."),
    ("batches", "upload_batches_total", "Batches of files sent."),
    ("batches_imported", "upload_batches_imported_total", "Batches that the cloud has taken."),
    ("batches_refused", "upload_batches_refused_total", "Batches that the cloud has refused."),
    ("files_acked", "upload_files_acked_total", "Files that the cloud has."),
    ("bytes_acked", "upload_acked_bytes_total", "Bytes of files that the cloud has."),
    ("files_renamed", "upload_files_renamed_total", "Files sent again under a fresh id."),
    ("files_dropped", "upload_files_dropped_total", "Files set aside and removed at last, for there were too many."),
    ("waiting_files", "upload_waiting_files", "Files that the far side is not known to have."),
    ("waiting_bytes", "upload_waiting_bytes", "Bytes of files that the far side is not known to have."),
    ("oldest_unacked_ms", "upload_oldest_waiting_seconds", "How long the oldest of the waiting files has waited."),
    ("open_batches", "upload_open_batches", "Batches without an answer yet."),
    ("aside_files", "upload_aside_files", "Files set aside, for the cloud refuses them."),
    ("aside_bytes", "upload_aside_bytes", "Bytes of files set aside."),
    ("files_aside", "upload_kept_files", "Files kept on the flash, for the topic never takes them."),
)


def write_counters(page: Page, prefix: str, described: Iterable[Described], counters: Any) -> None:
    """Add the families of one counters' dataclass; None: there is none now, and no samples. Fields that it does not
    have are told without samples."""
    for field, name, about in described:
        family = page.counter if name.endswith("_total") else page.gauge
        value = getattr(counters, field, None)
        if value is not None and name.endswith("_seconds"):
            value /= 1000
        family(prefix + name, about, [] if value is None else [({}, float(value))])


def with_process(figures: Figures, clock: Clock) -> Figures:
    """The same, and what every process tells."""
    process = ProcessFamilies(clock.wall_ms())

    def write(page: Page) -> None:
        figures(page)
        write_stores(page, health_of_open_stores())
        process.write(page)

    return write
