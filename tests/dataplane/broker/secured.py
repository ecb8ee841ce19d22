"""A whole broker with a secured listener, for clients that have threads of their own: node, ledger in memory, server,
on a loop in its own thread. Certificates come from the `cryptography` library, for ten minutes each.
"""

from __future__ import annotations

import asyncio
import datetime
import io
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kio import index
from kio.serial import entity_reader, entity_writer

from dataplane.broker.net import KafkaServer, ServerSettings
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.node_security import NodeSecurity
from dataplane.broker.peers import TcpPeers
from dataplane.broker.security import Security
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import BrokerSettings, BrokerSpec, WalMode, WalSpec
from dataplane.contract.security import ClientAuth, ListenerProtocol, Mechanism, SecuritySpec, TlsSpec
from providers.base.clock import SystemClock, SystemRng
from providers.base.loops import run_loop
from providers.base.ports import free_port
from providers.memory.faults import Faults, Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore

T = TypeVar("T")
ADMIN, ADMIN_PASSWORD = "admin", "correct horse, battery=staple"
HOST = "127.0.0.1"


class Authority:
    """Signs certificates; its own is `ca.pem` in the folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        made = self._made(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = made.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _made(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, minutes: int = 10) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(minutes=minutes))
        )

    def issue(
        self, file: str, common_name: str, organisation: str | None = None, minutes: int = 10
    ) -> tuple[Path, Path]:
        """A certificate and its key, as files of this name; for servers on loopback and for clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
        subject = x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        alternative = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
        )
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            self._made(subject, key.public_key(), minutes)
            .add_extension(alternative, critical=False)
            .add_extension(both, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem, key_pem = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pem, key_pem


def spec_of(
    folder: Path, protocol: ListenerProtocol, *, client_auth: ClientAuth = ClientAuth.NONE, **changes: Any
) -> SecuritySpec:
    """A spec with certificates, and with ADMIN as its first user where there are users."""
    spec = SecuritySpec(protocol=protocol)
    if protocol.tls:
        authority = Authority(folder)
        pem, key = authority.issue("server", "broker")
        spec = replace(spec, tls=TlsSpec(str(pem), str(key), str(authority.file), client_auth))
    if protocol.sasl:
        users = folder / "users.json"
        users.write_text(json.dumps({ADMIN: ADMIN_PASSWORD}))
        every = tuple(m for m in Mechanism if m is not Mechanism.PLAIN or protocol.tls)
        spec = replace(spec, mechanisms=every, users=f"file:{users}")
    return replace(spec, **changes)


@dataclass
class Broker:
    """A running broker."""

    port: int
    server: KafkaServer
    node: Node
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 20) -> T:
        """Run on the broker's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def see(self, look: Callable[[], T]) -> T:
        """Look at the broker's insides, on its loop."""

        async def now() -> T:
            return look()

        return self.call(now())


@contextmanager
def running(spec: SecuritySpec, settings: ServerSettings | None = None) -> Iterator[Broker]:
    """A broker of a cell of its own, until the end of the block."""
    started: list[Broker] = []
    failed: list[BaseException] = []
    up = threading.Event()
    down: list[Callable[[], None]] = []

    async def main() -> None:
        clock, rng = SystemClock(), SystemRng()
        world = World(clock, rng)
        bucket = MemoryObjectStore(Process(world, "b-1"), MemoryBucket(world, "b", faults=Faults(latency_ms=(0, 0))))
        broker = BrokerSpec(1, "b-1", "a", WalSpec(WalMode.OBJECT), host=HOST)
        peers = TcpPeers((), rng)
        peer_port = await peers.start(HOST, 0, _nobody)
        settings_of_node = BrokerSettings(
            upload_interval_ms=60_000, ledger_poll_interval_ms=20, heartbeat_interval_ms=50, session_timeout_ms=300
        )
        port = free_port(HOST, rng)
        node = Node(
            NodeConfig("cell", "c", broker, settings_of_node, port, peer_port),
            store=bucket,
            logs=AssignedLogs("c", broker, bucket=bucket, volumes=None, express={}, clock=clock),
            peers=peers,
            clock=clock,
            rng=rng,
        )
        engine = NodeEngine(node, peers, clock=clock, rng=rng)
        security = Security(spec, NodeSecurity(node), clock=clock, rng=rng)
        server = KafkaServer(engine, clock=clock, rng=rng, settings=settings, security=security)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        down.append(lambda: loop.call_soon_threadsafe(stop.set))
        try:
            await node.start()
            await security.make_first_users()
            await server.start(HOST, port)
            engine.attach()
            while engine.controller_id is None:  # librdkafka's admin client looks for one once, and then waits
                await clock.sleep_ms(10)
            started.append(Broker(port, server, node, loop))
            up.set()
            await stop.wait()
        finally:
            await node.kill()
            await server.close()
            await peers.close()

    def run() -> None:
        try:
            run_loop(main())
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="broker")
    thread.start()
    try:
        assert up.wait(20)
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        for stop in down:
            stop()
        thread.join(20)
        assert not thread.is_alive()


def ask(broker: Broker, body: Any) -> Any:
    """Send a request of kio's to a listener without a login; the response."""
    kind = type(body)
    out = io.BytesIO()
    header = kind.__header_schema__
    fields = {"request_api_key": kind.__api_key__, "request_api_version": kind.__version__, "correlation_id": 1}
    entity_writer(header)(out, header(**fields, client_id=None))
    entity_writer(kind)(out, body)
    with socket.create_connection((HOST, broker.port), 10) as connection, connection.makefile("rb") as answers:
        connection.sendall(len(out.getvalue()).to_bytes(4, "big") + out.getvalue())
        frame = answers.read(int.from_bytes(answers.read(4), "big"))
    response = index.load_response_schema(kind.__api_key__, kind.__version__)
    _, at = entity_reader(response.__header_schema__)(frame, 0)
    return entity_reader(response)(frame, at)[0]


async def _nobody(message: dict[str, Any]) -> None:
    return None
