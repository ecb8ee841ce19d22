"""What a reader of the newest records notices while somebody else reads a backlog, and over ten minutes of load."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from controlplane.bench.figures import Figure, beside
from controlplane.bench.fill import fill
from controlplane.bench.lab import REGIONAL, Bench, one_cloud
from controlplane.bench.ours import Ours
from controlplane.bench.tail_client import RECORD_BYTES
from controlplane.drill.probe import create_topic
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Unavailable
from providers.lab.processes import python

TAIL, BACKLOG = "tail", "backlog"
RATE = 1_000
ALONE_S = 20
WITHOUT_COMPACTION = "brokers: 1, settings: {compactionIntervalMs: 86400000}"
"""Compaction of what was filled in takes minutes, and may fall into one of the windows that are compared."""
BACKLOG_LARGE = 10
"""The backlog is this many times the bench's large partition: 10 GiB unless asked otherwise."""
STEADY_S = 600
STEADY_RATE = 10_000
"""1 KiB records a second: 10 MB/s."""
SAMPLE_MS = 10_000
READER_NICE = 10
"""The backlog's reader takes all of the processor that it can get. It shares two cores with the broker and the tail's
client, and what is asked is what the broker lets the tail feel of it."""
STALL_S = 60


def catch_up(bench: Bench) -> list[Figure]:
    """The tail's latency while a consumer reads a backlog from object storage, beside the tail alone: before it, and
    after it."""
    with bench.lab(one_cloud(REGIONAL, WITHOUT_COMPACTION)) as (clouds, _):
        ours = Ours.of(clouds)
        bootstrap = ours.bootstrap
        create_topic(bootstrap, TAIL, 1)
        create_topic(bootstrap, BACKLOG, 1)
        size = BACKLOG_LARGE * bench.large_bytes
        fill(bootstrap, BACKLOG, size)
        ours.drain(bench.clock)
        alone = [_alone(bootstrap)]
        with (
            _tail(bootstrap, RATE, None) as running,
            ThreadPoolExecutor(1, initializer=os.setpriority, initargs=(os.PRIO_PROCESS, 0, READER_NICE)) as reader,
        ):
            read, took_s = reader.submit(_read_all, bootstrap, size, bench.clock).result()
            during = _finish(running)
        alone.append(_alone(bootstrap))
        p99_ms, p50_ms = (statistics.mean(found[name] for found in alone) for name in ("p99_ms", "p50_ms"))
        return [
            beside("tail_p99_during_catch-up", during["p99_ms"], "ms", "alone", p99_ms, at_most=1.5),
            beside("tail_p50_during_catch-up", during["p50_ms"], "ms", "alone", p50_ms),
            Figure(f"catch-up_{read >> 20}_MiB", round(read / 1e6 / took_s, 1), "MB/s"),
        ]


def steady(bench: Bench) -> list[Figure]:
    """Ten minutes of 10 MB/s with uploads running: the broker's memory, and the tail's latency, at the end beside the
    beginning."""
    with bench.lab(one_cloud(REGIONAL, "brokers: 1")) as (clouds, _):
        bootstrap: str = clouds[0]["bootstrapServers"]
        create_topic(bootstrap, TAIL, 1)
        pid = int(clouds[0]["brokers"][0]["pid"])
        resident = []
        with _tail(bootstrap, STEADY_RATE, STEADY_S) as running:
            for _ in range(STEADY_S * 1000 // SAMPLE_MS):
                sleep_blocking_ms(SAMPLE_MS)
                resident.append(_resident_mib(pid))
            found = _finish(running)
        # Caches fill in the first minutes; what grows after that would go on growing.
        middle = len(resident) // 2
        return [
            Figure("steady_MB/s", round(found["records"] * RECORD_BYTES / 1e6 / STEADY_S, 2), "MB/s"),
            beside("resident_at_the_end", resident[-1], "MiB", "half-way", resident[middle], at_most=1.1),
            beside("tail_p99_last_minute", found["last_p99_ms"], "ms", "second minute", found["second_p99_ms"]),
        ]


def _alone(bootstrap: str) -> dict[str, float]:
    with _tail(bootstrap, RATE, ALONE_S) as running:
        return _finish(running)


@contextlib.contextmanager
def _tail(bootstrap: str, rate: int, seconds: int | None) -> Iterator[subprocess.Popen[str]]:
    options = ["--bootstrap", bootstrap, "--topic", TAIL, "--rate", str(rate), "--seconds", str(seconds or 0)]
    command = python("controlplane.bench.tail_client", *options)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()  # of a bench that was ended


def _finish(running: subprocess.Popen[str]) -> dict[str, float]:
    """Its result, once its time is over; at once if it was given none."""
    out, _ = running.communicate()
    if running.returncode:
        raise Unavailable(f"the tail's client failed: {out[-200:]}")
    result: dict[str, float] = json.loads(out)
    return result


def _read_all(bootstrap: str, size: int, clock: Clock) -> tuple[int, float]:
    """Read the whole backlog from its first record: bytes, seconds."""
    settings: Mapping[str, Any] = {
        "bootstrap.servers": bootstrap,
        "group.id": "catch-up",
        "enable.auto.commit": False,
        "queued.max.messages.kbytes": 64 << 10,
        "log_level": 0,
    }
    consumer = Consumer(dict(settings))
    try:
        consumer.assign([TopicPartition(BACKLOG, 0, 0)])
        _, end = consumer.get_watermark_offsets(TopicPartition(BACKLOG, 0), timeout=30)
        read, at = 0, 0
        began_ms = last_ms = clock.monotonic_ms()
        while at < end:
            for message in consumer.consume(5_000, timeout=1.0):
                if message.error():
                    raise Unavailable(f"the backlog could not be read: {message.error()}")
                read, at = read + len(message.value() or b""), (message.offset() or 0) + 1
                last_ms = clock.monotonic_ms()
            if clock.monotonic_ms() - last_ms > STALL_S * 1000:
                raise Unavailable(f"nothing of the backlog came for {STALL_S} s, {read} of {size} bytes read")
        return read, (clock.monotonic_ms() - began_ms) / 1000
    finally:
        consumer.close()


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
