"""What is encoded by hand, judged by kio's codec: a request that it writes is read as it was meant, a response of ours
is read by it as what was said. And hostile bytes are refused, whatever they are.
"""

from __future__ import annotations

import datetime
import io
import random
import typing
import uuid
from typing import Any

import pytest
from kio import index
from kio.schema.errors import ErrorCode
from kio.schema.types import BrokerId, ProducerId, TopicName, TransactionalId
from kio.serial import entity_reader, entity_writer

from dataplane.broker import wire_fetch
from dataplane.broker.wire_fetch import FetchAnswer, FetchedPartition, encode_fetch
from dataplane.broker.wire_leaders import Leader
from dataplane.broker.wire_primitives import Malformed
from dataplane.broker.wire_produce import VERSION_MAX, VERSION_MIN, decode_produce, encode_produce
from dataplane.broker.wire_repeated import ProduceDecoder, encode_answer

PRODUCE_VERSIONS = range(VERSION_MIN, VERSION_MAX + 1)
FETCH_VERSIONS = range(wire_fetch.VERSION_MIN, wire_fetch.VERSION_MAX + 1)
IDS_FROM = 13


def produce_request(version: int, transactional_id: str | None, topics: dict[str, list[tuple[int, Any]]]) -> bytes:
    schema = index.load_request_schema(0, version)
    topic_type = _item(schema, "topic_data")
    part_type = _item(topic_type, "partition_data")
    request = schema(
        transactional_id=None if transactional_id is None else TransactionalId(transactional_id),
        acks=-1,
        timeout=datetime.timedelta(milliseconds=1500),
        topic_data=tuple(
            topic_type(
                name=TopicName(name), partition_data=tuple(part_type(index=i, records=records) for i, records in parts)
            )
            for name, parts in topics.items()
        ),
    )
    header = schema.__header_schema__
    out = io.BytesIO()
    named: dict[str, Any] = {"request_api_key": 0, "request_api_version": version, "correlation_id": 77}
    entity_writer(header)(out, header(**named, client_id="someone"))
    entity_writer(schema)(out, request)
    return out.getvalue()


def _item(kind: Any, name: str) -> Any:
    """What the tuple field `name` is made of."""
    return typing.get_args(typing.get_type_hints(kind)[name])[0]


def read_response(api_key: int, version: int, frame: bytes) -> Any:
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    schema = index.load_response_schema(api_key, version)
    header, at = entity_reader(schema.__header_schema__)(frame, 4)
    assert header.correlation_id == 77
    body, end = entity_reader(schema)(frame, 4 + at)
    assert 4 + at + end == len(frame)
    return body


@pytest.mark.parametrize("version", PRODUCE_VERSIONS)
def test_produce_requests_are_read_as_another_codec_wrote_them(version: int) -> None:
    topics: dict[str, list[tuple[int, Any]]] = {"a": [(0, b"x" * 300), (7, None)], "größe": [(3, b"yz")]}
    frame = produce_request(version, "tx" if version % 2 else None, topics)
    request = decode_produce(memoryview(frame))
    assert (request.version, request.correlation_id, request.acks, request.timeout_ms) == (version, 77, -1, 1500)
    assert request.transactional_id == ("tx" if version % 2 else None)
    found = [(p.topic, p.partition, None if p.records is None else bytes(p.records)) for p in request.parts]
    assert found == [(name, i, records) for name, parts in topics.items() for i, records in parts]


@pytest.mark.parametrize("version", PRODUCE_VERSIONS)
def test_produce_responses_are_read_by_another_codec_as_they_were_meant(version: int) -> None:
    frame = produce_request(version, None, {"a": [(0, b"x"), (1, b"x")], "b": [(2, b"x")]})
    request = decode_produce(memoryview(frame))
    for i, part in enumerate(request.parts):
        part.base_offset, part.log_start_offset = 1000 + i, i
    request.throttle_ms = 1_234
    refused = request.parts[1]
    refused.error_code, refused.error_message, refused.base_offset = 6, "moved", -1
    body = read_response(0, version, encode_produce(request))
    assert body.throttle_time.total_seconds() == 1.234
    said = [(t.name, p.index, p.error_code, p.base_offset) for t in body.responses for p in t.partition_responses]
    assert said == [
        ("a", 0, ErrorCode.none, 1000),
        ("a", 1, ErrorCode.not_leader_or_follower, -1),
        ("b", 2, ErrorCode.none, 1002),
    ]
    if version >= 5:
        assert [p.log_start_offset for t in body.responses for p in t.partition_responses] == [0, 1, 2]
    if version >= 8:
        assert [p.error_message for t in body.responses for p in t.partition_responses] == [None, "moved", None]


@pytest.mark.parametrize("version", PRODUCE_VERSIONS)
def test_requests_that_are_like_others_are_read_and_answered_as_those(version: int) -> None:
    decoder = ProduceDecoder()
    rng = random.Random(version)
    patterns = 0
    for i in range(300):
        topics: dict[str, list[tuple[int, Any]]] = {
            rng.choice(["a", "b", "größe"]): [(rng.randrange(3), rng.choice([b"", b"x" * rng.randrange(1, 300), None]))]
        }
        if not rng.randrange(10):
            topics["c"] = [(0, b"y")]
        frame = bytearray(produce_request(version, rng.choice([None, None, None, "tx"]), topics))
        if not rng.randrange(10):
            frame[rng.randrange(2, len(frame))] ^= 1 << rng.randrange(8)  # a version, a length, a name, a tag
        if not rng.randrange(20):
            del frame[-rng.randrange(1, 30) :]
        try:
            plain = decode_produce(memoryview(frame))
        except Malformed:
            with pytest.raises(Malformed):
                decoder.decode(memoryview(frame))
            continue
        found = decoder.decode(memoryview(frame))
        patterns += found.pattern is not None
        found.pattern, pattern = None, found.pattern
        assert found == plain
        found.pattern = pattern
        for request in (plain, found):
            for part in request.parts:
                part.base_offset, part.log_start_offset = i * 1_000_000_007, i
                if i % 7 == 0:
                    part.error_code, part.error_message = 6, "moved"
            request.throttle_ms = 5 * (i % 11 == 0)
        if VERSION_MIN <= plain.version <= VERSION_MAX:
            assert encode_answer(found) == encode_produce(plain)
    assert (patterns > 10) == (version >= 5)


def test_what_is_learned_of_requests_is_bounded_and_keeps_no_records() -> None:
    decoder = ProduceDecoder()
    for i in range(1_000):
        frame = bytearray(produce_request(9, None, {"a": [(i, b"x" * 100)]}))
        decoder.decode(memoryview(frame))
        frame.clear()  # refused while anybody looks at it
    assert len(decoder._patterns) <= 64


@pytest.mark.parametrize("version", PRODUCE_VERSIONS)
def test_a_refusal_says_who_leads_instead_where_the_version_can(version: int) -> None:
    request = decode_produce(memoryview(produce_request(version, None, {"a": [(i, b"x") for i in range(4)]})))
    for part in request.parts[1:]:
        part.error_code = 6
    request.parts[1].leader = Leader(2, 7, "b-2.site", 9_092, "zone-b")
    request.parts[2].leader = Leader(3, 70_000, "b-3.site", 19_092, "")
    request.parts[3].leader = request.parts[1].leader
    body = read_response(0, version, encode_produce(request))
    if version < 10:
        return  # read to its last byte, and there was nothing more
    leaders = [
        (p.current_leader.leader_id, p.current_leader.leader_epoch) for p in body.responses[0].partition_responses
    ]
    assert leaders == [(-1, -1), (2, 7), (3, 70_000), (2, 7)]
    found = {(e.node_id, e.host, e.port, e.rack) for e in body.node_endpoints}
    assert found == {(2, "b-2.site", 9_092, "zone-b"), (3, "b-3.site", 19_092, None)}


@pytest.mark.parametrize("version", FETCH_VERSIONS)
def test_fetch_responses_are_read_by_another_codec_as_they_were_meant(version: int) -> None:
    parts = [
        FetchedPartition(0, 0, 50, 40, 5, [b"abc", memoryview(b"defg")], [(9, 12), (10, 13)]),
        FetchedPartition(1, 1),
        FetchedPartition(2, 0, 7, 7, 0, [b"h" * 200]),
    ]
    names: list[Any] = [uuid.UUID(int=1 << 99 | 1), uuid.UUID(int=2)] if version >= IDS_FROM else ["a", "b"]
    a, b = names
    answer = FetchAnswer(0, 0, [(a, parts[:2]), (b, parts[2:])], throttle_ms=1_234)
    body = read_response(1, version, b"".join(encode_fetch(version, 77, answer)))
    assert body.throttle_time.total_seconds() == 1.234
    found = [(t.topic_id if version >= IDS_FROM else t.topic, p) for t in body.responses for p in t.partitions]
    assert [(t, p.partition_index, p.error_code, p.high_watermark, p.last_stable_offset) for t, p in found] == [
        (a, 0, ErrorCode.none, 50, 40),
        (a, 1, ErrorCode.offset_out_of_range, -1, -1),
        (b, 2, ErrorCode.none, 7, 7),
    ]
    assert [bytes(p.records or b"") for _, p in found] == [b"abcdefg", b"", b"h" * 200]
    aborted = [(a.producer_id, a.first_offset) for a in found[0][1].aborted_transactions]
    assert aborted == [(ProducerId(9), 12), (ProducerId(10), 13)]
    if version >= 5:
        assert [p.log_start_offset for _, p in found] == [5, -1, 0]
    if version >= 11:
        assert {p.preferred_read_replica for _, p in found} == {BrokerId(-1)}


@pytest.mark.parametrize("version", FETCH_VERSIONS)
def test_a_fetch_is_told_where_to_read_next_and_who_leads_instead_where_the_version_can(version: int) -> None:
    parts = [
        FetchedPartition(0, 0, 50, 50, 0, read_replica=3),
        FetchedPartition(1, 6, leader=Leader(2, 7, "b-2.site", 9_092, "zone-b")),
        FetchedPartition(2, 0, 9, 9, 0, [b"xyz"]),
        FetchedPartition(3, 6, leader=Leader(70_000, 1, "b-3.site", 19_092, "")),
    ]
    topic: Any = uuid.UUID(int=7) if version >= IDS_FROM else "a"
    body = read_response(1, version, b"".join(encode_fetch(version, 77, FetchAnswer(topics=[(topic, parts)]))))
    [found] = [t.partitions for t in body.responses]
    assert [bytes(p.records or b"") for p in found] == [b"", b"", b"xyz", b""]
    if version >= 11:
        assert [p.preferred_read_replica for p in found] == [3, -1, -1, -1]
    if version >= 12:
        leaders = [(p.current_leader.leader_id, p.current_leader.leader_epoch) for p in found]
        assert leaders == [(-1, -1), (2, 7), (-1, -1), (70_000, 1)]
    if version >= 16:
        told = {(e.node_id, e.host, e.port, e.rack) for e in body.node_endpoints}
        assert told == {(2, "b-2.site", 9_092, "zone-b"), (70_000, "b-3.site", 19_092, None)}


@pytest.mark.parametrize("version", PRODUCE_VERSIONS)
def test_hostile_produce_requests_are_malformed_and_nothing_else(version: int) -> None:
    rng = random.Random(version)
    whole = produce_request(version, "tx", {"a": [(0, b"x" * 50), (1, b"y" * 9)], "b": [(0, b"z")]})
    refused = 0
    for _ in range(3_000):
        frame = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            # The header's api key and version are what brought the frame here.
            frame[rng.randrange(4, len(frame))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        cut = memoryview(bytes(frame[: rng.randrange(10, len(frame) + 1)]))
        try:
            request = decode_produce(cut)
        except Malformed:
            refused += 1
            continue
        assert sum(len(p.records or b"") for p in request.parts) <= len(cut)
    assert refused > 500
