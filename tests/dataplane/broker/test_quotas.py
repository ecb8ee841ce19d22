"""Quotas: who has which, and that over any stretch of time nobody gets more, told in the answer and enforced."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from kio.schema.alter_client_quotas.v1 import request as quota_request
from kio.schema.describe_client_quotas.v1 import request as described
from kio.schema.errors import ErrorCode
from kio.static.primitive import f64

from dataplane.broker.net import KafkaServer
from dataplane.broker.quotas import BURST_S, CONSUMER, PRODUCER, THROTTLE_MAX_MS, Bucket, Quotas, limit_of
from dataplane.broker.security import NoStore, Security
from dataplane.contract.security import ListenerProtocol, SecuritySpec
from dataplane.ledger.security_state import SecurityState, entity_key
from providers.base.clock import SeededRng, SystemClock
from providers.base.loops import run_loop
from tests.dataplane.broker.secured import Broker, ask, running, spec_of
from tests.dataplane.broker.test_connections import OnePartition, fetch, produce, until
from tests.dataplane.stream.batches import batch


def entities(*found: tuple[dict[str, str | None], float]) -> SecurityState:
    return SecurityState(1, [], {}, {entity_key(entity): {PRODUCER: rate} for entity, rate in found})


def test_the_nearest_entity_counts() -> None:
    ladder: list[dict[str, str | None]] = [
        {"user": "u", "client-id": "c"},
        {"user": "u", "client-id": None},
        {"user": "u"},
        {"user": None, "client-id": "c"},
        {"user": None, "client-id": None},
        {"user": None},
        {"client-id": "c"},
        {"client-id": None},
    ]
    for first in range(len(ladder)):
        state = entities(*((entity, 100.0 + i) for i, entity in enumerate(ladder) if i >= first))
        limit = limit_of(state, PRODUCER, "u", "c")
        assert limit is not None and limit.rate == 100.0 + first, ladder[first]
    assert limit_of(entities(({"user": "other"}, 1.0)), PRODUCER, "u", "c") is None
    assert limit_of(entities(({"user": "u"}, 1.0)), CONSUMER, "u", "c") is None


def test_a_user_shares_one_rate_and_under_a_default_each_has_its_own() -> None:
    state = entities(({"user": "u"}, 1_000.0), ({"user": None}, 1_000.0))
    quotas = Quotas(lambda: state)
    assert quotas.charge(PRODUCER, "u", "one", 1_000, 0) == 0
    assert quotas.charge(PRODUCER, "u", "two", 1_000, 0) == pytest.approx(1_000)
    assert quotas.charge(PRODUCER, "v", "one", 1_000, 0) == 0
    assert quotas.charge(PRODUCER, "w", "one", 1_000, 0) == 0


def test_a_changed_rate_holds_at_once() -> None:
    state = entities(({"user": "u"}, 1_000.0))
    quotas = Quotas(lambda: state)
    quotas.charge(PRODUCER, "u", "c", 1_000, 0)
    state.quotas[entity_key({"user": "u"})] = {PRODUCER: 100.0}
    state.revision += 1
    assert quotas.charge(PRODUCER, "u", "c", 100, 0) == pytest.approx(1_000)
    state.quotas.clear()
    state.revision += 1
    assert not quotas.active and quotas.charge(PRODUCER, "u", "c", 1 << 30, 0) == 0


@pytest.mark.parametrize("seed", range(10))
def test_who_waits_as_told_gets_its_rate_and_no_more_over_any_stretch(seed: int) -> None:
    rng = random.Random(seed)
    rate = rng.choice([1_000.0, 250_000.0])
    bucket, now, sent = Bucket(rate * BURST_S, 0.0), 0.0, []
    for _ in range(500):
        size = rng.randrange(1, int(rate * 3))
        wait_ms = bucket.charge(size, rate, now)
        assert 0 <= wait_ms <= THROTTLE_MAX_MS
        sent.append((now, size))
        now += wait_ms + rng.choice([0.0, 0.0, rng.uniform(0, 3_000)])
    for first in range(0, 500, 7):
        total = 0
        for at, size in sent[first:]:
            # Up to the last one: that one is what has to be waited for afterwards.
            assert total <= rate * ((at - sent[first][0]) / 1000 + BURST_S) * 1.000_001 + 1
            total += size
    busy = sum(size for _, size in sent) / (now / 1000)
    assert busy <= rate * 1.1


class Quota(NoStore):
    """Everybody has the same rates."""

    def __init__(self, rate: float) -> None:
        self.state = SecurityState(1, [], {}, {entity_key({"user": None}): {PRODUCER: rate, CONSUMER: rate}})


def with_a_quota(rate: float, test: Any) -> None:
    async def main() -> None:
        engine: Any = OnePartition()
        clock, rng = SystemClock(), SeededRng(1)
        security = Security(SecuritySpec(), Quota(rate), clock=clock, rng=rng)
        server = KafkaServer(engine, clock=clock, rng=rng, security=security)
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(20):
                await test(engine.log, reader, writer)
        finally:
            writer.close()
            await server.close()

    run_loop(main())


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


def test_a_producer_over_its_rate_is_told_and_not_read_meanwhile() -> None:
    async def test(log: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        records = batch(bytes(20_000))
        loop = asyncio.get_running_loop()
        writer.write(produce(1, records) + produce(2, records))
        await until(lambda: len(log.taken) == 1)
        began = loop.time()
        log.ack()
        [throttle_ms] = struct.unpack(">i", (await answer(reader))[-4:])
        assert 300 < throttle_ms < 500, "20,000 bytes, 10,000 saved up, 30,000 a second: a third of a second; and some"
        assert loop.time() - began < 0.2, "the answer itself does not wait (KIP-219)"
        await until(lambda: len(log.taken) == 2)
        assert loop.time() - began > throttle_ms / 1000 - 0.05

    async def wider(log: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(produce(1, batch(bytes(20_000))))
        await until(lambda: len(log.taken) == 1)
        log.ack()
        assert struct.unpack(">i", (await answer(reader))[-4:]) == (0,)

    with_a_quota(14_400, test)
    with_a_quota(40_000, wider)


def test_a_consumer_over_its_rate_is_told_and_not_read_meanwhile() -> None:
    async def test(log: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        log.records = bytes(14_000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.write(fetch(1) + fetch(2))
        [throttle_ms] = struct.unpack_from(">i", await answer(reader), 4)
        assert 300 < throttle_ms <= 400
        assert loop.time() - began < 0.2
        [more] = struct.unpack_from(">i", await answer(reader), 4)
        assert loop.time() - began > throttle_ms / 1000 - 0.05
        assert more > 1_000

    with_a_quota(10_000, test)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running(spec_of(tmp_path_factory.mktemp("quotas"), ListenerProtocol.PLAINTEXT)) as started:
        yield started


def alter(broker: Broker, entity: str, name: str | None, key: str, value: float) -> tuple[ErrorCode, str | None]:
    """AlterClientQuotas, in kio's codec: no client in Python has it."""
    change = quota_request.EntryData(
        entity=(quota_request.EntityData(entity_type=entity, entity_name=name),),
        ops=(quota_request.OpData(key=key, value=f64(value), remove=False),),
    )
    response = ask(broker, quota_request.AlterClientQuotasRequest(entries=(change,), validate_only=False))
    [entry] = response.entries
    return entry.error_code, entry.error_message


def test_librdkafka_is_slowed_down_to_its_quota(broker: Broker) -> None:
    assert alter(broker, "client-id", "slow", "producer_byte_rate", 200_000.0) == (ErrorCode.none, None)
    everything = described.DescribeClientQuotasRequest(components=(), strict=False)
    [entry] = ask(broker, everything).entries or ()
    assert [(v.key, v.value) for v in entry.values] == [("producer_byte_rate", 200_000.0)]

    def seconds(client_id: str) -> tuple[float, list[float]]:
        throttled: list[float] = []
        producer = Producer(
            {
                "bootstrap.servers": broker.address,
                "client.id": client_id,
                "linger.ms": 5,
                "throttle_cb": lambda event: throttled.append(event.throttle_time),
            }
        )
        producer.list_topics("slow", timeout=10)
        began = time.monotonic()
        for _ in range(50):
            producer.produce("slow", bytes(10_000))
            producer.poll(0)
        assert producer.flush(20) == 0
        # A request of its own behind the large ones: it is not read before they have been waited for.
        producer.produce("slow", b"last")
        assert producer.flush(20) == 0
        return time.monotonic() - began, throttled

    slow, told = seconds("slow")
    fast, not_told = seconds("fast")
    # 500 kB at 200 kB a second, of which 200 kB were saved up.
    assert slow > 1.4 > fast and told and not not_told


@pytest.mark.parametrize(
    ("entity", "name", "key", "value"),
    [
        ("ip", "10.0.0.1", "producer_byte_rate", 1e6),
        ("user", "x", "connection_creation_rate", 10.0),
        ("user", "x", "request_percentage", 0.0),
        ("user", "x", "controller_mutation_rate", -1.0),
        ("user", "x", "producer_byte_rate", 0.0),
        ("user", "", "producer_byte_rate", 1e6),
    ],
)
def test_quotas_that_are_not_honoured_are_refused(
    broker: Broker, entity: str, name: str, key: str, value: float
) -> None:
    error, message = alter(broker, entity, name, key, value)
    assert error is ErrorCode.invalid_request and message
