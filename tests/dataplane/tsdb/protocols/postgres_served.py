"""A Postgres server over the fake database, on a loop of its own, for clients that block."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pyarrow as pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dataplane.tsdb.protocols.postgres import PostgresServer
from dataplane.tsdb.protocols.statements import execute
from tests.dataplane.tsdb.protocols.sql_fake import FakeDatabase

CREATE = """CREATE TABLE cpu (host STRING, ts TIMESTAMP(3) TIME INDEX, v DOUBLE, n BIGINT UNSIGNED, b BINARY,
            ok BOOLEAN, i TINYINT, PRIMARY KEY (host))"""
INSERT = "INSERT INTO cpu VALUES ('a', 1000, 1.5, 18446744073709551615, x'00ff', 1, -128)"
WAIT_S = 20


class Slow(FakeDatabase):
    """Answers a query when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.given_up = threading.Event()
        self._go: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def let(self) -> None:
        """The query that was asked goes on."""
        assert self._go is not None
        loop, event = self._go
        loop.call_soon_threadsafe(event.set)

    async def query(self, select: str) -> pa.Table:
        event = asyncio.Event()
        self._go = asyncio.get_running_loop(), event
        self.asked.set()
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return await super().query(select)


class Served:
    """See the module."""

    def __init__(self, database: FakeDatabase, **options: Any) -> None:
        self.database = database
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.server = PostgresServer(database, **options)
            self.run(execute(database, CREATE))
            self.run(execute(database, INSERT))
            self.run(self.server.start())
        except BaseException:
            self.stop()
            raise

    def run(self, what: Any) -> Any:
        return self.start(what).result(WAIT_S * 2)

    def start(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def to(self) -> dict[str, Any]:
        """How a client connects."""
        return {"host": "127.0.0.1", "port": self.server.port, "user": "u", "password": "p", "connect_timeout": WAIT_S}

    def psycopg2(self, **options: Any) -> Any:
        return closing(psycopg2.connect(**{**self.to, "dbname": "fleet", **options}))

    def psycopg(self, **options: Any) -> Any:
        return closing(psycopg.connect(**{**self.to, "dbname": "fleet", "autocommit": True, **options}))


@contextmanager
def serving(database: FakeDatabase | None = None, **options: Any) -> Iterator[Served]:
    served = Served(database or FakeDatabase(), **options)
    try:
        yield served
        served.run(served.server.close())
        assert served.server.connections == 0
    finally:
        served.stop()


def certificate(folder: Path) -> Path:
    """A certificate of the loopback's, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    private = serialization.PrivateFormat.PKCS8
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return pem
