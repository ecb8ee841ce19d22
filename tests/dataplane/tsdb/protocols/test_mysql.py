"""Promises of the MySQL wire, judged by clients that nobody here wrote: PyMySQL and MySQL's own connector."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import mysql.connector
import pyarrow as pa
import pymysql
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymysql.constants import CLIENT

from dataplane.tsdb.protocols import mysql as mysql_module
from dataplane.tsdb.protocols.mysql import MySqlServer
from dataplane.tsdb.protocols.mysql_rows import binary_rows, columns, text_rows
from dataplane.tsdb.protocols.statements import execute
from dataplane.tsdb.protocols.wire_server import WireSettings
from providers.base.errors import AlreadyExists, Fenced, Full, Internal, Invalid, NotFound, Unavailable
from tests.dataplane.tsdb.protocols.sql_fake import FakeDatabase

CREATE = """CREATE TABLE cpu (host STRING, ts TIMESTAMP(3) TIME INDEX, v DOUBLE, n BIGINT UNSIGNED, b BINARY,
            ok BOOLEAN, i TINYINT, PRIMARY KEY (host))"""
FIRST = ("a", datetime.datetime(1970, 1, 1, 0, 0, 1), 1.5, 2**64 - 1, b"\x00\xff", 1, -128)
WAIT_S = 10


class Slow(FakeDatabase):
    """Answers a query when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.go = threading.Event()

    async def query(self, select: str) -> pa.Table:
        self.asked.set()
        await asyncio.to_thread(self.go.wait, WAIT_S)
        return await super().query(select)


class Served:
    """A server on a loop of its own, in a thread of its own: the clients here block."""

    def __init__(self, database: FakeDatabase, **options: Any) -> None:
        self.database = database
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.server = MySqlServer(database, **options)
            self.run(execute(database, CREATE))
            self.run(
                execute(database, "INSERT INTO cpu VALUES ('a', 1000, 1.5, 18446744073709551615, x'00ff', 1, -128)")
            )
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

    def pymysql(self, **options: Any) -> Any:
        given = {"user": "u", "password": "p", "database": "fleet", "connect_timeout": WAIT_S, "read_timeout": WAIT_S}
        return closing(pymysql.connect(host="127.0.0.1", port=self.server.port, **{**given, **options}))

    def connector(self, **options: Any) -> Any:
        given = {"user": "u", "password": "p", "database": "fleet", "use_pure": True}
        return closing(mysql.connector.connect(host="127.0.0.1", port=self.server.port, **{**given, **options}))


@contextmanager
def serving(database: FakeDatabase | None = None, **options: Any) -> Iterator[Served]:
    served = Served(database or FakeDatabase(), **options)
    try:
        yield served
        served.run(served.server.close())
        assert served.server.connections == 0
    finally:
        served.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(users={"u": "p"}) as served:
        yield served


@pytest.fixture(scope="module")
def connector(server: Served) -> Iterator[Any]:
    with server.connector() as connection:
        yield connection


def asked(connection: Any, sql: str, parameters: Any = None, **cursor: Any) -> list[Any]:
    with closing(connection.cursor(**cursor)) as at:
        at.execute(sql, parameters)
        return list(at.fetchall())


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pymysql_reads_each_type_as_its_own(server: Served) -> None:
    with server.pymysql() as connection:
        assert asked(connection, "SELECT * FROM cpu WHERE host = 'a'") == [FIRST]
        found = asked(
            connection,
            "SELECT sum(n), NULL, [1,2], 1.5, DATE '2020-01-01', TIME '10:11:12.5', 'é' FROM cpu WHERE n > 0",
        )
    ten = datetime.timedelta(hours=10, minutes=11, seconds=12.5)
    assert found == [(Decimal(2**64 - 1), None, "[1, 2]", Decimal("1.5"), datetime.date(2020, 1, 1), ten, "é")]


@pytest.mark.parametrize("pure", [True, False])
def test_mysql_s_connector_reads_them_as_text_and_in_binary(server: Served, pure: bool) -> None:
    if not pure and not mysql.connector.HAVE_CEXT:
        pytest.skip("the connector's C extension does not load here")
    with server.connector(use_pure=pure) as connection:
        assert asked(connection, "SELECT * FROM cpu WHERE host = 'a'") == [FIRST]
        assert asked(connection, "SELECT * FROM cpu WHERE host = ?", ("a",), prepared=True) == [FIRST]


def test_a_column_with_decimals_is_a_float_that_is_shown_as_it_was_declared(server: Served) -> None:
    with server.pymysql() as connection:
        asked(connection, "CREATE TABLE speeds (ts TIMESTAMP(3) TIME INDEX, v DOUBLE(10,2) NULL)")
        asked(connection, "INSERT INTO speeds VALUES (1, %s), (2, %s), (3, %s)", (7 * 0.01, 1.005, 2))
        assert asked(connection, "SELECT v FROM speeds ORDER BY ts") == [(0.07,), (1.0,), (2.0,)]
        [(_, shown)] = asked(connection, "SHOW CREATE TABLE speeds")
        assert '"v" DOUBLE(15,2) NULL' in shown.replace("`", '"')
        asked(connection, "DROP TABLE speeds")
        asked(connection, shown)
        assert server.database.schemas["speeds"].columns[1].decimals == 2
        asked(connection, "DROP TABLE speeds")


def test_what_a_client_writes_it_reads_again(server: Served) -> None:
    at = datetime.datetime(2025, 1, 2, 3, 4, 5, 678_000)
    nasty = "it's \\ \" ` % ? é \n ' OR 1=1 -- "
    with server.pymysql() as connection, closing(connection.cursor()) as cursor:
        insert = "INSERT INTO cpu (host, ts, v, b) VALUES (%s, %s, %s, %s)"
        assert cursor.execute(insert, (nasty, at, -2.5, b"\x00\xff'\\\"")) == 1
        assert cursor.executemany(insert, [("many", 1_000 + k, 0.5, None) for k in range(500)]) == 500
        assert asked(connection, "SELECT host, ts, v, b FROM cpu WHERE host = %s", (nasty,)) == [
            (nasty, at, -2.5, b"\x00\xff'\\\"")
        ]
        assert cursor.execute("DELETE FROM cpu WHERE host IN ('many', %s)", (nasty,)) == 501
        connection.commit()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=10),
)
def test_parameters_of_prepared_statements_stay_values(connector: Any, host: str, v: float, n: int, b: bytes) -> None:
    at = datetime.datetime(2001, 2, 3, 4, 5, 6, 7_000)
    write = "INSERT INTO cpu (host, ts, v, n, b) VALUES (?, ?, ?, ?, ?)"
    with closing(connector.cursor(prepared=True)) as cursor:
        cursor.execute(write, ("p" + host, at, v, n, b))
        assert cursor.rowcount == 1
    read = "SELECT host, ts, v, n, b, 1 -? FROM cpu WHERE host = ? AND ts = ?"
    assert asked(connector, read, (-5, "p" + host, at), prepared=True) == [("p" + host, at, v, n, b, 6)]


def test_times_beyond_datetime_are_text_or_refused_never_wrong() -> None:
    data = pa.table(
        {
            "a": pa.array([-1, None, 253_402_300_800_000], pa.timestamp("ms")),
            "b": pa.array([-1, 1_999, None], pa.timestamp("ns")),
        }
    )
    shown = columns(data.schema)
    [rows] = text_rows(data, shown)
    assert [b"1969-12-31 23:59:59.999" in rows[0], b"1969-12-31 23:59:59.999999" in rows[0]] == [True, True]
    assert b"1970-01-01 00:00:00.000001" in rows[1]
    assert b"10000-01-01 00:00:00.000" in rows[2]
    with pytest.raises(Invalid, match="years 1 to 9999"):
        list(binary_rows(data, shown))


def test_a_row_longer_than_a_packet_arrives_whole() -> None:
    with serving() as served, served.pymysql() as connection:
        [(found,)] = asked(connection, "SELECT repeat('x', 17000000)")
        assert len(found) == 17_000_000
        assert asked(connection, "SELECT 1") == [(1,)]


def test_many_rows_arrive_in_order_and_more_than_the_bound_are_refused() -> None:
    with serving(settings=WireSettings(rows_max=50_000)) as served, served.pymysql() as connection:
        assert asked(connection, "SELECT range FROM range(50000)") == [(k,) for k in range(50_000)]
        with pytest.raises(pymysql.err.ProgrammingError, match="50001 rows, more than 50000"):
            asked(connection, "SELECT range FROM range(50001)")
        assert asked(connection, "SELECT 1") == [(1,)]


# ── what tools send ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_grafana_s_queries_are_answered(server: Served) -> None:
    with server.pymysql(database="fleet") as connection:
        assert asked(connection, "SELECT 1") == [(1,)]
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'fleet' ORDER BY table_name"
        assert asked(connection, tables) == [("cpu",)]
        numeric = (
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = database() AND "
            "table_name = 'cpu' AND data_type IN ('bigint','int','smallint','mediumint','tinyint','double','decimal',"
            "'float') AND column_name <> 'ts' ORDER BY column_name"
        )
        assert [name for name, _ in asked(connection, numeric)] == ["i", "n", "ok", "v"]
        assert asked(
            connection,
            'SELECT UNIX_TIMESTAMP(ts) DIV 300 * 300 AS "time", avg(v) AS "v" FROM fleet.cpu WHERE host = \'a\' AND '
            "ts BETWEEN FROM_UNIXTIME(0) AND FROM_UNIXTIME(3600) GROUP BY 1 ORDER BY 1",
        ) == [(0, 1.5)]
        assert asked(connection, "SELECT UNIX_TIMESTAMP(ts) as time_sec FROM cpu WHERE host = 'a'") == [(1.0,)]


def test_several_statements_are_answered_only_to_clients_that_ask_for_it(server: Served) -> None:
    with server.pymysql() as connection, pytest.raises(pymysql.err.ProgrammingError, match="several statements"):
        asked(connection, "SELECT 1; SELECT 2")
    with server.pymysql(client_flag=CLIENT.MULTI_STATEMENTS) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT 1; SET @@sql_mode = 'ANSI'; SELECT 2")
        answers = [list(cursor.fetchall())]
        while cursor.nextset():
            answers.append(list(cursor.fetchall()))
        assert answers == [[(1,)], [], [(2,)]]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Invalid("no"), 1064),
        (NotFound("no"), 1146),
        (NotFound("no", database="x"), 1049),
        (AlreadyExists("no"), 1050),
        (Full("no", hint="later"), 1114),
        (Unavailable("no"), 1205),
        (Fenced("no"), 1836),
        (Internal("no"), 1105),
        (RuntimeError("a secret"), 1105),
    ],
)
def test_errors_have_mysql_s_codes_and_the_connection_lives_on(
    server: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    async def fail(select: str) -> pa.Table:
        raise error

    with server.pymysql() as connection:
        with monkeypatch.context() as patched:
            patched.setattr(server.database, "query", fail)
            with pytest.raises(pymysql.err.MySQLError) as refused:
                asked(connection, "SELECT 1")
        assert refused.value.args[0] == code
        assert "secret" not in str(refused.value)
        assert asked(connection, "SELECT 2") == [(2,)]


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "login", [{"password": "wrong"}, {"password": ""}, {"user": "nobody"}, {"user": ""}, {"database": "nope"}]
)
def test_a_wrong_login_is_refused_by_every_client(server: Served, login: dict[str, str]) -> None:
    with pytest.raises(pymysql.err.OperationalError) as refused, server.pymysql(**login):
        pass
    assert refused.value.args[0] == (1049 if "database" in login else 1045)
    with pytest.raises(mysql.connector.Error), server.connector(**login):
        pass


def test_a_client_that_goes_on_after_a_refused_login_is_cut_off(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.server.port), WAIT_S) as raw:
        raw.settimeout(WAIT_S)
        raw.recv(4096)
        capabilities = (0x00080000 | 0x8000 | 0x200).to_bytes(4, "little")  # plugin auth, secure, 4.1
        login = (
            capabilities + bytes(4) + b"\x2d" + bytes(23) + b"u\0" + b"\x20" + bytes(32) + b"caching_sha2_password\0"
        )
        raw.sendall(len(login).to_bytes(3, "little") + b"\x01" + login)
        received = raw.recv(4096)
        with suppress(ConnectionError):  # it may be gone before this is sent
            raw.sendall(b"\x0f\x00\x00\x00\x03DROP TABLE cpu")
            while part := raw.recv(4096):
                received += part
    assert b"Access denied" in received
    assert "cpu" in server.database.schemas


def test_changing_the_user_asks_for_the_password_again(server: Served) -> None:
    with server.connector() as connection:
        connection.cmd_change_user("u", "p", "public")
        assert asked(connection, "SELECT database()") == [("public",)]
        with pytest.raises(mysql.connector.Error, match="Access denied"):
            connection.cmd_change_user("u", "wrong", "fleet")


def test_without_users_only_the_loopback_is_served() -> None:
    with pytest.raises(Invalid, match="would let everyone in"):
        MySqlServer(FakeDatabase(), host="0.0.0.0")
    with serving() as served, served.pymysql(user="anyone", password="") as connection:
        assert asked(connection, "SELECT user()") == [("anyone@%",)]


def test_tls_is_spoken(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
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
    pem = tmp_path / "server.pem"
    private = serialization.PrivateFormat.PKCS8
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    with serving(users={"u": "p"}, tls=tls) as served:
        trusting = ssl.create_default_context(cafile=str(pem))
        with served.pymysql(ssl=trusting) as connection:
            assert asked(connection, "SELECT host FROM cpu") == [("a",)]
        with served.connector(ssl_ca=str(pem), ssl_verify_cert=True) as connection:
            assert asked(connection, "SELECT host FROM cpu WHERE host = ?", ("a",), prepared=True) == [("a",)]
        assert hello_with_the_request(served.server.port, trusting)


def hello_with_the_request(port: int, context: ssl.SSLContext) -> bool:
    """Whether TLS comes up for a client whose handshake begins in the same segment as its request for it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as raw:
        raw.settimeout(WAIT_S)
        raw.recv(4096)
        request = (0x00088A00).to_bytes(4, "little") + bytes(4) + b"\x2d" + bytes(23)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(len(request).to_bytes(3, "little") + b"\x01" + request + outgoing.read())
        while part := raw.recv(16_384):
            incoming.write(part)
            try:
                tls.do_handshake()
                return True
            except ssl.SSLWantReadError:
                pass
    return False


# ── bounds and ends ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_connection_too_many_is_told_and_the_others_live() -> None:
    with serving(settings=WireSettings(connections_max=2)) as served, served.pymysql() as one, served.pymysql():
        with pytest.raises(pymysql.err.OperationalError) as refused, served.pymysql():
            pass
        assert refused.value.args[0] == 1040
        assert asked(one, "SELECT 1") == [(1,)]


def test_a_client_that_does_not_log_in_is_cut_off() -> None:
    with serving(settings=WireSettings(login_s=0.2)) as served:
        raw = socket.create_connection(("127.0.0.1", served.server.port), WAIT_S)
        with raw:
            raw.settimeout(WAIT_S)
            while raw.recv(4096):
                pass


def test_a_command_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_module, "PACKET_BYTES_MAX", 1 << 20)
    with serving() as served, served.pymysql() as connection:
        with pytest.raises(pymysql.err.MySQLError):
            asked(connection, "SELECT '" + "x" * (1 << 20) + "'")
        with served.pymysql() as another:
            assert asked(another, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 3, b"\x05\x00\x00\x01abcde", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64]
)
def test_whatever_a_stranger_sends_the_server_lives(server: Served, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.server.port), WAIT_S) as raw:
        raw.settimeout(WAIT_S)
        raw.recv(4096)
        with suppress(ConnectionError):  # cut off with something unread
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    with server.pymysql() as connection:
        assert asked(connection, "SELECT 1") == [(1,)]


def test_close_lets_a_query_under_way_end_and_cuts_off_the_idle() -> None:
    database = Slow()
    with serving(database) as served, served.pymysql() as busy, served.pymysql() as idle:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(asked(busy, "SELECT 41 + 1")))
        asking.start()
        assert database.asked.wait(WAIT_S)
        closing_ = served.start(served.server.close())
        with pytest.raises(pymysql.err.MySQLError):
            asked(idle, "SELECT 1")
        database.go.set()
        asking.join(WAIT_S)
        closing_.result(WAIT_S)
        assert answers == [[(42,)]]


def test_close_does_not_wait_for_ever() -> None:
    database = Slow()
    cut: list[bool] = []

    def cut_off() -> None:
        with pytest.raises(pymysql.err.MySQLError):
            asked(busy, "SELECT 1")
        cut.append(True)

    with serving(database, settings=WireSettings(close_s=0.2)) as served, served.pymysql() as busy:
        asking = threading.Thread(target=cut_off)
        asking.start()
        assert database.asked.wait(WAIT_S)
        served.run(served.server.close())
        asking.join(WAIT_S)
        database.go.set()
        assert cut
