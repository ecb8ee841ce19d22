"""What every process tells: itself, by the names that dashboards know, and the object stores that it has open."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path

from dataplane.metrics.page import Page, Sample
from providers.base.blocking import StoreHealth

PAGE_BYTES = resource.getpagesize()


class ProcessFamilies:
    """`process_*`. `began_wall_ms`: when the process did."""

    def __init__(self, began_wall_ms: int) -> None:
        self._began_s = began_wall_ms / 1000

    def write(self, page: Page) -> None:
        """Add them. What this system does not say is left out."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        page.counter("process_cpu_seconds_total", "Processor time of the process.", used.ru_utime + used.ru_stime)
        page.gauge("process_resident_memory_bytes", "Memory of the process that is resident.", _resident())
        page.gauge("process_open_fds", "Files and sockets that the process has open.", _descriptors())
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        page.gauge(
            "process_max_fds",
            "How many files and sockets the process may have open.",
            float("inf") if limit < 0 else limit,
        )
        page.gauge("process_start_time_seconds", "When the process began, in seconds since 1970.", self._began_s)


def _resident() -> Sequence[Sample]:
    try:
        return [({}, int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES)]
    except (OSError, ValueError, IndexError):
        return []


def _descriptors() -> Sequence[Sample]:
    try:
        return [({}, sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1)]  # this look has one open itself
    except OSError:
        return []


def write_stores(page: Page, stores: Sequence[StoreHealth]) -> None:
    """The object stores' families; stores of one name count together."""

    def each(value: Callable[[StoreHealth], float]) -> list[Sample]:
        sums: dict[str, float] = {}
        for store in stores:
            sums[store.name] = sums.get(store.name, 0) + value(store)
        return [({"store": name}, total) for name, total in sums.items()]

    failing = {store.name for store in stores if store.breaker != "closed"}
    page.counter(
        "yunhe_object_store_requests_total",
        "Requests sent, repeats included.",
        each(lambda store: store.requests),
    )
    page.counter(
        "yunhe_object_store_repeats_total", "Requests sent again after a failure.", each(lambda store: store.repeats)
    )
    page.counter(
        "yunhe_object_store_failures_total",
        "Requests without an answer in time, or that the store failed or throttled.",
        each(lambda store: store.failed),
    )
    page.counter(
        "yunhe_object_store_unsent_total",
        "Requests not sent, because the store had been failing, or of our own limit of requests a second.",
        each(lambda store: store.refused),
    )
    page.gauge(
        "yunhe_object_store_in_flight", "Requests to object stores under way.", each(lambda store: store.in_flight)
    )
    page.gauge(
        "yunhe_object_store_breaker_open",
        "1 while a store that has been failing is left alone, and one request at a time asks whether it is well.",
        [({"store": name}, name in failing) for name in sorted({store.name for store in stores})],
    )
