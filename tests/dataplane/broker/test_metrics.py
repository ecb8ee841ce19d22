"""A broker's page against what clients nobody here wrote have sent and got."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from dataplane.broker.metrics import OTHER_TOPICS, BrokerMetrics
from dataplane.broker.topic_traffic import TOPICS_MAX
from dataplane.contract.assignment import BrokerSettings
from providers.base.blocking import StoreHealth
from providers.base.clock import SystemClock
from tests.dataplane.broker.cell_in_thread import RunningCell, running_cell
from tests.prometheus_text import Pages, read

STORE = StoreHealth("s3 bucket", "open", 3, 1, 20, 2, 4, 5)
B = "yunhe_broker_"


class Told:
    """A cell of one broker and its page."""

    def __init__(self, cell: RunningCell) -> None:
        self.cell = cell
        self.admin = AdminClient({"bootstrap.servers": cell.bootstrap})
        broker = cell.brokers[0]
        self.metrics = BrokerMetrics(
            broker.node,
            broker.server,
            broker.engine.forwarder,
            disk=None,
            stores=lambda: [STORE, STORE],
            clock=SystemClock(),
        )

    def page(self) -> Pages:
        return read(self.cell.see(self.metrics.page).decode())

    def make(self, *topics: NewTopic) -> None:
        for made in self.admin.create_topics(list(topics)).values():
            made.result(30)


@contextlib.contextmanager
def told(settings: BrokerSettings | None = None) -> Iterator[Told]:
    with running_cell(settings=settings or BrokerSettings(balance_interval_ms=0, upload_interval_ms=100)) as cell:
        yield Told(cell)


def produce(bootstrap: str, topic: str, values: list[bytes], **config: object) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, **config})
    failed: list[KafkaError] = []
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=lambda error, _: error and failed.append(error))
    assert producer.flush(30) == 0 and not failed


def test_what_is_counted_is_what_clients_sent_and_got() -> None:
    values = [b"%06d" % i * 20 for i in range(3_000)]
    with told() as one:
        one.make(NewTopic("one", 2), NewTopic("two", 1))
        before = one.page()
        produce(one.cell.bootstrap, "one", values)
        produce(one.cell.bootstrap, "two", values[:500], **{"compression.type": "lz4"})
        consumer = Consumer(
            {
                "bootstrap.servers": one.cell.bootstrap,
                "group.id": "g",
                "client.rack": "elsewhere",
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition("one", 0, 0)])
        got = 0
        while got < len(values):
            got += sum(message.error() is None for message in consumer.consume(500, 10))
        consumer.close()
        page = one.page()

    def grew(name: str, **labels: str) -> float:
        return page.value(B + name, **labels) - before.value(B + name, **labels)

    assert grew("written_records_total") == 3_500
    assert page.value(B + "topic_written_records_total", topic="one") == 3_000
    assert page.value(B + "topic_written_records_total", topic="two") == 500
    # A record costs its value and some bytes of Kafka's; what lz4 makes of it is less.
    one_bytes = page.value(B + "topic_written_bytes_total", topic="one")
    assert 3_000 * 120 < one_bytes < 3_000 * 150
    assert 0 < page.value(B + "topic_written_bytes_total", topic="two") < 500 * 60
    assert grew("written_bytes_total") == one_bytes + page.value(B + "topic_written_bytes_total", topic="two")
    assert page.value(B + "topic_read_bytes_total", topic="one") == one_bytes == grew("read_bytes_total")
    assert page.value(B + "topic_read_bytes_total", topic="two") == 0
    assert page.value(B + "topic_read_bytes_total", topic=OTHER_TOPICS) == 0
    # The consumer says that it is in another zone: what it got is paid for.
    assert grew("consumer_bytes_total", zone="other") == one_bytes
    assert grew("consumer_bytes_total", zone="own") == grew("consumer_bytes_total", zone="unknown") == 0
    requests = grew("requests_total", api="Produce")
    assert 2 <= requests <= 3_500 and grew("requests_total", api="Fetch") >= 1
    assert page.value(B + "request_duration_seconds_count", api="Produce") == requests
    assert page.value(B + "requests_total", api="CreateTopics") == 1
    every = sum(v for (n, _), v in page.families[B + "requests_total"].samples.items() if n == B + "requests_total")
    durations = page.families[B + "request_duration_seconds"].samples.items()
    assert every == sum(value for (name, _), value in durations if name.endswith("_count"))
    # What the WAL holds are those batches, and a header a block.
    assert grew("wal_written_bytes_total") > grew("written_bytes_total")
    assert 0 < grew("wal_blocks_total") <= requests
    assert page.value(B + "wal_block_duration_seconds_count") == page.value(B + "wal_blocks_total")
    assert grew("received_bytes_total") > grew("written_bytes_total")
    assert grew("sent_bytes_total") > grew("read_bytes_total")


def test_refusals_are_counted_by_api_and_error() -> None:
    with told() as one:
        one.make(NewTopic("there", 1))
        producer = Producer({"bootstrap.servers": one.cell.bootstrap, "message.max.bytes": 4_000_000})
        failed: list[KafkaError] = []
        producer.produce("there", bytes(2_000_000), on_delivery=lambda error, _: failed.append(error))
        assert producer.flush(30) == 0 and failed[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
        consumer = Consumer({"bootstrap.servers": one.cell.bootstrap, "group.id": "g", "auto.offset.reset": "error"})
        consumer.assign([TopicPartition("there", 0, 77)])
        assert consumer.consume(1, 10)[0].error().code() == KafkaError._AUTO_OFFSET_RESET
        consumer.close()
        with pytest.raises(KafkaException):
            one.admin.create_topics([NewTopic("there", 1)])["there"].result(30)
        page = one.page()
    assert page.value(B + "request_errors_total", api="Produce", error="MESSAGE_TOO_LARGE") == 1
    assert page.value(B + "request_errors_total", api="Fetch", error="OFFSET_OUT_OF_RANGE") >= 1
    assert page.value(B + "written_records_total") == 0


def test_what_is_uploaded_is_no_longer_told_as_only_in_the_wal() -> None:
    async def upload(cell: RunningCell) -> None:
        uploader = cell.brokers[0].node.uploader
        assert uploader is not None
        while await uploader.upload_once():
            pass

    with told(BrokerSettings(balance_interval_ms=0, upload_interval_ms=3_600_000)) as one:
        one.make(NewTopic("one", 1))
        produce(one.cell.bootstrap, "one", [bytes(1000)] * 200)
        full = one.page()
        one.cell.do(upload(one.cell))
        empty = one.page()
    written = full.value(B + "written_bytes_total")
    assert full.value(B + "unuploaded_bytes") == written == full.value(B + "log_cache_bytes")
    assert full.value(B + "uploads_total") == 0 and full.value(B + "wal_used_bytes") > written
    assert full.value(B + "wal_used_bytes") <= full.value(B + "wal_limit_bytes")
    assert empty.value(B + "unuploaded_bytes") == empty.value(B + "wal_used_bytes") == 0
    assert empty.value(B + "uploads_total") == 1 and empty.value(B + "uploaded_bytes_total") > written


def test_no_number_of_topics_and_partitions_makes_more_series_and_no_count_falls() -> None:
    with told() as one:
        one.make(*(NewTopic(f"t{i}", 3) for i in range(TOPICS_MAX)))
        produce(one.cell.bootstrap, "t7", [b"x"] * 10)
        first = one.page()
        one.make(*(NewTopic(f"more{i}", 3) for i in range(TOPICS_MAX)))
        produce(one.cell.bootstrap, "more7", [b"x"] * 20)
        second = one.page()
        # One that is told by name goes, and one that is not; their records stay in the sums.
        for topic in ("t7", "more7"):
            one.admin.delete_topics([topic])[topic].result(30)
        third = one.page()
        one.make(NewTopic("late", 1))
        produce(one.cell.bootstrap, "late", [b"x"] * 5)
        fourth = one.page()
    records = B + "topic_written_records_total"
    assert first.value(B + "partitions") == 3 * TOPICS_MAX and second.value(B + "partitions") == 6 * TOPICS_MAX
    assert first.value(records, topic="t7") == 10
    assert second.value(records, topic="more7") == 0 and second.value(records, topic=OTHER_TOPICS) == 20
    # Other series may come with the first answer of an API.
    assert len(second.families[records].samples) == len(first.families[records].samples) == TOPICS_MAX + 1
    assert ("topic", "t7") not in {pair for _, labels in third.families[records].samples for pair in labels}
    assert third.value(records, topic=OTHER_TOPICS) == 20
    assert third.value(B + "written_records_total") == 30
    assert fourth.value(records, topic="late") == 5, "there is room for a name again"
    assert fourth.value(B + "written_records_total") == 35
    assert max(page.series for page in (first, second, third, fourth)) < 700


def test_it_says_who_it_is_and_how_its_stores_are() -> None:
    with told() as one:
        page = one.page()
    assert page.value(B + "info", cell="cell", cluster="c", broker="b-1", zone="zone-1", node_id="1", wal="object") == 1
    assert page.value(B + "controller") == 1 and page.value(B + "live_brokers") == 1
    assert page.value(B + "failed") == page.value(B + "slow") == page.value(B + "ledger_stale") == 0
    assert page.value(B + "epoch") >= 1 and page.value(B + "ledger_entries") >= 2
    assert 0 <= page.value(B + "ledger_age_seconds") < 30
    # Two stores of one name are one series: a page with a series twice cannot be read.
    assert page.value("yunhe_object_store_requests_total", store="s3 bucket") == 40
    assert page.value("yunhe_object_store_failures_total", store="s3 bucket") == 10
    assert page.value("yunhe_object_store_breaker_open", store="s3 bucket") == 1
    assert page.value("process_resident_memory_bytes") > 10 << 20
    assert page.value("process_cpu_seconds_total") > 0 and page.value("process_open_fds") > 3
