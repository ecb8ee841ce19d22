"""Apache Kafka's own command-line tools: each does its work, or is refused with the protocol's own error."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.judges.conftest import (
    ACLS,
    CONSUMER_GROUPS,
    FETCH,
    LIST_TRANSACTIONS,
    OFFSET_DELETE,
    TRANSACTIONS,
    Tools,
    fresh,
    make_topic,
    until,
)

KAFKA = "Apache Kafka's tools"
Needs = Callable[..., None]


def judge(asked: str) -> pytest.MarkDecorator:
    return pytest.mark.judge(KAFKA, asked)


def fill(bootstrap: str, topic: str, count: int, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for i in range(count):
        producer.produce(topic, b"value-%d" % i, key=b"key-%d" % i, partition=partition, timestamp=1_000 + i)
    assert producer.flush(30) == 0


def leader(bootstrap: str, topic: str, partition: int = 0) -> int:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    return admin.list_topics(topic, timeout=10).topics[topic].partitions[partition].leader


# ── producers and consumers ─────────────────────────────────────────────────────────────────────────────────────────


@judge("VerifiableProducer, VerifiableConsumer in a classic group: every record once")
def test_verifiable_clients(tools: Tools) -> None:
    verifiable_clients(tools, "classic")


@judge("VerifiableProducer, VerifiableConsumer in a KIP-848 group: every record once")
def test_verifiable_clients_of_a_new_group(tools: Tools, needs: Needs) -> None:
    needs(CONSUMER_GROUPS)
    verifiable_clients(tools, "consumer")


def verifiable_clients(tools: Tools, protocol: str) -> None:
    topic = make_topic(tools.bootstrap)
    sent = tools.run("VerifiableProducer", "--topic", topic, "--max-messages", "2000", "--acks", "-1")
    assert sent.count("producer_send_success") == 2000
    read = tools.run(
        "VerifiableConsumer",
        *("--topic", topic, "--group-id", fresh("g"), "--max-messages", "2000", "--reset-policy", "earliest"),
        *("--group-protocol", protocol),
    )
    events = [json.loads(line) for line in read.splitlines() if line.startswith("{")]
    assert sum(e["count"] for e in events if e["name"] == "records_consumed") >= 2000
    assert all(e["success"] for e in events if e["name"] == "offsets_committed")
    assert events[-1]["name"] == "shutdown_complete"


@judge("ClientCompatibilityTest")
def test_client_compatibility(tools: Tools, needs: Needs, served: dict[int, tuple[int, int]]) -> None:
    topic = make_topic(tools.bootstrap, 1)
    yes = ["offsets-for-times", "cluster-id", "create-topics", "describe-configs", "idempotent-producer"]
    said = tools.run(
        "ClientCompatibilityTest",
        *("--topic", topic, "--num-cluster-nodes", "2", "--expect-record-too-large-exception", "False"),
        *(word for name in yes for word in (f"--{name}-supported", "True")),
        *("--describe-acls-supported", "True" if ACLS in served else "False"),
    )
    assert "SUCCESS" in said or "All tests" in said or "error" not in said.lower()


@judge("ProducerPerformance, ConsumerPerformance")
def test_performance_tools(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap)
    properties = ("--producer-props", f"bootstrap.servers={tools.bootstrap}", "acks=all")
    command = tools.command(
        "org.apache.kafka.tools.ProducerPerformance",
        *("--topic", topic, "--num-records", "20000", "--record-size", "1000", "--throughput", "-1", *properties),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "20000 records sent" in done.stdout, done.stdout + done.stderr
    said = tools.run("ConsumerPerformance", "--topic", topic, "--messages", "20000")
    figures = next(line for line in said.splitlines() if re.match(r"\d{4}-", line)).split(", ")
    assert int(figures[4]) >= 20_000


@judge("EndToEndLatency")
def test_end_to_end_latency(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap, 1)
    command = tools.command("org.apache.kafka.tools.EndToEndLatency", tools.bootstrap, topic, "200", "all", "100")
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "Avg latency" in done.stdout, done.stdout[-300:] + done.stderr[-300:]


@judge("ConsoleProducer, ConsoleConsumer")
def test_console_clients(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap, 1)
    tools.run("ConsoleProducer", "--topic", topic, text="eins\nzwei\ndrei\n")
    read = tools.run(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--topic", topic, "--from-beginning", "--max-messages", "3", "--timeout-ms", "30000"),
    )
    assert [line for line in read.splitlines() if line in ("eins", "zwei", "drei")] == ["eins", "zwei", "drei"]


@judge("TransactionalMessageCopier")
def test_transactional_message_copier(tools: Tools, needs: Needs) -> None:
    needs(TRANSACTIONS)
    source, target = make_topic(tools.bootstrap, 1), make_topic(tools.bootstrap, 1)
    fill(tools.bootstrap, source, 1_000)
    command = tools.command(
        "org.apache.kafka.tools.TransactionalMessageCopier",
        *("--broker-list", tools.bootstrap, "--input-topic", source, "--input-partition", "0"),
        *("--output-topic", target, "--transactional-id", fresh("tx"), "--consumer-group", fresh("g")),
        *("--max-messages", "1000", "--transaction-size", "50", "--enable-random-aborts"),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    read = tools.run(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        *("--topic", target, "--from-beginning", "--isolation-level", "read_committed", "--timeout-ms", "15000"),
        *("--max-messages", "1000"),
    )
    assert [w for w in read.splitlines() if w.startswith("value-")] == [f"value-{i}" for i in range(1_000)]


@judge("ReplicaVerificationTool: no lag between replicas")
def test_replica_verification(tools: Tools, needs: Needs) -> None:
    needs(FETCH, 18)
    topic = make_topic(tools.bootstrap, 2)
    fill(tools.bootstrap, topic, 500)
    command = tools.command(
        "org.apache.kafka.tools.ReplicaVerificationTool",
        *("--broker-list", tools.bootstrap, "--topics-include", topic, "--time", "-2", "--report-interval-ms", "500"),
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            deadline, said = time.monotonic() + 30, []
            for line in process.stdout:
                said.append(line)
                if "max lag is 0" in line:
                    break
                assert time.monotonic() < deadline, "".join(said)[-500:]
        finally:
            process.kill()
    assert said and "max lag is 0" in said[-1], "".join(said)[-500:]


# ── topics, configs, records ────────────────────────────────────────────────────────────────────────────────────────


@judge("kafka-topics: create, describe, alter, list, delete")
def test_topics(tools: Tools) -> None:
    topic = fresh("topics")
    tools.run("TopicCommand", "--create", "--topic", topic, "--partitions", "3", "--config", "retention.ms=90000")
    described = tools.run("TopicCommand", "--describe", "--topic", topic)
    assert "PartitionCount: 3" in described and "retention.ms=90000" in described
    tools.run("TopicCommand", "--alter", "--topic", topic, "--partitions", "5")
    until("it has five", lambda: "PartitionCount: 5" in tools.run("TopicCommand", "--describe", "--topic", topic))
    assert "TopicExistsException" in tools.run("TopicCommand", "--create", "--topic", topic, fails=True)
    assert topic in tools.run("TopicCommand", "--list")
    tools.run("TopicCommand", "--describe", "--under-replicated-partitions")
    tools.run("TopicCommand", "--delete", "--topic", topic)
    until("it is gone", lambda: topic not in tools.run("TopicCommand", "--list"))


@judge("kafka-topics: owners by --replica-assignment")
def test_topics_with_owners(tools: Tools) -> None:
    topic = fresh("placed")
    ids = sorted(AdminClient({"bootstrap.servers": tools.bootstrap}).list_topics(timeout=10).brokers)
    tools.run("TopicCommand", "--create", "--topic", topic, "--replica-assignment", f"{ids[1]},{ids[0]},{ids[1]}")
    described = tools.run("TopicCommand", "--describe", "--topic", topic)
    assert re.findall(r"Leader: (\d+)", described) == [str(ids[1]), str(ids[0]), str(ids[1])]


@judge("kafka-configs: topics and brokers, add, describe, delete")
def test_configs(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap)
    which = ("--entity-type", "topics", "--entity-name", topic)
    command = "kafka.admin.ConfigCommand"
    tools.run(command, *which, "--alter", "--add-config", "retention.ms=60000,retention.bytes=1000000")

    def described() -> str:
        return tools.run(command, *which, "--describe")

    until("it is set", lambda: "retention.ms=60000" in described())
    assert "DYNAMIC_TOPIC_CONFIG:retention.ms=60000, DEFAULT_CONFIG:log.retention.ms=-1" in described()
    tools.run(command, *which, "--alter", "--delete-config", "retention.ms")
    until("it is gone", lambda: "retention.ms=60000" not in described())
    assert "retention.bytes=1000000" in described()
    refused = tools.run(command, *which, "--alter", "--add-config", "retention.ms=soon", fails=True)
    assert "whole number" in refused
    node = str(leader(tools.bootstrap, topic))
    assert "broker.rack=us-central1-" in tools.run(
        command, "--entity-type", "brokers", "--entity-name", node, "--describe", "--all"
    )


@judge("kafka-get-offsets: earliest, latest, max timestamp, local and tiered")
def test_get_offsets(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap, 1)
    fill(tools.bootstrap, topic, 10)

    def offset(time_: str) -> str:
        said = tools.run("GetOffsetShell", "--topic", topic, "--time", time_)
        return next(line for line in said.splitlines() if line.startswith(topic)).rpartition(":")[2]

    assert (offset("earliest"), offset("latest"), offset("max-timestamp")) == ("0", "10", "9")
    assert 0 <= int(offset("-4")) <= 10
    assert offset("1005") in {str(i) for i in range(6)}, "by time, to the batch"


@judge("kafka-delete-records")
def test_delete_records(tools: Tools, tmp_path: Path) -> None:
    topic = make_topic(tools.bootstrap, 1)
    fill(tools.bootstrap, topic, 10)
    wanted = tmp_path / "offsets.json"
    wanted.write_text(json.dumps({"partitions": [{"topic": topic, "partition": 0, "offset": 4}], "version": 1}))
    assert "low_watermark: 4" in tools.run("DeleteRecordsCommand", "--offset-json-file", str(wanted))


# ── the cluster ─────────────────────────────────────────────────────────────────────────────────────────────────────


@judge("kafka-reassign-partitions: generate, execute, verify, list")
def test_reassignment(tools: Tools, tmp_path: Path) -> None:
    topic = make_topic(tools.bootstrap, 2)
    fill(tools.bootstrap, topic, 10)
    ids = sorted(AdminClient({"bootstrap.servers": tools.bootstrap}).list_topics(timeout=10).brokers)
    target = next(i for i in ids if i != leader(tools.bootstrap, topic))
    topics = tmp_path / "topics.json"
    topics.write_text(json.dumps({"topics": [{"topic": topic}], "version": 1}))
    command = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"
    brokers = ("--broker-list", ",".join(map(str, ids)))
    proposal = tools.run(command, "--generate", "--topics-to-move-json-file", str(topics), *brokers)
    assert "Proposed partition reassignment" in proposal
    plan = tmp_path / "plan.json"
    moves = [{"topic": topic, "partition": 0, "replicas": [target], "log_dirs": ["any"]}]
    plan.write_text(json.dumps({"partitions": moves, "version": 1}))
    assert "Successfully started" in tools.run(command, "--execute", "--reassignment-json-file", str(plan))
    verified = tools.run(command, "--verify", "--reassignment-json-file", str(plan))
    assert f"Reassignment of partition {topic}-0 is completed." in verified
    assert leader(tools.bootstrap, topic) == target
    assert "No partition reassignments found" in tools.run(command, "--list")


@judge("kafka-leader-election: nothing to elect")
def test_leader_election(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap, 1)
    which = ("--election-type", "preferred", "--topic", topic, "--partition", "0")
    assert "already elected" in tools.run("LeaderElectionCommand", *which)
    tools.run("LeaderElectionCommand", "--election-type", "preferred", "--all-topic-partitions")


@judge("kafka-log-dirs: bytes in the WAL and in object storage")
def test_log_dirs(tools: Tools) -> None:
    topic = make_topic(tools.bootstrap, 1)
    fill(tools.bootstrap, topic, 100)
    said = tools.run("LogDirsCommand", "--describe", "--topic-list", topic)
    brokers = json.loads(next(line for line in said.splitlines() if line.startswith("{")))["brokers"]
    sizes = [p["size"] for b in brokers for d in b["logDirs"] for p in d["partitions"]]
    assert {d["logDir"] for b in brokers for d in b["logDirs"]} == {"/wal", "/objects"}
    assert sum(sizes) > 2_000


@judge("kafka-metadata-quorum: status, replication")
def test_metadata_quorum(tools: Tools) -> None:
    status = tools.run("MetadataQuorumCommand", "describe", "--status")
    assert re.search(r"LeaderId:\s+\d+", status) and re.search(r"MaxFollowerLag:\s+0", status)
    assert tools.run("MetadataQuorumCommand", "describe", "--replication").count("Follower") == 1


@judge("kafka-cluster: id, endpoints; unregister is refused")
def test_cluster(tools: Tools) -> None:
    assert "Cluster ID: gcp.gcp" in tools.run("ClusterTool", "cluster-id")
    assert tools.run("ClusterTool", "list-endpoints").count("127.0.0.1") == 2
    refused = tools.run("ClusterTool", "unregister", "--id", "1")
    assert "does not support" in refused or "nsupported" in refused


@judge("kafka-features: describe; upgrade is refused")
def test_features(tools: Tools) -> None:
    tools.run("FeatureCommand", "describe")
    tools.run("FeatureCommand", "upgrade", "--feature", "metadata.version=20", fails=True)


@judge("kafka-broker-api-versions")
def test_api_versions(tools: Tools) -> None:
    said = tools.run("BrokerApiVersionsCommand")
    assert said.count("(id: ") == 2 and "Produce(0): 3 to" in said


# ── groups, transactions, ACLs ──────────────────────────────────────────────────────────────────────────────────────


@judge("kafka-consumer-groups: list, describe, reset offsets, delete")
def test_consumer_groups(tools: Tools) -> None:
    topic, group = make_topic(tools.bootstrap, 1), fresh("g")
    fill(tools.bootstrap, topic, 10)
    consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer"
    limits = ("--max-messages", "6", "--timeout-ms", "60000")
    read = tools.run(consumer, "--topic", topic, "--group", group, "--from-beginning", *limits)
    assert "total of 6 messages" in read
    command = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
    assert group in tools.run(command, "--list")
    row = next(r.split() for r in tools.run(command, "--describe", "--group", group).splitlines() if topic in r)
    assert row[:5] == [group, topic, "0", "6", "10"] and row[5] == "4"
    assert "Empty" in tools.run(command, "--describe", "--group", group, "--state")
    tools.run(command, "--describe", "--group", group, "--members")
    reset = tools.run(command, "--group", group, "--topic", topic, "--reset-offsets", "--to-offset", "2", "--execute")
    assert re.search(rf"{topic}\s+0\s+2", reset)
    tools.run(command, "--delete", "--group", group)
    until("it is gone", lambda: group not in tools.run(command, "--list"))


@judge("kafka-consumer-groups: delete offsets")
def test_delete_offsets(tools: Tools, needs: Needs) -> None:
    needs(OFFSET_DELETE)
    topic, group = make_topic(tools.bootstrap, 1), fresh("g")
    fill(tools.bootstrap, topic, 3)
    consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer"
    tools.run(consumer, "--topic", topic, "--group", group, "--from-beginning", "--max-messages", "3")
    command = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
    assert "Successful" in tools.run(command, "--delete-offsets", "--group", group, "--topic", topic)


@judge("kafka-groups: list")
def test_groups(tools: Tools) -> None:
    tools.run("GroupsCommand", "--list")


@judge("kafka-transactions: list, describe producers")
def test_transactions(tools: Tools, needs: Needs) -> None:
    needs(LIST_TRANSACTIONS)
    tools.run("TransactionsCommand", "list")


@judge("kafka-acls: refused where nobody is told apart")
def test_acls(tools: Tools, needs: Needs) -> None:
    needs(ACLS)
    # This lab's listeners are plain: Kafka without an authorizer says the same.
    assert "SecurityDisabledException" in tools.run("AclCommand", "--list", fails=True)
