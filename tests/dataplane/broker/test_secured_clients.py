"""Clients that nobody here wrote log in over TLS and SASL, and are kept out when they should be."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AdminClient,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from kafka import KafkaConsumer, KafkaProducer

from dataplane.contract.security import ClientAuth, ListenerProtocol
from tests.dataplane.broker.secured import ADMIN, ADMIN_PASSWORD, Authority, Broker, running, spec_of

MECHANISMS = ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def sasl_ssl(folder: Path) -> Iterator[Broker]:
    with running(spec_of(folder, ListenerProtocol.SASL_SSL)) as broker:
        yield broker


def rdkafka(broker: Broker, folder: Path, mechanism: str, user: str = ADMIN, password: str = ADMIN_PASSWORD) -> Any:
    return {
        "bootstrap.servers": broker.address,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": user,
        "sasl.password": password,
        "ssl.ca.location": str(folder / "ca.pem"),
        "log_level": 0,
    }


def there_and_back(config: dict[str, Any], topic: str) -> None:
    admin = AdminClient(config)
    admin.create_topics([NewTopic(topic, 1)])[topic].result(20)
    producer = Producer(config)
    failed: list[object] = []
    for i in range(50):
        producer.produce(topic, b"%d" % i, on_delivery=lambda e, _: failed.append(e) if e else None)
    assert producer.flush(20) == 0 and failed == []
    consumer = Consumer({**config, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found: list[Any] = []
    deadline = time.monotonic() + 20
    while len(found) < 50 and time.monotonic() < deadline:
        found += [m.value() for m in consumer.consume(50, 0.2) if m.error() is None]
    consumer.close()
    assert found == [b"%d" % i for i in range(50)]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_librdkafka_logs_in_and_works(sasl_ssl: Broker, folder: Path, mechanism: str) -> None:
    there_and_back(rdkafka(sasl_ssl, folder, mechanism), f"rd-{mechanism}")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_aiokafka_logs_in_and_works(sasl_ssl: Broker, folder: Path, mechanism: str) -> None:
    async def main() -> list[bytes | None]:
        common: dict[str, Any] = {
            "bootstrap_servers": sasl_ssl.address,
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": ADMIN,
            "sasl_plain_password": ADMIN_PASSWORD,
            "ssl_context": ssl.create_default_context(cafile=str(folder / "ca.pem")),
        }
        topic = f"aio-{mechanism}"
        async with AIOKafkaProducer(**common) as producer:
            for i in range(20):
                await producer.send_and_wait(topic, b"%d" % i)
        found: list[bytes | None] = []
        consumer = AIOKafkaConsumer(topic, auto_offset_reset="earliest", group_id=topic, **common)
        async with consumer, asyncio.timeout(20):
            while len(found) < 20:
                found.append((await consumer.getone()).value)
        return found

    assert asyncio.run(main()) == [b"%d" % i for i in range(20)]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_kafka_python_logs_in_and_works(sasl_ssl: Broker, folder: Path, mechanism: str) -> None:
    common: dict[str, Any] = {
        "bootstrap_servers": sasl_ssl.address,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": ADMIN,
        "sasl_plain_password": ADMIN_PASSWORD,
        "ssl_cafile": str(folder / "ca.pem"),
    }
    topic = f"kp-{mechanism}"
    producer = KafkaProducer(**common)
    for i in range(20):
        producer.send(topic, b"%d" % i).get(20)
    producer.close()
    consumer = KafkaConsumer(topic, auto_offset_reset="earliest", consumer_timeout_ms=3_000, **common)
    found = [record.value for record, _ in zip(consumer, range(20), strict=False)]
    consumer.close()
    assert found == [b"%d" % i for i in range(20)]


def refusal(config: dict[str, Any]) -> int | None:
    """The code of the first error that librdkafka reports; None when it gets in."""
    errors: list[int] = []
    admin = AdminClient({**config, "error_cb": lambda error: errors.append(error.code())})
    deadline = time.monotonic() + 10
    while not errors and time.monotonic() < deadline:
        try:
            admin.list_topics(timeout=0.2)
            return None
        except KafkaException:
            admin.poll(0)
    return errors[0]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", [ADMIN, "nobody"])
def test_a_wrong_password_and_a_user_who_is_not_there_are_told_the_same(
    sasl_ssl: Broker, folder: Path, mechanism: str, user: str
) -> None:
    config = rdkafka(sasl_ssl, folder, mechanism, user, "wrong")
    assert refusal(config) == KafkaError._AUTHENTICATION


def test_users_made_by_an_admin_client_log_in_until_they_are_deleted(sasl_ssl: Broker, folder: Path) -> None:
    admin = AdminClient(rdkafka(sasl_ssl, folder, "SCRAM-SHA-512"))
    mechanism, info = ScramMechanism.SCRAM_SHA_256, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4_096)
    changes = [UserScramCredentialUpsertion("eve, of = signs", info, b"first")]
    for future in admin.alter_user_scram_credentials(changes).values():
        future.result(10)
    user = "eve, of = signs"
    assert refusal(rdkafka(sasl_ssl, folder, "SCRAM-SHA-256", user, "first")) is None
    assert refusal(rdkafka(sasl_ssl, folder, "PLAIN", user, "first")) is None
    assert refusal(rdkafka(sasl_ssl, folder, "SCRAM-SHA-512", user, "first")) == KafkaError._AUTHENTICATION

    changes = [UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 8_192), b"second")]
    for future in admin.alter_user_scram_credentials(changes).values():
        future.result(10)
    described = admin.describe_user_scram_credentials([user, "nobody"])
    [shown] = described[user].result(10).scram_credential_infos
    assert (shown.mechanism, shown.iterations) == (mechanism, 8_192)
    with pytest.raises(KafkaException) as refused:
        described["nobody"].result(10)
    assert refused.value.args[0].code() == KafkaError.RESOURCE_NOT_FOUND
    assert refusal(rdkafka(sasl_ssl, folder, "SCRAM-SHA-256", user, "first")) == KafkaError._AUTHENTICATION
    assert refusal(rdkafka(sasl_ssl, folder, "SCRAM-SHA-256", user, "second")) is None

    for future in admin.alter_user_scram_credentials([UserScramCredentialDeletion(user, mechanism)]).values():
        future.result(10)
    assert refusal(rdkafka(sasl_ssl, folder, "SCRAM-SHA-256", user, "second")) == KafkaError._AUTHENTICATION


def test_weak_credentials_are_not_taken(sasl_ssl: Broker, folder: Path) -> None:
    admin = AdminClient(rdkafka(sasl_ssl, folder, "SCRAM-SHA-512"))
    weak = UserScramCredentialUpsertion("w", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4_095), b"p")
    with pytest.raises(KafkaException) as refused:
        admin.alter_user_scram_credentials([weak])["w"].result(10)
    assert refused.value.args[0].code() == KafkaError.UNACCEPTABLE_CREDENTIAL


def test_no_password_is_in_the_ledger(sasl_ssl: Broker) -> None:
    keys = sasl_ssl.see(lambda: sasl_ssl.node.state.security.scram[ADMIN])
    assert set(keys) == {"SCRAM-SHA-256", "SCRAM-SHA-512"}
    stored = sasl_ssl.see(lambda: sasl_ssl.node._store._bucket.objects)  # type: ignore[attr-defined]
    entries = b"".join(data for name, data in stored.items() if "/ledger/" in name)
    assert b"scram-changed" in entries and b"horse" not in entries


def test_scram_works_without_tls(tmp_path: Path) -> None:
    with running(spec_of(tmp_path, ListenerProtocol.SASL_PLAINTEXT)) as broker:
        config = rdkafka(broker, tmp_path, "SCRAM-SHA-256") | {"security.protocol": "SASL_PLAINTEXT"}
        del config["ssl.ca.location"]
        assert refusal(config) is None


def test_a_client_certificate_is_demanded_and_names_the_principal(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, ListenerProtocol.SSL, client_auth=ClientAuth.REQUIRED)
    authority = Authority(tmp_path, "clients")
    spec = dataclasses.replace(spec, tls=dataclasses.replace(spec.tls, client_ca_file=str(authority.file)))  # type: ignore[type-var]
    good, good_key = authority.issue("good", "fleet", "Cars, Inc.")
    bad, bad_key = Authority(tmp_path, "others").issue("bad", "fleet", "Cars, Inc.")
    config = {"security.protocol": "SSL", "ssl.ca.location": str(tmp_path / "ca.pem"), "log_level": 0}
    with running(spec) as broker:
        config["bootstrap.servers"] = broker.address
        assert refusal(config) is not None
        with_bad = {"ssl.certificate.location": str(bad), "ssl.key.location": str(bad_key)}
        assert refusal({**config, **with_bad}) is not None
        admin = AdminClient({**config, "ssl.certificate.location": str(good), "ssl.key.location": str(good_key)})
        seen: set[str] = set()
        deadline = time.monotonic() + 20
        while not seen and time.monotonic() < deadline:  # librdkafka changes connections after its first answer
            admin.list_topics(timeout=10)
            seen = broker.see(lambda: {c._caller.session.principal for c in broker.server.connections})
        assert seen == {"User:CN=fleet,O=Cars\\, Inc."}


def test_a_new_certificate_is_served_without_a_restart_and_a_bad_one_is_not(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, ListenerProtocol.SSL)

    def served() -> str:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", broker.port), 5) as plain, context.wrap_socket(plain) as channel:
            shown = channel.getpeercert(True)
            assert shown is not None
            certificate = x509.load_der_x509_certificate(shown)
            ends.append(certificate.not_valid_after_utc.timestamp())
            return certificate.subject.rfc4514_string()

    ends: list[float] = []

    def until_served(name: str) -> None:
        deadline = time.monotonic() + 10
        while served() != name:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with running(spec) as broker:
        tls = broker.server.security.tls
        assert tls is not None
        looking = asyncio.run_coroutine_threadsafe(tls.keep_fresh(20), broker.loop)
        assert served() == "CN=broker"
        assert tls.expires_s == ends[-1]
        Path(spec.tls.key_file).write_text("half of a change")  # type: ignore[union-attr]
        time.sleep(0.2)
        assert served() == "CN=broker"
        Authority(tmp_path, "next").issue("server", "renewed", minutes=90)
        until_served("CN=renewed")
        assert tls.expires_s == ends[-1] > ends[0] + 60 * 60, "what metrics tell of how long it lasts"
        looking.cancel()
