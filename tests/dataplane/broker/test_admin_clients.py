"""What admin tools ask for is answered as Kafka would, or refused with the protocol's own error: a real cell, asked by
librdkafka's and kafka-python's admin clients, and frame by frame through kio's codec where they have no call for it.
"""

from __future__ import annotations

import io
import itertools
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from confluent_kafka import ElectionType  # isort: skip
from kio import index
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from dataplane.contract.assignment import BrokerSettings
from tests.dataplane.broker.cell_in_thread import RunningCell, running_cell

_names = itertools.count()


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    # Uploads only when told: what is in the WAL and what is in object storage is for the tests to say.
    settings = BrokerSettings(balance_interval_ms=0, upload_interval_ms=3_600_000)
    with running_cell(2, settings=settings) as running:
        yield running
        assert running.trouble == []


@pytest.fixture
def admin(cell: RunningCell) -> AdminClient:
    return AdminClient({"bootstrap.servers": cell.bootstrap})


def make_topic(cell: RunningCell, admin: AdminClient, partitions: int = 1, **config: str) -> str:
    name = f"t-{next(_names)}"
    admin.create_topics([NewTopic(name, partitions, config=config)])[name].result(30)
    until("every broker knows it", lambda: cell.see(lambda: all(b.engine.topic(name) for b in cell.brokers)))
    return name


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)


def produce(cell: RunningCell, topic: str, *values: tuple[bytes, int], **config: Any) -> None:
    producer = Producer({"bootstrap.servers": cell.bootstrap, **config})
    failed: list[object] = []
    for value, timestamp in values:
        producer.produce(
            topic, value, partition=0, timestamp=timestamp, on_delivery=lambda e, _: failed.append(e) if e else None
        )
        if not config:
            producer.flush(30)
    assert producer.flush(30) == 0 and not failed


def call(cell: RunningCell, api_key: int, version: int, fields: dict[str, Any], broker: int = 0) -> Any:
    """One request through kio's codec, and its answer."""
    schema = index.load_request_schema(api_key, version)
    header = schema.__header_schema__
    out = io.BytesIO()
    named: dict[str, Any] = {"request_api_key": api_key, "request_api_version": version, "correlation_id": 5}
    entity_writer(header)(out, header(**named, client_id="judge"))
    entity_writer(schema)(out, schema(**fields))
    frame = out.getvalue()
    with socket.create_connection(("127.0.0.1", cell.brokers[broker].port), timeout=10) as connection:
        connection.sendall(len(frame).to_bytes(4, "big") + frame)
        stream = connection.makefile("rb")
        answer = stream.read(int.from_bytes(stream.read(4), "big"))
    response = index.load_response_schema(api_key, version)
    _, at = entity_reader(response.__header_schema__)(answer, 0)
    body, size = entity_reader(response)(answer, at)
    assert at + size == len(answer)
    return body


def nested(api_key: int, version: int, name: str) -> Any:
    """The class of a request's nested structure."""
    import importlib

    schema = index.load_request_schema(api_key, version)
    return getattr(importlib.import_module(schema.__module__), name)


# ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_validate_only_says_what_would_happen_and_changes_nothing(cell: RunningCell, admin: AdminClient) -> None:
    present = make_topic(cell, admin)
    admin.create_topics([NewTopic("would-be", 3)], validate_only=True)["would-be"].result(10)
    assert "would-be" not in admin.list_topics(timeout=10).topics
    for topic, code in (
        (NewTopic(present, 1), 36),
        (NewTopic("would-be", 0), 37),
        (NewTopic("would-be", 1_001), 37),
        (NewTopic("would-be", 1, config={"retention.ms": "soon"}), 40),
        (NewTopic("would be", 1), 17),
    ):
        with pytest.raises(KafkaException) as refused:
            admin.create_topics([topic], validate_only=True)[topic.topic].result(10)
        assert refused.value.args[0].code() == code
    with pytest.raises(KafkaException) as refused:
        admin.create_partitions([NewPartitions(present, 1)], validate_only=True)[present].result(10)
    assert refused.value.args[0].code() == 37


def test_a_client_that_names_the_owners_gets_them(cell: RunningCell, admin: AdminClient) -> None:
    name = f"placed-{next(_names)}"
    admin.create_topics([NewTopic(name, 3, replica_assignment=[[2], [1], [2]])])[name].result(30)

    def leaders() -> list[int]:
        partitions = admin.list_topics(name, timeout=10).topics[name].partitions
        return [partitions[i].leader for i in sorted(partitions)]

    until("both brokers know it", lambda: leaders() == [2, 1, 2])
    admin.create_partitions([NewPartitions(name, 5, replica_assignment=[[1], [1]])])[name].result(30)
    until("both brokers know them", lambda: leaders() == [2, 1, 2, 1, 1])
    for wrong in ([[9]], [[1, 2]]):
        other = NewTopic(f"{name}-x", 1, replica_assignment=wrong)
        with pytest.raises(KafkaException) as refused:
            admin.create_topics([other])[other.topic].result(10)
        assert refused.value.args[0].code() == ErrorCode.invalid_replica_assignment


def test_a_topic_is_deleted_by_its_id(cell: RunningCell, admin: AdminClient) -> None:
    name = make_topic(cell, admin)
    topic_id = uuid.UUID(hex=cell.see(lambda: cell.brokers[0].engine.topics()[name].topic_id))
    state = nested(20, 6, "DeleteTopicState")
    import datetime

    def delete(one: uuid.UUID) -> Any:
        timeout = datetime.timedelta(seconds=10)
        return call(cell, 20, 6, {"topics": (state(name=None, topic_id=one),), "timeout": timeout}).responses[0]

    unknown = delete(uuid.UUID(int=7))
    assert unknown.error_code is ErrorCode.unknown_topic_id and unknown.name is None
    assert name in admin.list_topics(timeout=10).topics
    gone = delete(topic_id)
    assert (gone.error_code, gone.name) == (ErrorCode.none, name)
    until("every broker knows it", lambda: name not in admin.list_topics(timeout=10).topics)


def test_partitions_are_described_page_by_page(cell: RunningCell, admin: AdminClient) -> None:
    one, two = make_topic(cell, admin, 5), make_topic(cell, admin, 3)
    topic, cursor_type = nested(75, 0, "TopicRequest"), nested(75, 0, "Cursor")
    found: list[tuple[str, int]] = []
    cursor: Any = None
    for _ in range(10):
        body = call(
            cell,
            75,
            0,
            {
                "topics": (topic(name=two), topic(name=one), topic(name="nowhere")),
                "response_partition_limit": 2,
                "cursor": cursor,
            },
        )
        found += [(t.name, p.partition_index) for t in body.topics for p in t.partitions]
        if body.next_cursor is None:
            break
        cursor = cursor_type(topic_name=body.next_cursor.topic_name, partition_index=body.next_cursor.partition_index)
    assert found == sorted([(one, i) for i in range(5)] + [(two, i) for i in range(3)])
    missing = call(cell, 75, 0, {"topics": (topic(name="nowhere"),), "response_partition_limit": 2, "cursor": None})
    assert missing.topics[0].error_code is ErrorCode.unknown_topic_or_partition


# ── configs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_configs_come_with_synonyms_and_documentation(cell: RunningCell, admin: AdminClient) -> None:
    topic = make_topic(cell, admin, **{"retention.ms": "5000"})
    [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
    entry = found.result(10)["retention.ms"]
    assert (entry.value, entry.is_default, entry.is_read_only) == ("5000", False, False)
    assert {name: s.value for name, s in entry.synonyms.items()} == {"retention.ms": "5000", "log.retention.ms": "-1"}
    resource = nested(32, 4, "DescribeConfigsResource")
    asked = (resource(resource_type=2, resource_name=topic, configuration_keys=None),)
    body = call(cell, 32, 4, {"resources": asked, "include_synonyms": False, "include_documentation": True})
    assert all(e.documentation and e.config_type and not e.synonyms for e in body.results[0].configs)
    bare = call(cell, 32, 4, {"resources": asked, "include_synonyms": False, "include_documentation": False})
    assert all(e.documentation is None for e in bare.results[0].configs)


def test_a_broker_tells_its_own_configs_and_no_others(admin: AdminClient, cell: RunningCell) -> None:
    [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.BROKER, "2")]).values()
    entries = found.result(10)
    assert entries["broker.id"].value == "2" and entries["broker.rack"].value == "zone-2"
    assert all(entry.is_read_only for entry in entries.values())
    resource = nested(32, 4, "DescribeConfigsResource")
    asked = (resource(resource_type=4, resource_name="2", configuration_keys=None),)
    wrong = call(cell, 32, 4, {"resources": asked, "include_synonyms": False, "include_documentation": False}, broker=0)
    assert wrong.results[0].error_code is ErrorCode.invalid_request


def test_the_older_alter_replaces_all_configs(cell: RunningCell, admin: AdminClient) -> None:
    topic = make_topic(cell, admin, **{"retention.ms": "5000", "retention.bytes": "70"})

    def configured() -> tuple[str, str]:
        [found] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
        entries = found.result(10)
        return entries["retention.ms"].value, entries["retention.bytes"].value

    assert configured() == ("5000", "70")
    change = ConfigResource(ConfigResource.Type.TOPIC, topic, set_config={"retention.bytes": "80"})
    [done] = admin.alter_configs([change]).values()
    done.result(10)
    until("the other config is back to its default", lambda: configured() == ("-1", "80"))
    bad = ConfigResource(ConfigResource.Type.TOPIC, topic, set_config={"retention.bytes": "1", "segment.bytes": "1"})
    [done] = admin.alter_configs([bad]).values()
    with pytest.raises(KafkaException) as refused:
        done.result(10)
    assert refused.value.args[0].code() == ErrorCode.invalid_config
    assert configured() == ("-1", "80"), "a refused change changes nothing"


def test_a_brokers_throttles_may_be_taken_back_and_not_set(cell: RunningCell, admin: AdminClient) -> None:
    def alter(operation: AlterConfigOpType) -> None:
        entry = ConfigEntry("leader.replication.throttled.rate", "1", incremental_operation=operation)
        resource = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=[entry])
        [done] = admin.incremental_alter_configs([resource]).values()
        done.result(10)

    alter(AlterConfigOpType.DELETE)
    with pytest.raises(KafkaException) as refused:
        alter(AlterConfigOpType.SET)
    assert refused.value.args[0].code() == ErrorCode.invalid_request


# ── the cluster ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_election_is_never_needed(cell: RunningCell, admin: AdminClient) -> None:
    topic = make_topic(cell, admin)
    asked = [TopicPartition(topic, 0), TopicPartition(topic, 9)]
    results = admin.elect_leaders(ElectionType.PREFERRED, asked).result(10)
    codes = {p.partition: error.code() if error else 0 for p, error in results.items()}
    assert codes == {0: ErrorCode.election_not_needed, 9: ErrorCode.unknown_topic_or_partition}
    assert admin.elect_leaders(ElectionType.PREFERRED, None).result(10) == {}


def log_dir_sizes(cell: RunningCell, topic: str) -> dict[str, int]:
    asked = nested(35, 4, "DescribableLogDirTopic")
    sizes: dict[str, int] = {}
    for broker in range(2):
        body = call(cell, 35, 4, {"topics": (asked(topic=topic, partitions=(0,)),)}, broker=broker)
        for place in body.results:
            assert place.error_code is ErrorCode.none
            for part in (p for t in place.topics for p in t.partitions):
                sizes[place.log_dir] = sizes.get(place.log_dir, 0) + part.partition_size
    return sizes


def test_log_dirs_say_how_much_is_in_the_wal_and_how_much_in_object_storage(
    cell: RunningCell, admin: AdminClient
) -> None:
    topic, other = make_topic(cell, admin), make_topic(cell, admin)
    produce(cell, topic, (bytes(10_000), 1))
    produce(cell, other, (bytes(70_000), 1))
    in_wal = log_dir_sizes(cell, topic)
    assert 10_000 < in_wal["/wal"] < 10_200 and in_wal["/objects"] == 0
    upload(cell)
    assert log_dir_sizes(cell, topic) == {"/wal": 0, "/objects": in_wal["/wal"]}
    produce(cell, topic, (bytes(500), 2))
    both = log_dir_sizes(cell, topic)
    assert both["/objects"] == in_wal["/wal"] and 500 < both["/wal"] < 700
    everything = call(cell, 35, 4, {"topics": None})
    assert {place.log_dir for place in everything.results} == {"/wal", "/objects"}
    [wal] = [place for place in everything.results if place.log_dir == "/wal"]
    assert 0 < wal.usable_bytes <= wal.total_bytes


def upload(cell: RunningCell) -> None:
    """Have every broker upload what only its WAL has."""

    async def all_of_it() -> None:
        for broker in cell.brokers:
            while await broker.node.uploader.upload_once():  # type: ignore[union-attr]
                pass

    cell.do(all_of_it())


def test_the_quorum_is_the_ledger(cell: RunningCell) -> None:
    topic, part = nested(55, 2, "TopicData"), nested(55, 2, "PartitionData")
    asked = (topic(topic_name="__cluster_metadata", partitions=(part(partition_index=0),)),)

    def quorum() -> Any:
        return call(cell, 55, 2, {"topics": asked}).topics[0].partitions[0]

    until("a controller is elected", lambda: quorum().error_code is ErrorCode.none)
    body = quorum()
    assert body.leader_id in (1, 2) and body.leader_epoch >= 1 and body.high_watermark > 0
    assert sorted(v.replica_id for v in body.current_voters) == [1, 2]
    wrong = (topic(topic_name="other", partitions=(part(partition_index=0),)),)
    answer = call(cell, 55, 2, {"topics": wrong}).topics[0].partitions[0]
    assert answer.error_code is ErrorCode.unknown_topic_or_partition


def test_only_brokers_are_described_as_a_cluster(cell: RunningCell) -> None:
    def describe(endpoint_type: int) -> Any:
        asked = {"include_cluster_authorized_operations": False, "endpoint_type": endpoint_type}
        return call(cell, 60, 2, {**asked, "include_fenced_brokers": True})

    assert [b.broker_id for b in describe(1).brokers] == [1, 2]
    assert describe(2).error_code is ErrorCode.mismatched_endpoint_type


# ── offsets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("uploaded", [False, True], ids=["wal", "objects"])
@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_the_newest_record_by_time_is_found(cell: RunningCell, admin: AdminClient, codec: str, uploaded: bool) -> None:
    topic = make_topic(cell, admin)
    asked = {TopicPartition(topic, 0): OffsetSpec.max_timestamp()}

    def newest() -> tuple[int, int]:
        [found] = admin.list_offsets(asked).values()
        result = found.result(10)
        return result.offset, result.timestamp

    assert newest() == (-1, -1)
    batch = {"linger.ms": 200, "compression.type": codec}
    produce(cell, topic, *((b"x" * 200, t) for t in (10, 500, 900, 20)), **batch)
    produce(cell, topic, *((b"x" * 200, t) for t in (30, 40)), **batch)
    if uploaded:
        upload(cell)
    # Inside a compressed batch nobody looks: its last record stands for it.
    assert newest() == (2 if codec == "none" else 3, 900)


def test_offsets_of_the_wal_and_of_object_storage_are_told_apart(cell: RunningCell, admin: AdminClient) -> None:
    topic = make_topic(cell, admin)
    wanted_topic, wanted = nested(2, 9, "ListOffsetsTopic"), nested(2, 9, "ListOffsetsPartition")
    leader = admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader

    def offset(timestamp: int) -> tuple[int, ErrorCode]:
        part = wanted(partition_index=0, current_leader_epoch=-1, timestamp=timestamp)
        fields = {"replica_id": -1, "isolation_level": 0, "topics": (wanted_topic(name=topic, partitions=(part,)),)}
        [answer] = call(cell, 2, 9, fields, broker=leader - 1).topics[0].partitions
        return answer.offset, answer.error_code

    produce(cell, topic, (b"a", 1), (b"b", 2))
    assert [offset(t)[0] for t in (-2, -1, -4, -5)] == [0, 2, 0, -1]
    upload(cell)
    produce(cell, topic, (b"c", 3))
    assert [offset(t)[0] for t in (-2, -1, -4, -5)] == [0, 3, 2, 1]
    assert offset(-9) == (-1, ErrorCode.unsupported_version)
