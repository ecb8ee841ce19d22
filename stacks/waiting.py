"""Waiting for the control plane, bounded and cancellable: for a lock, for an operation, for objects to be Ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from controlplane.api.specs import Key
from controlplane.cli.client import Client
from controlplane.cli.watch import answers
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, sleep_blocking_ms
from providers.base.errors import Conflict, Unavailable

POLL_MS = 100
Say = Callable[[str], None]


class Deadline:
    """When to give up: a time, or when the user cancels."""

    def __init__(self, timeout_s: float, cancelled: Callable[[], bool]) -> None:
        self._clock = SystemClock()
        self._end_ms = self._clock.monotonic_ms() + timeout_s * 1000
        self._timeout_s = timeout_s
        self._cancelled = cancelled

    def left_s(self) -> float:
        """Seconds left, at least one."""
        return max(1.0, (self._end_ms - self._clock.monotonic_ms()) / 1000)

    def pause(self, why: str) -> None:
        """Wait a little.

        Raises:
            Unavailable: the time is over, or the user has cancelled.
        """
        if self._cancelled():
            raise Unavailable(f"cancelled: {why}", hint="what was begun goes on; run up again to go on with it")
        if self._clock.monotonic_ms() > self._end_ms:
            raise Unavailable(
                f"not done after {self._timeout_s:.0f} s: {why}", hint="it goes on; run up again, or see yunhe status"
            )
        sleep_blocking_ms(POLL_MS)


@contextmanager
def locked(state_dir: StateDir, deadline: Deadline) -> Iterator[None]:
    """Hold the state directory, after another command has let go of it."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(state_dir.locked("pulumi"))
                break
            except Conflict as error:
                deadline.pause(error.message)
        yield


def follow(client: Client, operation: Mapping[str, Any], deadline: Deadline, say: Say) -> None:
    """Wait for the end of an operation, and say its steps as they end.

    Raises:
        Unavailable: a step failed, it did not end in time, or the user cancelled: it goes on.
        Conflict: a later apply took its place.
    """
    said: set[str] = set()
    while True:
        for step in operation["steps"]:
            if step["state"] == "Done" and step["id"] not in said:
                said.add(step["id"])
                say(f"{step['cloud']}: {step['sentence']}")
        match operation["outcome"]:
            case "Done":
                return
            case "Failed":
                failed = [step for step in operation["steps"] if step["state"] == "Failed"]
                hint = next((step["hint"] for step in failed if step["hint"]), "run up again to go on with it")
                raise Unavailable("; ".join(f"{s['title']}: {s['error']}" for s in failed), hint=hint)
            case "Superseded":
                raise Conflict("a later apply took this one's place", hint="run up again, or see yunhe status")
        running = [step for step in operation["steps"] if step["state"] == "Running"]
        deadline.pause("; ".join(f"{s['title']}: {s['sentence'] or 'running'}" for s in running))
        operation = client.operation(str(operation["id"]))


def wait_for(client: Client, keys: Sequence[Key], deadline: Deadline, say: Say) -> None:
    """Wait until the objects are Ready and their brokers answer.

    Raises:
        Unavailable: not in time, or cancelled.
    """
    said: set[str] = set()
    while lacking := _lacking(client, keys):
        for sentence in lacking:
            if sentence not in said:
                said.add(sentence)
                say(sentence)
        deadline.pause("; ".join(lacking))


def _lacking(client: Client, keys: Sequence[Key]) -> list[str]:
    lacking = []
    for kind, name in keys:
        status = client.objects(kind, name)[0]["status"]
        if status.get("state") != "Ready":
            lacking.append(f"{kind} {name} is {status.get('state')}: {status.get('sentence', 'not looked at yet')}")
    if lacking:
        return lacking
    clusters = {name for kind, name in keys if kind == "BrokerCluster"}
    for cloud in client.status()["clouds"]:
        if cloud.get("cluster") in clusters or cloud["name"] in clusters:
            silent = [b for b in cloud["brokers"] if not answers(b.get("host") or "127.0.0.1", b["kafkaPort"])]
            lacking += [f"broker {b['name']} of {cloud['name']}: its port does not answer yet" for b in silent]
    return lacking
