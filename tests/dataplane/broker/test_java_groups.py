"""Groups and fetch sessions as Apache Kafka's own consumer and tools see them, over whole brokers. Skipped where
Kafka's jars cannot be had.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.bench.peers import jars
from providers.base.errors import Unavailable
from tests.dataplane.broker.cell import Cell, cell
from tests.dataplane.broker.test_group_clients import make_topic, produce, until

_names = itertools.count()
CONSUMER = "org.apache.kafka.tools.VerifiableConsumer"
GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"


@pytest.fixture(scope="module")
def tools() -> Path:
    try:
        return jars(fetch_s=110)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def brokers() -> Iterator[Cell]:
    with cell("zone-a", "zone-b") as running:
        yield running


class JavaConsumer:
    """Apache Kafka's verifiable consumer: what it says, as it says it, in a file."""

    def __init__(self, tools: Path, brokers: Cell, folder: Path, topic: str, group: str, *args: str) -> None:
        self._out = folder / f"consumer-{next(_names)}"
        with self._out.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *("java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{tools}/*", CONSUMER),
                    *("--bootstrap-server", brokers.bootstrap, "--topic", topic, "--group-id", group),
                    *("--reset-policy", "earliest", "--verbose", *args),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def _lines(self) -> list[str]:
        said = self._out.read_text()
        return said[: said.rfind("\n") + 1].splitlines()  # the last one may be under way

    def events(self, name: str) -> list[dict[str, Any]]:
        said = []
        for line in self._lines():
            if line.startswith("{"):
                event = json.loads(line)
                if event["name"] == name:
                    said.append(event)
        return said

    @property
    def partitions(self) -> set[int]:
        """Revoked and assigned one after the other, as the consumer was told."""
        held: set[int] = set()
        for line in self._lines():
            event = json.loads(line) if line.startswith("{") else {"name": ""}
            parts = {p["partition"] for p in event.get("partitions", ())}
            if event["name"] == "partitions_assigned":
                held |= parts
            elif event["name"] == "partitions_revoked":
                held -= parts
        return held

    @property
    def values(self) -> list[int]:
        return [int(event["value"]) for event in self.events("record_data")]

    def text(self) -> str:
        return self._out.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """As an operator would: it commits and leaves."""
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self.kill()


@pytest.fixture
def start(tools: Path, brokers: Cell, tmp_path: Path) -> Iterator[Callable[..., JavaConsumer]]:
    started: list[JavaConsumer] = []

    def one(topic: str, group: str, *args: str) -> JavaConsumer:
        started.append(JavaConsumer(tools, brokers, tmp_path, topic, group, *args))
        return started[-1]

    yield one
    for consumer in started:
        consumer.kill()


def soon(condition: Callable[[], bool], seconds: float = 60) -> None:
    def waited() -> bool:
        time.sleep(0.1)  # another process's output has no event
        return condition()

    until(waited, seconds=seconds)


def group_tool(tools: Path, brokers: Cell, *args: str) -> str:
    done = subprocess.run(
        [
            *("java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{tools}/*", GROUPS),
            *("--bootstrap-server", brokers.bootstrap, *args),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


def test_javas_consumers_of_kip_848_share_commit_and_leave_and_its_tool_shows_them(
    brokers: Cell, tools: Path, start: Callable[..., JavaConsumer]
) -> None:
    topic, group = make_topic(brokers), f"j-{next(_names)}"
    produce(brokers, topic, 6, 60)
    args = "--group-protocol", "CONSUMER", "--group-remote-assignor", "range"
    one, two = start(topic, group, *args), start(topic, group, *args)
    soon(lambda: len(one.partitions) == len(two.partitions) == 3 and not one.partitions & two.partitions)
    produce(brokers, topic, 6, 60, start=60)
    soon(lambda: set(one.values + two.values) == set(range(120)))
    soon(lambda: bool(one.events("offsets_committed")) and bool(two.events("offsets_committed")))
    assert all(event["success"] for c in (one, two) for event in c.events("offsets_committed"))

    described = group_tool(tools, brokers, "--describe", "--group", group, "--state", "--verbose")
    assert "Stable" in described and "range" in described
    members = group_tool(tools, brokers, "--describe", "--group", group, "--members").splitlines()
    assert [line.split()[4] for line in members if line.startswith(group)] == ["3", "3"]
    assert group in group_tool(tools, brokers, "--list", "--type", "consumer")
    assert group not in group_tool(tools, brokers, "--list", "--type", "classic")
    sessions = brokers.call(lambda: [len(b.server.dispatch.fetch.sessions) for b in brokers.brokers.values()])
    assert all(sessions), "Java's consumer fetches in sessions"

    two.close()
    soon(lambda: len(one.partitions) == 6)
    one.close()
    assert '"name":"shutdown_complete"' in one.text()
    offsets = group_tool(tools, brokers, "--describe", "--group", group, "--offsets")
    lags = [line.split()[5] for line in offsets.splitlines() if f" {topic} " in line]
    assert lags == ["0"] * 6
    deleted = group_tool(tools, brokers, "--delete-offsets", "--group", group, "--topic", f"{topic}:0")
    assert "Successful" in deleted or "successful" in deleted
    assert "successful" in group_tool(tools, brokers, "--delete", "--group", group)
    assert group not in group_tool(tools, brokers, "--list")


def test_a_java_static_member_that_restarts_gets_its_partitions_back_and_nobody_rebalances(
    brokers: Cell, start: Callable[..., JavaConsumer]
) -> None:
    topic, group = make_topic(brokers), f"j-{next(_names)}"
    args = "--group-protocol", "CONSUMER", "--group-instance-id"
    one, two = start(topic, group, *args, "one"), start(topic, group, *args, "two")
    soon(lambda: len(one.partitions) == len(two.partitions) == 3 and not one.partitions & two.partitions)
    had, seen = two.partitions, len(one.events("partitions_assigned"))
    two.close()
    again = start(topic, group, *args, "two")
    soon(lambda: again.partitions == had)
    assert len(one.events("partitions_assigned")) == seen


def test_a_java_static_member_that_was_replaced_hears_that_it_is_fenced(
    brokers: Cell, start: Callable[..., JavaConsumer]
) -> None:
    topic, group = make_topic(brokers), f"j-{next(_names)}"
    old = start(topic, group, "--group-instance-id", "one")
    soon(lambda: len(old.partitions) == 6)
    new = start(topic, group, "--group-instance-id", "one")
    soon(lambda: len(new.partitions) == 6)
    soon(lambda: "FencedInstanceId" in old.text())
