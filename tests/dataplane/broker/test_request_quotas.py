"""Quotas of requests and of partitions made and deleted: counted as Kafka counts them, told in the answer, enforced,
and set by Kafka's own tool.
"""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from kio import index
from kio.schema.create_partitions.v3 import request as grow
from kio.schema.create_topics.v7 import request as create
from kio.schema.delete_topics.v6 import request as delete
from kio.schema.describe_client_quotas.v1 import request as described
from kio.schema.errors import ErrorCode
from kio.schema.list_groups.v4 import request as groups
from kio.serial import entity_reader, entity_writer

from dataplane.broker.quotas import HONOURED, MUTATIONS, REQUESTS, Quotas
from dataplane.broker.request_time import RequestTime
from dataplane.contract.security import ListenerProtocol
from dataplane.ledger.security_state import SecurityState, entity_key
from tests.dataplane.broker.secured import HOST, Broker, ask, running, spec_of
from tests.dataplane.broker.test_java_groups import tools
from tests.dataplane.broker.test_quotas import alter
from tests.sim.virtualtime import run

__all__ = ["tools"]  # a fixture

EXCEEDED = ErrorCode.throttling_quota_exceeded
CONFIGS = "kafka.admin.ConfigCommand"
TOPICS = "org.apache.kafka.tools.TopicCommand"


class ManualClock:
    """Time that passes when it is told to."""

    now_ms = 0.0

    def monotonic_ms(self) -> float:
        return self.now_ms


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_request_its_steps_are_counted_and_not_its_waits() -> None:
    async def main() -> None:
        clock = ManualClock()
        gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> str:
            clock.now_ms += 3
            said = await gate
            clock.now_ms += 4
            await asyncio.sleep(0)
            clock.now_ms += 5
            return said

        request = RequestTime(clock)  # type: ignore[arg-type]
        clock.now_ms += 2  # its decoding
        task = asyncio.ensure_future(request.timed(work()))  # type: ignore[arg-type]
        clock.now_ms += 1_000
        await asyncio.sleep(0)
        clock.now_ms += 1_000
        gate.set_result("done")
        assert await task == "done" and request.ms == 2 + 3 + 4 + 5

    run(main())


@pytest.mark.parametrize("waits", [True, False])
def test_a_request_that_is_cancelled_or_fails_does_so_with_its_time_counted_or_not(waits: bool) -> None:
    async def main() -> None:
        clock = ManualClock()
        cleaned_up = []

        async def work() -> None:
            try:
                if not waits:
                    raise ValueError("wrong")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                cleaned_up.append(1)

        task = asyncio.ensure_future(RequestTime(clock).timed(work()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        if waits:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if waits else ValueError):
            await task
        assert cleaned_up == [1]

    run(main())


def quotas(quota: str, value: float) -> Quotas:
    state = SecurityState(1, [], {}, {entity_key({"client-id": None}): {quota: value}})
    return Quotas(lambda: state)


def test_a_percentage_is_of_one_threads_time() -> None:
    of = quotas(REQUESTS, 20.0)
    assert of.used(REQUESTS) and not of.used(MUTATIONS)
    assert of.charge(REQUESTS, "", "c", 200, 0) == 0, "a second's worth may be saved up"
    assert of.charge(REQUESTS, "", "c", 50, 0) == pytest.approx(250)
    assert of.charge(REQUESTS, "", "other", 50, 0) == 0
    assert of.charge(REQUESTS, "", "c", 0, 250) == pytest.approx(0)


def test_who_owes_partitions_gets_none_until_they_are_paid_for() -> None:
    of = quotas(MUTATIONS, 2.0)
    burst = int(2 * HONOURED[MUTATIONS].burst_s)
    assert of.take(MUTATIONS, "", "c", burst, 0) == (True, 0)
    assert of.take(MUTATIONS, "", "c", 3, 0) == (True, 1_500), "the last ones on credit, as Kafka gives it"
    assert of.take(MUTATIONS, "", "c", 1, 500) == (False, 1_000)
    assert of.take(MUTATIONS, "", "c", 1, 1_500) == (True, 500)


# ── over the wire ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running(spec_of(tmp_path_factory.mktemp("quotas"), ListenerProtocol.PLAINTEXT)) as started:
        yield started


class Client:
    """A connection with a client id, that speaks kio's codec."""

    def __init__(self, broker: Broker, client_id: str) -> None:
        self._client_id = client_id
        self._connection = socket.create_connection((HOST, broker.port), 20)
        self._answers = self._connection.makefile("rb")

    def ask(self, body: Any) -> Any:
        kind, out = type(body), io.BytesIO()
        header = kind.__header_schema__
        fields = {"request_api_key": kind.__api_key__, "request_api_version": kind.__version__, "correlation_id": 1}
        entity_writer(header)(out, header(**fields, client_id=self._client_id))
        entity_writer(kind)(out, body)
        self._connection.sendall(len(out.getvalue()).to_bytes(4, "big") + out.getvalue())
        frame = self._answers.read(int.from_bytes(self._answers.read(4), "big"))
        response = index.load_response_schema(kind.__api_key__, kind.__version__)
        _, at = entity_reader(response.__header_schema__)(frame, 0)
        return entity_reader(response)(frame, at)[0]

    def close(self) -> None:
        self._answers.close()
        self._connection.close()


def topics(*named: tuple[str, int], validate_only: bool = False) -> Any:
    wanted = tuple(
        create.CreatableTopic(name=name, num_partitions=count, replication_factor=1, assignments=(), configs=())
        for name, count in named
    )
    return create.CreateTopicsRequest(topics=wanted, validate_only=validate_only)


def test_partitions_beyond_the_rate_are_refused_and_the_rest_is_made(broker: Broker) -> None:
    assert alter(broker, "client-id", "maker", MUTATIONS, 0.5) == (ErrorCode.none, None)
    client = Client(broker, "maker")
    assert client.ask(topics(("m1", 50), validate_only=True)).throttle_time.total_seconds() == 0, "it only asks"
    answer = client.ask(topics(("m1", 3), ("m2", 3), ("m3", 1)))
    assert [(t.name, t.error_code) for t in answer.topics] == [
        ("m1", ErrorCode.none),
        ("m2", ErrorCode.none),
        ("m3", EXCEEDED),
    ]
    waited_s = answer.throttle_time.total_seconds()
    assert 1.5 < waited_s <= 2, "five were saved up, six made, half a one a second"

    began = time.monotonic()
    grown = client.ask(
        grow.CreatePartitionsRequest(
            topics=(grow.CreatePartitionsTopic(name="m1", count=4, assignments=None),),
            timeout=answer.throttle_time,
            validate_only=False,
        )
    )
    assert time.monotonic() - began > waited_s - 0.2, "the connection was not read meanwhile"
    assert [r.error_code for r in grown.results] == [ErrorCode.none], "what was owed is paid for"
    gone = Client(broker, "maker").ask(
        delete.DeleteTopicsRequest(
            topics=(
                delete.DeleteTopicState(name="m1", topic_id=None),
                delete.DeleteTopicState(name="no", topic_id=None),
            ),
            timeout=answer.throttle_time,
        )
    )
    found = {r.name: r.error_code for r in gone.responses}
    assert found == {"m1": EXCEEDED, "no": ErrorCode.unknown_topic_or_partition}, "what is not there costs nothing"
    assert gone.throttle_time.total_seconds() > 0
    assert "m1" in broker.see(lambda: broker.node.state.topics), "what is refused is not done"
    assert Client(broker, "another").ask(topics(("m4", 20))).topics[0].error_code is ErrorCode.none
    client.close()


def test_clients_that_do_not_know_the_refusal_wait_afterwards(broker: Broker) -> None:
    assert alter(broker, "client-id", "old", MUTATIONS, 10.0) == (ErrorCode.none, None)
    admin = AdminClient({"bootstrap.servers": broker.address, "client.id": "old"})
    began = time.monotonic()
    admin.create_topics([NewTopic("o1", 115)])["o1"].result(20)
    admin.create_partitions([NewPartitions("o1", 116)])["o1"].result(20)
    assert time.monotonic() - began > 1.3
    assert len(broker.see(lambda: broker.node.state.topics["o1"].streams)) == 116


def test_requests_that_keep_the_thread_busy_are_slowed_down_to_their_share(broker: Broker) -> None:
    def waited(client_id: str, count: int) -> tuple[float, float, int]:
        """So many requests, fewer if one is told to wait: how long the next one takes, what was told, and how many
        there were."""
        client, told_s, asked = Client(broker, client_id), 0.0, 0
        while asked < count and not told_s:
            asked += 1
            told_s = client.ask(
                groups.ListGroupsRequest(states_filter=("Stable",) * 2_000)
            ).throttle_time.total_seconds()
        began = time.monotonic()
        client.ask(groups.ListGroupsRequest(states_filter=()))
        took_s = time.monotonic() - began
        client.close()
        return took_s, told_s, asked

    assert alter(broker, "client-id", "busy", REQUESTS, 0.4) == (ErrorCode.none, None)
    slow, told, asked = waited("busy", 500)  # how many it takes is the machine's affair
    assert told > 0 and slow > told * 0.9, "the connection is not read for as long as was told"
    fast, not_told, _ = waited("idle", asked)
    assert not_told == 0 and fast < slow


def tool(tools: Path, name: str, broker: Broker, *args: str, fails: bool = False) -> str:
    command = ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{tools}/*", name]
    command += ["--bootstrap-server", broker.address, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) is fails, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout + done.stderr


def test_kafkas_tools_set_both_and_understand_a_refusal(broker: Broker, tools: Path, tmp_path: Path) -> None:
    who = ("--entity-type", "clients", "--entity-name", "java")
    tool(tools, CONFIGS, broker, "--alter", *who, "--add-config", f"{REQUESTS}=50,{MUTATIONS}=20")
    entries = ask(broker, described.DescribeClientQuotasRequest(components=(), strict=False)).entries or ()
    [shown] = [entry.values for entry in entries if entry.entity[0].entity_name == "java"]
    assert {(v.key, v.value) for v in shown} == {(REQUESTS, 50.0), (MUTATIONS, 20.0)}

    config = tmp_path / "client.properties"
    config.write_text("client.id=java\n")
    assert Client(broker, "java").ask(topics(("j1", 400))).topics[0].error_code is ErrorCode.none
    args = ("--topic", "j2", "--partitions", "2", "--command-config", str(config))
    assert "ThrottlingQuotaExceeded" in tool(tools, TOPICS, broker, "--create", *args, fails=True)
    assert broker.see(lambda: {"j1", "j2"} & broker.node.state.topics.keys()) == {"j1"}

    tool(tools, CONFIGS, broker, "--alter", *who, "--delete-config", f"{REQUESTS},{MUTATIONS}")
    left = ask(broker, described.DescribeClientQuotasRequest(components=(), strict=False)).entries or ()
    assert "java" not in {part.entity_name for entry in left for part in entry.entity}
