"""ACLs and quotas as clients and tools that nobody here wrote set them and meet them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka import KafkaAdminClient
from kafka.admin import (
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePatternFilter,
)
from kafka.admin import ResourceType as PythonResourceType
from kafka.errors import ClusterAuthorizationFailedError

from controlplane.bench.peers import jars
from dataplane.contract.security import ListenerProtocol
from providers.base.errors import Unavailable
from tests.dataplane.broker.secured import ADMIN, ADMIN_PASSWORD, Broker, running, spec_of

ALICE = "alice"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("acls")
    spec = spec_of(folder, ListenerProtocol.SASL_PLAINTEXT, authorize=True, super_users=(f"User:{ADMIN}",))
    with running(spec) as started:
        admin = AdminClient(config(started))
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4_096)
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(ALICE, info, b"alice")])[ALICE].result(20)
        admin.create_topics([NewTopic("fleet-1", 1), NewTopic("secret", 1)])["secret"].result(20)
        yield started


def config(broker: Broker, user: str = ADMIN, **more: object) -> dict[str, Any]:
    return {
        "bootstrap.servers": broker.address,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": user,
        "sasl.password": ADMIN_PASSWORD if user == ADMIN else user,
        "log_level": 0,
        **more,
    }


def allow(
    kind: ResourceType,
    name: str,
    operation: AclOperation,
    pattern: ResourcePatternType = ResourcePatternType.LITERAL,
    permission: AclPermissionType = AclPermissionType.ALLOW,
) -> AclBinding:
    return AclBinding(kind, name, pattern, f"User:{ALICE}", "*", operation, permission)


@contextlib.contextmanager
def granted(broker: Broker, *acls: AclBinding) -> Iterator[None]:
    admin = AdminClient(config(broker))
    for future in admin.create_acls(list(acls)).values():
        future.result(10)
    try:
        yield
    finally:
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for future in admin.delete_acls([everything]).values():
            future.result(10)


def produced(broker: Broker, topic: str, **more: object) -> int | None:
    """The error with which a record of Alice's was refused, None when it was taken."""
    outcome: list[int | None] = []
    producer = Producer(config(broker, ALICE, **more))
    producer.produce(topic, b"x", on_delivery=lambda e, _: outcome.append(e.code() if e is not None else None))
    producer.flush(10)
    return outcome[0]


def consumed(broker: Broker, topic: str, group: str, protocol: str = "classic") -> int | None:
    """The first error that a consumer of Alice's meets, None when it gets a record."""
    asked = {"group.id": group, "auto.offset.reset": "earliest", "group.protocol": protocol}
    consumer = Consumer(config(broker, ALICE, **asked))
    consumer.subscribe([topic])
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for message in consumer.consume(1, 0.2):
                error = message.error()
                return error.code() if error is not None else None
    finally:
        consumer.close()
    raise AssertionError("neither a record nor an error")


READ, WRITE, DESCRIBE = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE
TOPIC, GROUP, PREFIXED = ResourceType.TOPIC, ResourceType.GROUP, ResourcePatternType.PREFIXED


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_without_an_acl_nothing_is_taken_or_given(broker: Broker, protocol: str) -> None:
    assert produced(broker, "fleet-1") == KafkaError.TOPIC_AUTHORIZATION_FAILED
    with granted(broker, allow(TOPIC, "fleet-1", READ)):
        assert produced(broker, "fleet-1") == KafkaError.TOPIC_AUTHORIZATION_FAILED
        assert consumed(broker, "fleet-1", "g1", protocol) == KafkaError.GROUP_AUTHORIZATION_FAILED
    with granted(broker, allow(GROUP, "g1", READ)):
        assert consumed(broker, "fleet-1", "g1", protocol) == KafkaError.TOPIC_AUTHORIZATION_FAILED


@pytest.mark.parametrize("idempotent", [False, True])
def test_with_acls_a_client_works_and_a_denial_wins(broker: Broker, idempotent: bool) -> None:
    more = {"enable.idempotence": idempotent}
    acls = (
        allow(TOPIC, "fleet-", WRITE, PREFIXED),
        allow(TOPIC, "fleet-", READ, PREFIXED),
        allow(GROUP, "g", READ, PREFIXED),
    )
    with granted(broker, *acls):
        assert produced(broker, "fleet-1", **more) is None
        for protocol in ("classic", "consumer"):
            assert consumed(broker, "fleet-1", f"g-{idempotent}-{protocol}", protocol) is None
        assert produced(broker, "secret", **more) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    with granted(broker, *acls, allow(TOPIC, "fleet-1", AclOperation.ALL, permission=AclPermissionType.DENY)):
        assert produced(broker, "fleet-1", **more) == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_an_acl_taken_away_ends_what_is_open(broker: Broker) -> None:
    admin = AdminClient(config(broker))
    with granted(broker, allow(TOPIC, "fleet-1", READ), allow(TOPIC, "fleet-1", WRITE), allow(GROUP, "g2", READ)):
        assert produced(broker, "fleet-1") is None
        consumer = Consumer(config(broker, ALICE, **{"group.id": "g2", "auto.offset.reset": "earliest"}))
        consumer.subscribe(["fleet-1"])
        first = consumer.poll(10)
        assert first is not None and first.error() is None
        gone = AclBindingFilter(
            TOPIC, "fleet-1", ResourcePatternType.ANY, None, None, AclOperation.READ, AclPermissionType.ANY
        )
        assert len(next(iter(admin.delete_acls([gone]).values())).result(10)) == 1
        deadline = time.monotonic() + 10
        error = None
        while error is None and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            error = message.error() if message is not None else None
        consumer.close()
        assert error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_metadata_and_groups_of_others_are_not_shown(broker: Broker) -> None:
    alice = AdminClient(config(broker, ALICE))
    assert set(alice.list_topics(timeout=10).topics) == set()
    with granted(broker, allow(TOPIC, "fleet-1", DESCRIBE)):
        assert set(alice.list_topics(timeout=10).topics) == {"fleet-1"}
        assert alice.list_topics("secret", timeout=10).topics["secret"].error.code() == (
            KafkaError.TOPIC_AUTHORIZATION_FAILED
        )
        never = alice.list_topics("never-made", timeout=10).topics["never-made"].error.code()
        assert never == KafkaError.TOPIC_AUTHORIZATION_FAILED, "the same as of one that is there"
        assert alice.list_consumer_groups().result(10).valid == []


def test_admin_calls_need_their_operations(broker: Broker) -> None:
    alice = AdminClient(config(broker, ALICE))

    def code(future: Any) -> int:
        with pytest.raises(KafkaException) as refused:
            future.result(10)
        return int(refused.value.args[0].code())

    everything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    assert code(alice.create_topics([NewTopic("mine", 1)])["mine"]) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert code(alice.delete_topics(["secret"])["secret"]) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    with pytest.raises(ClusterAuthorizationFailedError):
        described_by_kafka_python(broker)  # librdkafka passes this error over
    assert code(alice.delete_acls([everything])[everything]) == KafkaError.CLUSTER_AUTHORIZATION_FAILED
    mine = allow(TOPIC, "*", AclOperation.ALL)
    assert code(alice.create_acls([mine])[mine]) == KafkaError.CLUSTER_AUTHORIZATION_FAILED
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4_096)
    upsert = UserScramCredentialUpsertion(ADMIN, info, b"mine now")
    taken = alice.alter_user_scram_credentials([upsert])[ADMIN]
    assert code(taken) == KafkaError.CLUSTER_AUTHORIZATION_FAILED
    resource = ConfigResource(ConfigResource.Type.TOPIC, "secret")
    assert code(alice.describe_configs([resource])[resource]) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    with granted(broker, allow(TOPIC, "mine", AclOperation.CREATE), allow(TOPIC, "mine", AclOperation.DELETE)):
        alice.create_topics([NewTopic("mine", 1)])["mine"].result(10)
        alice.delete_topics(["mine"])["mine"].result(10)


def described_by_kafka_python(broker: Broker) -> None:
    admin = KafkaAdminClient(
        bootstrap_servers=broker.address,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_plain_username=ALICE,
        sasl_plain_password=ALICE,
    )
    every = ResourcePatternFilter(PythonResourceType.ANY, None, ACLResourcePatternType.ANY)
    try:
        admin.describe_acls(ACLFilter(None, "*", ACLOperation.ANY, ACLPermissionType.ANY, every))
    finally:
        admin.close()


def test_acls_are_shown_and_deleted_by_filters(broker: Broker) -> None:
    admin = AdminClient(config(broker))
    acls = [
        allow(TOPIC, "fleet-1", READ),
        allow(TOPIC, "fleet", WRITE, PREFIXED),
        allow(TOPIC, "*", DESCRIBE),
        allow(GROUP, "fleet-1", READ),
    ]
    with granted(broker, *acls):

        def found(kind: ResourceType, name: str | None, pattern: ResourcePatternType) -> set[AclBinding]:
            asked = AclBindingFilter(kind, name, pattern, None, None, AclOperation.ANY, AclPermissionType.ANY)
            return set(admin.describe_acls(asked).result(10))

        assert found(ResourceType.ANY, None, ResourcePatternType.ANY) == set(acls)
        assert found(TOPIC, "fleet-1", ResourcePatternType.LITERAL) == {acls[0]}
        assert found(TOPIC, "fleet-1", ResourcePatternType.MATCH) == set(acls[:3])
        assert found(TOPIC, None, PREFIXED) == {acls[1]}
        wrong = AclBinding(TOPIC, "t", ResourcePatternType.LITERAL, "nobody", "*", READ, AclPermissionType.ALLOW)
        with pytest.raises(KafkaException) as refused:
            admin.create_acls([wrong])[wrong].result(10)
        assert "User:name" in refused.value.args[0].str()
        assert found(ResourceType.ANY, None, ResourcePatternType.ANY) == set(acls)


# ── Apache Kafka's own tools ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tool(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        classpath = f"{jars()}/*"
    except Unavailable as error:
        pytest.skip(str(error))
    properties = tmp_path_factory.mktemp("java") / "client.properties"
    properties.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=SCRAM-SHA-512\n"
        "sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required "
        f'username="{ADMIN}" password="{ADMIN_PASSWORD}";\n'
    )

    def run(name: str, *arguments: str) -> str:
        config_flag = "--command-config"
        done = subprocess.run(
            ["java", "-cp", classpath, name, "--bootstrap-server", broker.address, config_flag, properties, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_kafka_acls_adds_lists_and_removes(broker: Broker, tool: Any) -> None:
    name = "org.apache.kafka.tools.AclCommand"
    if not any(Path(jars()).glob("kafka-tools*")):
        name = "kafka.admin.AclCommand"
    common = ("--allow-principal", f"User:{ALICE}", "--topic", "fleet-1")
    tool(name, "--add", *common, "--producer")
    listed = tool(name, "--list", "--topic", "fleet-1")
    assert "operation=WRITE" in listed and f"principal=User:{ALICE}" in listed
    assert produced(broker, "fleet-1") is None
    tool(name, "--remove", *common, "--producer", "--force")
    assert produced(broker, "fleet-1") == KafkaError.TOPIC_AUTHORIZATION_FAILED


@pytest.mark.slow
def test_kafka_configs_sets_and_shows_quotas_and_users(broker: Broker, tool: Any) -> None:
    name = "kafka.admin.ConfigCommand"
    bob = ("--entity-type", "users", "--entity-name", "bob")
    tool(name, "--alter", *bob, "--add-config", "producer_byte_rate=1024")
    tool(name, "--alter", *bob, "--add-config", "SCRAM-SHA-256=[iterations=8192,password=bob]")
    shown = tool(name, "--describe", *bob)
    assert "producer_byte_rate=1024.0" in shown and "SCRAM-SHA-256=iterations=8192" in shown
