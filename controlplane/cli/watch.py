"""Following an operation, and waiting for Ready: progress on stderr, a sentence when it changes."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from controlplane.cli import output
from controlplane.cli.client import Client
from providers.base.clock import SystemClock, sleep_blocking_ms
from providers.base.errors import Conflict, Unavailable

POLL_MS = 100
CONNECT_TIMEOUT_S = 0.5


def follow(client: Client, operation: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Show the steps as they end; the finished operation.

    Raises:
        Unavailable: a step failed, or it did not end in time (it goes on).
        Conflict: a later apply took its place.
    """
    clock = SystemClock()
    deadline = clock.monotonic_ms() + timeout_s * 1000
    said: set[str] = set()
    while True:
        for step in operation["steps"]:
            if step["state"] == "Done" and step["id"] not in said:
                said.add(step["id"])
                output.progress(f"  {step['cloud']}: {step['sentence']}")
        match operation["outcome"]:
            case "Done":
                return dict(operation)
            case "Failed":
                failed = [step for step in operation["steps"] if step["state"] == "Failed"]
                hint = next((step["hint"] for step in failed if step["hint"]), "it is tried further; see yunhe status")
                raise Unavailable("; ".join(f"{s['title']}: {s['error']}" for s in failed), hint=hint)
            case "Superseded":
                raise Conflict("a later apply took this one's place", hint="see yunhe status")
        if clock.monotonic_ms() > deadline:
            running = [step for step in operation["steps"] if step["state"] == "Running"]
            why = "; ".join(f"{step['title']}: {step['sentence'] or 'running'}" for step in running)
            raise Unavailable(f"not done after {timeout_s:.0f} s: {why}", hint="it goes on; see yunhe status")
        sleep_blocking_ms(POLL_MS)
        operation = client.operation(operation["id"])


def answers(host: str, port: int | None) -> bool:
    """Whether somebody listens there."""
    if not port:
        return False
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _all_answer(cloud: Mapping[str, Any]) -> bool:
    return all(answers(b.get("host") or "127.0.0.1", b["kafkaPort"]) for b in cloud["brokers"] if b["state"] != "Spare")


def _all_nodes_answer(database: Mapping[str, Any]) -> bool:
    return all(answers(n.get("host") or "127.0.0.1", n["httpPort"]) for n in database["nodes"])


def _silent(one: Mapping[str, Any], whose: str) -> dict[str, Any]:
    return {**one, "state": "Progressing", "sentence": f"{whose} port does not answer yet"}


def wait_ready(client: Client, *, timeout_s: float) -> dict[str, Any]:
    """Wait until the whole status is Ready; that status.

    Raises:
        Unavailable: not in time; with what is not ready, and why.
    """
    clock = SystemClock()
    deadline = clock.monotonic_ms() + timeout_s * 1000
    said: dict[str, str] = {}
    while True:
        status = client.status()
        every = [*status["clouds"], *status["topics"], *status["databases"]]
        lacking = [one for one in every if one["state"] != "Ready"]
        if status["state"] == "Ready":
            # Right after a restart the last reports may be those of the processes before: a client's view decides.
            lacking = [_silent(cloud, "a broker's") for cloud in status["clouds"] if not _all_answer(cloud)]
            lacking += [_silent(one, "a node's") for one in status["databases"] if not _all_nodes_answer(one)]
            if not lacking:
                return status
        if clock.monotonic_ms() > deadline:
            why = "; ".join(f"{one['name']} is {one['state']}: {one['sentence']}" for one in lacking)
            raise Unavailable(f"not all is Ready after {timeout_s:.0f} s: {why}", hint="it goes on; see yunhe status")
        for one in lacking:
            if said.get(one["name"]) != one["sentence"]:
                said[one["name"]] = one["sentence"]
                output.progress(f"  {one['name']}: {one['sentence']}")
        sleep_blocking_ms(POLL_MS)
