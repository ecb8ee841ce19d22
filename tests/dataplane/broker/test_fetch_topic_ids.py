"""Fetch by topic ids (KIP-516) as clients that nobody here wrote speak it: librdkafka, and Apache Kafka's own consumer.
That they do speak it is seen on the broker's side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from dataplane.broker import wire
from tests.dataplane.broker.cell import Cell, cell
from tests.dataplane.broker.test_group_clients import CLASSIC, Reader, admin_of, make_topic, produce, until
from tests.dataplane.broker.test_java_groups import JavaConsumer, soon, start, tools

__all__ = ["start", "tools"]  # fixtures

IDS_FROM = 13
_names = itertools.count()


@pytest.fixture(scope="module")
def brokers() -> Iterator[Cell]:
    with cell("zone-a", "zone-b") as running:
        yield running


@pytest.fixture
def fetches(brokers: Cell, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Versions of the Fetch requests that the brokers have got."""
    seen: set[int] = set()
    decode = wire.decode

    def recorded(frame: bytes) -> wire.Request:
        request = decode(frame)
        if request.api_key == wire.FETCH:
            seen.add(request.version)
        return request

    monkeypatch.setattr(wire, "decode", recorded)
    return seen


def test_librdkafka_reads_by_topic_ids_and_goes_on_in_a_topic_made_anew_under_its_name(
    brokers: Cell, fetches: set[int]
) -> None:
    topic = make_topic(brokers, 2)
    produce(brokers, topic, 2, 40)
    refresh = {"topic.metadata.refresh.interval.ms": 1_000}
    reader = Reader(brokers, f"ids-{next(_names)}", topic, protocol=CLASSIC, **refresh)
    until(lambda: sorted(reader.values) == list(range(40)), reader)
    assert fetches and min(fetches) >= IDS_FROM

    admin = admin_of(brokers)
    admin.delete_topics([topic])[topic].result(20)
    make_topic(brokers, 2, topic)
    produce(brokers, topic, 2, 60, start=100)
    # It keeps its position, which is in the middle of the new topic.
    until(lambda: set(range(140, 160)) <= set(reader.values), reader)
    reader.close()


def test_javas_consumer_reads_by_topic_ids_in_a_session(
    brokers: Cell, fetches: set[int], start: Callable[..., JavaConsumer]
) -> None:
    topic = make_topic(brokers, 3)
    produce(brokers, topic, 3, 30)
    consumer = start(topic, f"ids-{next(_names)}")
    soon(lambda: sorted(consumer.values) == list(range(30)))
    produce(brokers, topic, 3, 30, start=30)
    soon(lambda: sorted(consumer.values) == list(range(60)))
    assert wire.ADVERTISED[wire.FETCH][1] in fetches and min(fetches) >= IDS_FROM, (
        "the newest version, which it shares with Kafka 4.1"
    )
    by_ids = brokers.call(
        lambda: [
            session.by_ids
            for broker in brokers.brokers.values()
            for session in broker.server.dispatch.fetch.sessions._sessions.values()
        ]
    )
    assert any(by_ids)
