"""How fast the lab's object stores are, each cloud's dialect by itself, client included: two processes, the store and
this one.

*sdk*: through the adapter that everything else uses, with the cloud's own SDK inside; small puts by one client process
and by two. Where that is slower than *raw*, the SDK's own work is the difference: those are the same requests, signed,
written by hand (`raw_objects.py`). Every put is durable when it is answered. In the same run: what the disk and
loopback do at best.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from controlplane.bench.figures import Figure, at_least, at_most
from controlplane.bench.lab import Bench
from controlplane.bench.limits import durable_write_mb_s, loopback_mb_s, syncs_s
from controlplane.bench.objects_client import puts_s
from controlplane.bench.raw_objects import Target, open_target, run_many
from providers.base.clock import Clock, SystemRng
from providers.base.loops import run_loop
from providers.base.registry import StoreAddress, open_store
from providers.lab.launcher import Lab, LabCloud, objects_name
from providers.lab.processes import ProcessTable, stop

T = TypeVar("T")

SMALL_BYTES = 4 << 10
LARGE_BYTES = 32 << 20
SDK_CALLS = 16
SDK_CLIENTS = 2
"""A Python SDK works on one core a process: by one client alone, the other core would have the store's work only."""
RAW_CONNECTIONS = 32
LARGE_AT_ONCE = 2
RUN_MS = 2_000
WARM_UP_MS = 500
CALLS_MIN = 6
"""However slow: below that there is no figure."""
LARGE_KEYS = 4
"""Large objects are overwritten in turn, so that a run needs little room."""
FIRST_BYTES = 500
START_MS_MAX = 30_000

SMALL_PUTS_S_MIN = 1_500
LARGE_MB_S_MIN = 400
FIRST_BYTE_MS_MAX = 1.5

CLOUDS = (
    LabCloud("aws", "aws", "us-east-1", ("use1-az4",)),
    LabCloud("azure", "azure", "eastus", ("1",)),
    LabCloud("gcp", "gcp", "us-central1", ("us-central1-a",)),
    LabCloud("aliyun", "aliyun", "cn-hangzhou", ("cn-hangzhou-h",)),
)


def objects(bench: Bench) -> list[Figure]:
    """Small puts, large puts and gets, first bytes, of every dialect."""
    root = bench.state_dir.root
    root.mkdir(parents=True, exist_ok=True)
    written_mb_s = durable_write_mb_s(root, 8 << 20, bench.clock)
    figures = [
        Figure("machine disk_8_MiB_direct_dsync_writes", _rounded(written_mb_s), "MB/s"),
        Figure("machine disk_4_KiB_write_and_fdatasync", _rounded(syncs_s(root, SMALL_BYTES, bench.clock)), "syncs/s"),
        Figure("machine loopback_1_MiB_pieces", _rounded(loopback_mb_s(1 << 20, bench.clock)), "MB/s"),
    ]
    for cloud in CLOUDS:
        with running_store(root, cloud, bench.clock) as (addresses, pid):
            for label, address in addresses.items():
                figures += run_loop(_figures(label, address, pid, bench.clock))
    return figures


@contextlib.contextmanager
def running_store(root: Path, cloud: LabCloud, clock: Clock) -> Iterator[tuple[dict[str, StoreAddress], int]]:
    """The cloud's object store, by itself, removed at the end: its buckets by label, and its process."""
    folder = root / "objects"
    shutil.rmtree(folder, ignore_errors=True)
    lab = Lab(folder, clock=clock, rng=SystemRng())
    try:
        lab.spawn(cloud)
        address = lab.wait(cloud, deadline_ms=clock.monotonic_ms() + START_MS_MAX)
        express = {f"{cloud.name}-express": bucket for bucket in address.express.values()}
        record = ProcessTable(folder).alive(objects_name(cloud.name))
        yield {cloud.name: address.bucket, **express}, record.pid if record is not None else 0
    finally:
        stop(ProcessTable(folder).everything())
        shutil.rmtree(folder, ignore_errors=True)


async def _figures(label: str, address: StoreAddress, pid: int, clock: Clock) -> list[Figure]:
    small, large = os.urandom(SMALL_BYTES), os.urandom(LARGE_BYTES)  # noqa: TID251 -- content only
    store = open_store(address, clock=clock, rng=SystemRng())
    target = await open_target(address, clock)
    await store.ensure_bucket()
    try:
        sdk, raw = f"sdk {SDK_CALLS} at once", f"raw {RAW_CONNECTIONS} connections"
        cpu = _Cpu(pid)
        puts_sdk = await _sdk_rate(clock, SDK_CALLS, cpu.counted(lambda i: store.put(f"sdk/{i:08}", small)))
        sdk_us, _ = cpu.each_us()
        puts_raw = await _raw_rate(
            target, clock, RAW_CONNECTIONS, cpu.counted(lambda i: target.put(f"raw/{i:08}", small))
        )
        raw_us, store_us = cpu.each_us()
        puts_two = await asyncio.to_thread(
            puts_s,
            address,
            clock,
            clients=SDK_CLIENTS,
            at_once=SDK_CALLS // SDK_CLIENTS,
            size=SMALL_BYTES,
            keys=100_000,
            warm_up_ms=WARM_UP_MS,
            run_ms=RUN_MS,
        )
        put_sdk = await _sdk_rate(clock, LARGE_AT_ONCE, lambda i: store.put(f"large/{i % LARGE_KEYS}", large))
        put_raw = await _raw_rate(target, clock, LARGE_AT_ONCE, lambda i: target.put(f"large/{i % LARGE_KEYS}", large))
        get_sdk = await _sdk_rate(clock, 1, lambda i: store.get(f"large/{i % LARGE_KEYS}"))
        get_raw = await _raw_rate(target, clock, 1, lambda i: [target.get(f"large/{i % LARGE_KEYS}")])
        first = sorted(await run_many(target, ((lambda: [target.get("raw/00000000")]) for _ in range(FIRST_BYTES)), 1))
        whole = sorted([await _took_ms(clock, lambda: store.get("raw/00000000")) for _ in range(FIRST_BYTES)])
    finally:
        await store.close()
    mb = LARGE_BYTES / 1e6
    return [
        at_least(f"{label} small_durable_puts, {sdk}", puts_sdk, "puts/s", SMALL_PUTS_S_MIN),
        at_least(f"{label} small_durable_puts, sdk {SDK_CLIENTS} processes", puts_two, "puts/s", SMALL_PUTS_S_MIN),
        at_least(f"{label} small_durable_puts, {raw}", puts_raw, "puts/s", SMALL_PUTS_S_MIN),
        Figure(f"{label} processor_time_of_a_small_put, in the client, sdk", sdk_us, "us"),
        Figure(f"{label} processor_time_of_a_small_put, in the client, raw", raw_us, "us"),
        Figure(f"{label} processor_time_of_a_small_put, in the store", store_us, "us"),
        at_least(f"{label} large_durable_put, sdk {LARGE_AT_ONCE} at once", put_sdk * mb, "MB/s", LARGE_MB_S_MIN),
        at_least(f"{label} large_durable_put, raw {LARGE_AT_ONCE} connections", put_raw * mb, "MB/s", LARGE_MB_S_MIN),
        Figure(f"{label} large_get, sdk", _rounded(get_sdk * mb), "MB/s"),
        Figure(f"{label} large_get, raw", _rounded(get_raw * mb), "MB/s"),
        at_most(f"{label} first_byte_p50, raw", first[FIRST_BYTES // 2], "ms", FIRST_BYTE_MS_MAX),
        Figure(f"{label} first_byte_p99, raw", _rounded(first[FIRST_BYTES * 99 // 100]), "ms"),
        Figure(f"{label} small_get_p50, sdk", _rounded(whole[FIRST_BYTES // 2]), "ms"),
        Figure(f"{label} small_get_p99, sdk", _rounded(whole[FIRST_BYTES * 99 // 100]), "ms"),
    ]


class _Cpu:
    """Processor time per call, of this process and of the store's: what is left of a figure when others use the cores
    too."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._calls = 0
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        own = os.times()
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime and stime of proc(5)
        return own.user + own.system, ticks / os.sysconf("SC_CLK_TCK")

    def counted(self, call: Callable[[int], T]) -> Callable[[int], T]:
        def counting(number: int) -> T:
            self._calls += 1
            return call(number)

        return counting

    def each_us(self) -> tuple[float, float]:
        """Microseconds a call here and in the store, since the last time."""
        now, calls = self._now(), max(self._calls, 1)
        own, store = ((late - early) * 1e6 / calls for late, early in zip(now, self._began, strict=True))
        self._began, self._calls = now, 0
        return round(own), round(store)


async def _sdk_rate(clock: Clock, at_once: int, call: Callable[[int], Awaitable[object]]) -> float:
    """Calls a second, `at_once` under way; what ends while it warms up is not counted."""
    numbers = itertools.count()
    begins_ms = clock.monotonic_ms() + WARM_UP_MS
    ends_ms = begins_ms + RUN_MS
    ended: list[float] = []

    async def worker() -> None:
        while clock.monotonic_ms() < ends_ms or len(ended) < CALLS_MIN:
            await call(next(numbers))
            ended.append(clock.monotonic_ms())

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return _rate(ended, begins_ms)


async def _raw_rate(target: Target, clock: Clock, connections: int, make: Callable[[int], Sequence[bytes]]) -> float:
    begins_ms = clock.monotonic_ms() + WARM_UP_MS
    ends_ms = begins_ms + RUN_MS
    ended: list[float] = []

    def requests() -> Iterator[Callable[[], Sequence[bytes]]]:
        for number in itertools.count():
            if clock.monotonic_ms() >= ends_ms and len(ended) >= CALLS_MIN:
                return
            yield lambda number=number: make(number)  # type: ignore[misc]

    await run_many(target, requests(), connections, ended=ended)
    return _rate(ended, begins_ms)


def _rate(ended_ms: Sequence[float], begins_ms: float) -> float:
    """Per second, from the first end after the warm-up to the last."""
    counted = sorted(at_ms for at_ms in ended_ms if at_ms >= begins_ms)
    took_ms = counted[-1] - counted[0] if len(counted) > 1 else 0.0
    return (len(counted) - 1) * 1000 / took_ms if took_ms else 0.0


async def _took_ms(clock: Clock, call: Callable[[], Awaitable[object]]) -> float:
    at_ms = clock.monotonic_ms()
    await call()
    return clock.monotonic_ms() - at_ms


def _rounded(value: float) -> float:
    return round(value, 3)
