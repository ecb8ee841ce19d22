"""Promises of the Postgres wire to those who may not, to those who send anything, and at its end."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataplane.tsdb.protocols import postgres_messages
from dataplane.tsdb.protocols.postgres import PostgresServer
from dataplane.tsdb.protocols.postgres_parameters import words
from dataplane.tsdb.protocols.postgres_rows import columns, data_rows, numeric
from dataplane.tsdb.protocols.postgres_types import Oid
from dataplane.tsdb.protocols.wire_server import WireSettings
from providers.base.errors import Invalid
from tests.dataplane.tsdb.protocols.postgres_served import WAIT_S, Served, Slow, certificate, serving
from tests.dataplane.tsdb.protocols.sql_fake import FakeDatabase

STARTUP = b"user\0u\0database\0fleet\0\0"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(users={"u": "p"}) as served:
        yield served


@pytest.fixture(scope="module")
def open_server() -> Iterator[Served]:
    with serving() as served:
        yield served


def first(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def alive(server: Served) -> None:
    with server.psycopg() as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def said(port: int, *sent: bytes) -> bytes:
    """All that the server says to these bytes, until it closes: the client says no more after them."""
    return heard(port, *sent)[0]


def heard(port: int, *sent: bytes) -> tuple[bytes, bool]:
    """The same, and whether the end was orderly: a server that closes with something unread resets the connection, and
    the end of what it said may be lost on the way."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as raw:
        raw.settimeout(WAIT_S)
        try:
            for part in sent:
                raw.sendall(part)
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(65_536):
                received += part
        except TimeoutError:
            raise
        except OSError:  # reset, or not connected any more
            return received, False
    return received, True


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("login", "state"),
    [
        ({"password": "wrong"}, "28P01"),
        ({"user": "nobody"}, "28P01"),
        ({"dbname": "nope"}, "3D000"),
        ({"client_encoding": "LATIN1"}, "0A000"),
        ({"options": "-c nothing=1"}, "42704"),
    ],
)
def test_a_wrong_login_is_refused(server: Served, login: dict[str, str], state: str) -> None:
    with pytest.raises(psycopg.OperationalError) as refused, server.psycopg(**login):
        pass
    assert f"FATAL:  {_SAYS[state]}" in str(refused.value)
    with pytest.raises(psycopg2.OperationalError), server.psycopg2(**login):
        pass
    alive(server)


_SAYS = {
    "28P01": "password authentication failed",
    "3D000": "database",
    "0A000": "client_encoding 'LATIN1' is not there",
    "42704": "unrecognized configuration parameter",
}


def test_no_password_is_asked_for_in_the_clear(server: Served) -> None:
    answer = said(server.server.port, first(3 << 16, STARTUP))
    assert answer == message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0")


@pytest.mark.parametrize("answer", [b"", b"p\0\0\0\x05p", b"Q\0\0\0\rDROP TABLE\0", message(b"p", b"PLAIN\0\0\0\0\1p")])
def test_a_client_that_does_not_prove_its_password_runs_nothing(server: Served, answer: bytes) -> None:
    sent = first(3 << 16, STARTUP), answer, message(b"Q", b"DROP TABLE cpu\0")
    found, orderly = heard(server.server.port, *sent)
    assert not orderly or not answer or b"C28P01" in found or b"C08P01" in found
    assert b"Z\0\0\0\x05" not in found, "it was never asked for a query"
    assert "cpu" in server.database.schemas


def test_without_users_only_the_loopback_is_served() -> None:
    with pytest.raises(Invalid, match="would let everyone in"):
        PostgresServer(FakeDatabase(), host="0.0.0.0")
    with serving() as served, served.psycopg(user="anyone", password="") as connection:
        assert connection.execute("SELECT user").fetchall() == [("anyone",)]


def test_tls_is_spoken_and_nothing_else_where_there_is_a_certificate(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    with serving(users={"u": "p"}, tls=tls) as served:
        trusting = {"sslmode": "verify-full", "sslrootcert": str(pem)}
        with served.psycopg(**trusting) as connection:
            assert connection.pgconn.ssl_in_use
            assert connection.execute("SELECT host FROM cpu WHERE host = %s", ("a",)).fetchall() == [("a",)]
        with served.psycopg2(**trusting) as other, other.cursor() as cursor:
            cursor.execute("SELECT repeat('x', 3000000)")
            assert len(cursor.fetchone()[0]) == 3_000_000
        with (
            pytest.raises(psycopg.OperationalError, match="without TLS are refused"),
            served.psycopg(sslmode="disable"),
        ):
            pass
        # What comes before TLS must not be taken for what came over it.
        injected = first(80877103) + first(3 << 16, STARTUP)
        injecting, orderly = heard(served.server.port, injected)
        assert b"unencrypted data" in injecting if orderly else not injecting.startswith(b"S")
    refused = pytest.raises(psycopg.OperationalError, match="does not support SSL")
    with serving() as clear, refused, clear.psycopg(sslmode="require"):
        pass


# ── whatever is sent ────────────────────────────────────────────────────────────────────────────────────────────────

PARTS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        message,
        st.sampled_from([bytes([kind]) for kind in b"QPBDECSHFpdcfX\0z"]),
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [
                    b"\0SELECT $1\0\0\1\0\0\0\x14",
                    b"\0\0\0\1\0\1\0\1\0\0\0\x08\0\0\0\0\0\0\0\x05\0\0",
                    b"\0\0\0\0\0\1\x7f\xff\xff\xff",
                    b"P\0",
                    b"S\0",
                    b"\0\0\0\0\0",
                    b"SELECT 1; SELECT '\0",
                    b"BEGIN; SELECT nothing; COMMIT\0",
                    b"\xff\xfe\0",
                ]
            ),
        ),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, max_size=8))
@example([message(b"P", b"s\0SELECT 1\0\0\0"), message(b"P", b"s\0SELECT 1\0\0\0"), message(b"S")])
@example([message(b"E", b"none\0\0\0\0\0"), message(b"Q", b"SELECT 1\0"), message(b"S"), message(b"Q", b"SELECT 1\0")])
def test_whatever_a_client_sends_it_is_answered_in_the_protocol(open_server: Served, parts: list[bytes]) -> None:
    received, orderly = heard(open_server.server.port, first(3 << 16, STARTUP), *parts)
    at = 0
    while at + 5 <= len(received):
        kind, length = received[at : at + 1], int.from_bytes(received[at + 1 : at + 5], "big")
        assert kind in b"RSKZTDCEI123tnsNv" and length >= 4
        at += 1 + length
    assert at == len(received) or not orderly
    assert b"CXX000" not in received


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0" * 3, b"\0" * 8, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, first(2 << 16), first(3 << 16), first(1234)],
)
def test_whatever_a_stranger_sends_the_server_lives(server: Served, garbage: bytes) -> None:
    answer = said(server.server.port, garbage)
    assert not answer or (answer[:1] == b"E" and b"FATAL" in answer)
    alive(server)


def test_a_newer_protocol_is_told_that_this_is_3_0(open_server: Served) -> None:
    answer = said(open_server.server.port, first((3 << 16) + 2, b"user\0u\0_pq_.new\x001\0\0"), message(b"X"))
    assert answer.startswith(message(b"v", struct.pack("!II", 3 << 16, 1) + b"_pq_.new\0"))
    assert b"Z\0\0\0\x05I" in answer


def test_after_an_error_nothing_is_done_until_sync(open_server: Served) -> None:
    parse_bad, parse = message(b"P", b"\0SELEC 1\0\0\0"), message(b"P", b"\0SELECT 41 + 1\0\0\0")
    run = message(b"B", b"\0\0\0\0\0\0\0\0"), message(b"E", b"\0\0\0\0\0")
    sync = message(b"S")
    answer = said(
        open_server.server.port, first(3 << 16, STARTUP), parse_bad, *run, parse, *run, sync, parse, *run, sync
    )
    after_login = answer.partition(b"Z\0\0\0\x05I")[2]
    assert after_login.count(b"CSELECT 1\0") == 0 and after_login.count(b"SELECT 1\0") == 1
    assert after_login.count(b"SERROR\0") == 1
    assert after_login.count(b"Z\0\0\0\x05I") == 2


def test_a_message_that_is_too_long_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = postgres_messages.read.__defaults__
    monkeypatch.setattr(postgres_messages.read, "__defaults__", (1 << 20,))
    assert bounded == (postgres_messages.BODY_BYTES_MAX,)
    with serving() as served, served.psycopg() as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT '" + "x" * (1 << 20) + "'")
        alive(served)


# ── bounds and ends ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_connection_too_many_is_told_and_the_others_live() -> None:
    with serving(settings=WireSettings(connections_max=2)) as served, served.psycopg() as one, served.psycopg():
        with pytest.raises(psycopg.OperationalError, match="too many clients"), served.psycopg():
            pass
        assert one.execute("SELECT 1").fetchall() == [(1,)]


def test_a_client_that_does_not_log_in_is_cut_off() -> None:
    with serving(users={"u": "p"}, settings=WireSettings(login_s=0.2)) as served:
        for begun in (b"", first(3 << 16, STARTUP)):
            with socket.create_connection(("127.0.0.1", served.server.port), WAIT_S) as raw:
                raw.settimeout(WAIT_S)
                raw.sendall(begun)
                while raw.recv(4096):
                    pass


def test_more_rows_than_the_bound_are_refused_not_cut() -> None:
    with serving(settings=WireSettings(rows_max=1_000)) as served, served.psycopg() as connection:
        assert len(connection.execute("SELECT range FROM range(1000)").fetchall()) == 1_000
        for sql, parameters in (("SELECT range FROM range(1001)", None), ("SELECT range FROM range(%s)", (1_001,))):
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="1001 rows, more than 1000"):
                connection.execute(sql, parameters)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_prepared_statements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.tsdb.protocols.postgres_extended.STATEMENTS_MAX", 3)
    with serving() as served, served.psycopg() as connection:
        for k in range(3):
            connection.execute(f"SELECT {k}, %s", (1,), prepare=True)
        with pytest.raises(psycopg.errors.OutOfMemory, match="more than 3 prepared statements"):
            connection.execute("SELECT 3, %s", (1,), prepare=True)
        connection.execute("DEALLOCATE ALL")
        assert connection.execute("SELECT 3, %s", (1,)).fetchall() == [(3, 1)]


def test_close_lets_a_query_under_way_end_and_tells_the_idle() -> None:
    database = Slow()
    with serving(database) as served, served.psycopg() as busy, served.psycopg() as idle:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(busy.execute("SELECT %s + 1", (41,)).fetchall()))
        asking.start()
        assert database.asked.wait(WAIT_S)
        closing = served.start(served.server.close())
        with pytest.raises(psycopg.errors.AdminShutdown):
            idle.execute("SELECT 1")
        database.let()
        asking.join(WAIT_S)
        closing.result(WAIT_S)
        assert answers == [[(42,)]]


def test_close_does_not_wait_for_ever() -> None:
    database = Slow()
    cut: list[bool] = []

    def cut_off() -> None:
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")
        cut.append(True)

    with serving(database, settings=WireSettings(close_s=0.2)) as served, served.psycopg() as busy:
        asking = threading.Thread(target=cut_off)
        asking.start()
        assert database.asked.wait(WAIT_S)
        served.run(served.server.close())
        asking.join(WAIT_S)
        assert cut and database.given_up.is_set()


def test_a_cancel_with_another_secret_cancels_nothing() -> None:
    database = Slow()
    with serving(database) as served, served.psycopg() as connection:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(connection.execute("SELECT 7").fetchall()))
        asking.start()
        assert database.asked.wait(WAIT_S)
        forged = first(80877102, struct.pack("!I", connection.info.backend_pid) + b"\0\1\2\3")
        assert said(served.server.port, forged) == b""
        database.let()
        asking.join(WAIT_S)
        assert answers == [[(7,)]] and not database.given_up.is_set()


# ── forms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=300, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=12) | st.integers(-(10**40), 10**40).map(Decimal))
def test_numerics_in_binary_are_what_they_were(number: Decimal) -> None:
    [(_, shown)] = words(Oid.NUMERIC, numeric(number), True, bare=True)
    assert Decimal(shown) == number


def test_times_beyond_postgres_s_are_refused_and_old_ones_have_their_era() -> None:
    data = pa.table({"a": pa.array([-62_135_596_800_000 - 1, None, 253_402_300_800_000], pa.timestamp("ms"))})
    [text] = data_rows(data, columns(data.schema), [0])
    assert b"0001-12-31 23:59:59.999 BC" in text and b"10000-01-01 00:00:00.000" in text
    far = pa.table({"a": pa.array([-(2**63) + 1], pa.timestamp("us"))})
    with pytest.raises(Invalid, match="beyond what a timestamp counts"):
        list(data_rows(far, columns(far.schema), [1]))


def test_arrays_are_read_as_postgres_writes_them() -> None:
    def texts(array: bytes) -> list[str]:
        return [text for kind, text in words(1009, array, False, bare=False) if kind in ("string", "word")]

    assert texts(b'{a,"b \\"c",NULL,"null",d\\,e, "f" }') == ["a", 'b "c', "NULL", "null", "d,e", "f"]
    for wrong in (b"", b"{", b"{a,}", b'{"a}', b"{a}b}", b"{{a}}"):
        with pytest.raises(Invalid):
            words(1009, wrong, False, bare=False)
