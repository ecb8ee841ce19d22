"""A client of `yunhe bench lab` as a process of its own, so that an SDK has more than one interpreter to work in:
`python -m controlplane.bench.objects_client` with what it is to do as one JSON line on standard input.

It opens the store, says `ready`, waits for a line with the two moments (milliseconds of the machine's monotonic clock)
between which calls are counted, and says what it counted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from providers.base.clock import Clock, SystemClock, SystemRng
from providers.base.errors import Unavailable
from providers.base.loops import run_loop
from providers.base.registry import StoreAddress, open_store
from providers.lab.processes import python


async def _serve(task: dict[str, Any], clock: Clock) -> None:
    store = open_store(StoreAddress(**task["address"]), clock=clock, rng=SystemRng())
    data = os.urandom(task["size"])  # noqa: TID251 -- content only; nothing depends on it
    name, keys = f"{task['size']}/{os.getpid()}", task["keys"]
    await store.put(f"{name}/0", data)
    print("ready", flush=True)
    begins_ms, ends_ms = json.loads(sys.stdin.readline())
    numbers = itertools.count()
    ended: list[float] = []

    async def worker() -> None:
        while clock.monotonic_ms() < ends_ms:
            await store.put(f"{name}/{next(numbers) % keys}", data)
            ended.append(clock.monotonic_ms())

    await asyncio.gather(*(worker() for _ in range(task["at_once"])))
    await store.close()
    print(json.dumps({"counted": sum(begins_ms <= at_ms < ends_ms for at_ms in ended)}), flush=True)


def puts_s(
    address: StoreAddress,
    clock: Clock,
    *,
    clients: int,
    at_once: int,
    size: int,
    keys: int,
    warm_up_ms: float,
    run_ms: float,
) -> float:
    """Puts a second by so many client processes through the cloud's SDK, each with `at_once` under way.

    Raises:
        Unavailable: a client failed; it said why on standard error.
    """
    task = json.dumps({"address": asdict(address), "at_once": at_once, "size": size, "keys": keys})
    argv = python("controlplane.bench.objects_client")
    running = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    try:
        for client in running:
            _say(client, task)
        for client in running:
            if _hear(client) != "ready":
                raise Unavailable("a client of the benchmark did not get ready")
        begins_ms = clock.monotonic_ms() + warm_up_ms
        for client in running:
            _say(client, json.dumps([begins_ms, begins_ms + run_ms]))
        heard: Sequence[dict[str, Any]] = [json.loads(_hear(client) or "{}") for client in running]
        return sum(int(one["counted"]) for one in heard) * 1000 / run_ms
    except (KeyError, OSError) as error:
        raise Unavailable("a client of the benchmark ended by itself") from error
    finally:
        for client in running:
            client.kill()
            client.communicate()


def _say(client: subprocess.Popen[str], line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(line + "\n")
    client.stdin.flush()


def _hear(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


if __name__ == "__main__":
    run_loop(_serve(json.loads(sys.stdin.readline()), SystemClock()))
