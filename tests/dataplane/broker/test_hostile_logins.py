"""What a listener that wants a login does with those who have none: it tells little, holds little, and soon hangs up.
Spoken to byte by byte; the proofs are made by the RFC, not by the broker's own code.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataplane.broker import sasl, tls
from dataplane.broker.net import KafkaServer, ServerSettings
from dataplane.broker.security import Decide, NoStore, Security, keys_of
from dataplane.contract.security import ListenerProtocol, Mechanism
from dataplane.ledger.security_state import SecurityState
from dataplane.scram import salted
from providers.base.clock import SeededRng, SystemClock
from providers.base.errors import Invalid
from providers.base.loops import run_loop
from tests.dataplane.broker.secured import spec_of
from tests.dataplane.broker.test_connections import OnePartition, fetch, produce, until
from tests.dataplane.stream.batches import batch

USER, PASSWORD = "alice", "wonderland"
HANDSHAKE, AUTHENTICATE, METADATA, API_VERSIONS = 17, 36, 3, 18
ILLEGAL_STATE, FAILED, UNSUPPORTED_MECHANISM = 34, 58, 33


class OneUser(NoStore):
    """Alice, with SCRAM-SHA-256; and Bob, who has the same keys."""

    def __init__(self) -> None:
        mechanism, salt = Mechanism.SCRAM_SHA_256, bytes(range(16))
        keys = keys_of(mechanism, salted(mechanism, PASSWORD, salt, 4_096), salt, 4_096)
        self.state = SecurityState(1, [], {USER: {mechanism.value: keys}, "bob": {mechanism.value: keys}}, {})


Test = Callable[[KafkaServer, int], Awaitable[None]]


def on_a_listener(
    folder: Path,
    test: Test,
    protocol: ListenerProtocol = ListenerProtocol.SASL_PLAINTEXT,
    settings: ServerSettings | None = None,
    **changes: Any,
) -> None:
    async def main() -> None:
        spec = replace(spec_of(folder, protocol, **changes), users=None)
        clock, rng = SystemClock(), SeededRng(7)
        security = Security(spec, OneUser(), clock=clock, rng=rng)
        engine: Any = OnePartition()
        server = KafkaServer(engine, clock=clock, rng=rng, settings=settings, security=security)
        port = await server.start("127.0.0.1", 0)
        try:
            async with asyncio.timeout(20):
                await test(server, port)
        finally:
            await server.close()

    run_loop(main())


def frame(api: int, version: int, body: bytes, correlation: int = 1) -> bytes:
    head = struct.pack(">hhih", api, version, correlation, -1)
    return struct.pack(">i", len(head + body)) + head + body


def handshake(mechanism: str, version: int = 1) -> bytes:
    return frame(HANDSHAKE, version, struct.pack(">h", len(mechanism)) + mechanism.encode())


def token(data: bytes, version: int = 1) -> bytes:
    return frame(AUTHENTICATE, version, struct.pack(">i", len(data)) + data)


class Client:
    """A connection of the test's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    async def to(port: int, context: ssl.SSLContext | None = None) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def ask(self, data: bytes) -> bytes:
        """The answer's body, behind its correlation id."""
        self.writer.write(data)
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return (await self.reader.readexactly(size))[4:]

    async def authenticate(self, data: bytes) -> tuple[int, bytes, int]:
        """Error, token and lifetime of a SaslAuthenticate."""
        body = await self.ask(token(data))
        [error, text] = struct.unpack_from(">hh", body)
        at = 4 + max(text, 0)
        [size] = struct.unpack_from(">i", body, at)
        [lifetime] = struct.unpack_from(">q", body, at + 4 + size)
        return error, body[at + 4 : at + 4 + size], lifetime

    async def log_in(self, password: str = PASSWORD) -> tuple[int, bytes, int]:
        assert (await self.ask(handshake("SCRAM-SHA-256")))[:2] == b"\0\0"
        error, first, _ = await self.authenticate(f"n,,n={USER},r=fixed".encode())
        assert error == 0
        return await self.authenticate(proof(first.decode(), password))

    async def cut_off(self) -> bool:
        """Wait until the other end has hung up; whatever it still says is thrown away."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
        self.writer.close()
        return True

    async def serves(self) -> bool:
        body = await self.ask(frame(API_VERSIONS, 0, b""))
        return body[:2] == b"\0\0"


def proof(
    first: str, password: str = PASSWORD, *, user: str = USER, binding: str = "biws", nonce: str | None = None
) -> bytes:
    """A client's last message, by the RFC and not by the broker's own code."""
    fields = dict(part.split("=", 1) for part in first.split(","))
    salted_password = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    client_key = hmac.digest(salted_password, b"Client Key", "sha256")
    without = f"c={binding},r={nonce if nonce is not None else fields['r']}"
    said = f"n={user},r=fixed,{first},{without}".encode()
    signature = hmac.digest(hashlib.sha256(client_key).digest(), said, "sha256")
    proven = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return f"{without},p={base64.b64encode(proven).decode()}".encode()


def test_who_asks_for_anything_before_logging_in_is_cut_off(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        for request in (fetch(1), produce(1, batch(b"a")), frame(METADATA, 1, b"\0\0\0\0")):
            client = await Client.to(port)
            assert await client.serves(), "which versions there are everybody may ask"
            client.writer.write(request)
            assert await client.cut_off()
        await until(lambda: not server.connections and not server.logging_in)

    on_a_listener(tmp_path, test, settings=ServerSettings(login_timeout_ms=60_000))


def test_a_login_out_of_order_or_by_an_unknown_mechanism_is_told_what_is_wrong_and_cut_off(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        assert (await client.authenticate(b"n,,n=a,r=b"))[0] == ILLEGAL_STATE
        assert await client.cut_off()
        client = await Client.to(port)
        answer = await client.ask(handshake("GSSAPI"))
        assert answer[:2] == struct.pack(">h", UNSUPPORTED_MECHANISM) and b"SCRAM-SHA-512" in answer
        assert await client.cut_off()
        client = await Client.to(port)
        await client.ask(handshake("SCRAM-SHA-256"))
        assert (await client.ask(handshake("SCRAM-SHA-256")))[:2] == struct.pack(">h", ILLEGAL_STATE)
        assert await client.cut_off()

    on_a_listener(tmp_path, test)


def test_a_failed_login_is_told_late_and_the_connection_ends(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        began = asyncio.get_running_loop().time()
        error, _, _ = await client.log_in("wrong")
        assert error == FAILED
        assert asyncio.get_running_loop().time() - began >= sasl.FAILED_DELAY_MS / 1000
        assert await client.cut_off()

    on_a_listener(tmp_path, test)


def test_a_recorded_login_does_not_log_in_again(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        await client.ask(handshake("SCRAM-SHA-256"))
        first_message = f"n,,n={USER},r=fixed".encode()
        _, first, _ = await client.authenticate(first_message)
        last = proof(first.decode())
        assert (await client.authenticate(last))[0] == 0
        again = await Client.to(port)
        await again.ask(handshake("SCRAM-SHA-256"))
        await again.authenticate(first_message)
        assert (await again.authenticate(last))[0] == FAILED
        assert await again.cut_off()

    on_a_listener(tmp_path, test)


def test_the_server_proves_itself_too_and_the_connection_then_works(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        error, signature, _ = await client.log_in()
        assert error == 0 and signature.startswith(b"v=")
        assert await client.serves()
        assert [c._caller.session.principal for c in server.connections] == ["User:alice"]
        assert not server.logging_in

    on_a_listener(tmp_path, test)


def test_an_unknown_user_is_answered_like_a_known_one(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        shown = []
        for _ in range(2):
            client = await Client.to(port)
            await client.ask(handshake("SCRAM-SHA-256"))
            error, first, _ = await client.authenticate(b"n,,n=mallory,r=fixed")
            assert error == 0
            shown.append(first.split(b",s=")[1])
            assert (await client.authenticate(proof(first.decode())))[0] == FAILED
        assert shown[0] == shown[1], "with a salt that does not change"

    on_a_listener(tmp_path, test)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b"n,,",
        b"n,,n=alice",
        b"n,,r=fixed,n=alice",
        b"n,,m=new,n=alice,r=fixed",
        b"n,,n=al=ice,r=fixed",
        b"n,,n=,r=fixed",
        b"n,,n=alice,r=",
        b"n,a=root,n=alice,r=fixed",
        b"p=tls-unique,,n=alice,r=fixed",
        b"n,,n=alice,r=fixed" + bytes(5_000),
    ],
)
def test_a_first_message_that_is_not_scram_fails(tmp_path: Path, message: bytes) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        await client.ask(handshake("SCRAM-SHA-256"))
        assert (await client.authenticate(message))[0] == FAILED
        assert await client.cut_off()

    on_a_listener(tmp_path, test)


@pytest.mark.parametrize(
    "change",
    [
        lambda last: b"",
        lambda last: last.replace(b"c=biws", b"c=eSws"),
        lambda last: last.replace(b"c=biws", b"c=!"),
        lambda last: last.replace(b"r=fixed", b"r=other"),
        lambda last: last[:-8],
        lambda last: last.split(b",p=")[0],
        lambda last: last.split(b",p=")[0] + b",p=AAAA",
        lambda last: last.split(b",p=")[0] + b",p=" + base64.b64encode(bytes(32)),
    ],
)
def test_a_last_message_that_was_tampered_with_fails(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        await client.ask(handshake("SCRAM-SHA-256"))
        _, first, _ = await client.authenticate(f"n,,n={USER},r=fixed".encode())
        assert (await client.authenticate(change(proof(first.decode()))))[0] == FAILED

    on_a_listener(tmp_path, test)


@pytest.mark.parametrize("other", [{"binding": "eSws"}, {"nonce": "fixed"}, {"nonce": "another"}])
def test_a_right_proof_of_another_binding_or_nonce_fails(tmp_path: Path, other: dict[str, str]) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        await client.ask(handshake("SCRAM-SHA-256"))
        _, first, _ = await client.authenticate(f"n,,n={USER},r=fixed".encode())
        assert (await client.authenticate(proof(first.decode(), **other)))[0] == FAILED

    on_a_listener(tmp_path, test)


def test_garbage_and_large_frames_end_the_connection_before_anything_is_kept_for_them(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        for data in (b"GET / HTTP/1.1\r\n\r\n", struct.pack(">i", sasl.FRAME_BYTES_MAX + 1), bytes(64), b"\0\0\0\x0c"):
            client = await Client.to(port)
            client.writer.write(data)
            if data == b"\0\0\0\x0c":
                client.writer.write(bytes(range(12)))
            assert await client.cut_off()
        await until(lambda: not server.connections)

    on_a_listener(tmp_path, test, settings=ServerSettings(login_timeout_ms=60_000))


def test_who_only_asks_for_versions_is_cut_off_after_a_while(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        for _ in range(sasl.FRAMES_MAX):
            assert await client.serves()
        client.writer.write(frame(API_VERSIONS, 0, b""))
        assert await client.cut_off()

    on_a_listener(tmp_path, test, settings=ServerSettings(login_timeout_ms=60_000))


def test_those_who_have_not_logged_in_are_few_and_do_not_keep_others_out(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        known = await Client.to(port)
        assert (await known.log_in())[0] == 0
        silent = [await Client.to(port) for _ in range(3)]
        await until(lambda: len(server.logging_in) == 3)
        assert await (await Client.to(port)).cut_off(), "three may wait at a time"
        assert await known.serves()
        silent[0].writer.close()
        await until(lambda: len(server.logging_in) == 2)
        assert (await (await Client.to(port)).log_in())[0] == 0

    on_a_listener(tmp_path, test, settings=ServerSettings(login_timeout_ms=60_000, logging_in_max=3))


def test_who_says_nothing_is_cut_off(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        silent = await Client.to(port)
        assert await silent.cut_off()
        await until(lambda: not server.logging_in and not server.connections)

    on_a_listener(tmp_path, test, settings=ServerSettings(login_timeout_ms=300))


def test_a_login_of_the_old_kind_works_and_fails(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        for password in (PASSWORD, "wrong"):
            client = await Client.to(port)
            assert (await client.ask(handshake("SCRAM-SHA-256", 0)))[:2] == b"\0\0"

            async def bare(data: bytes, client: Client = client) -> bytes:
                client.writer.write(struct.pack(">i", len(data)) + data)
                return await client.reader.readexactly(int.from_bytes(await client.reader.readexactly(4), "big"))

            first = (await bare(f"n,,n={USER},r=fixed".encode())).decode()
            if password == PASSWORD:
                assert (await bare(proof(first))).startswith(b"v=")
                assert await client.serves()
            else:
                client.writer.write(struct.pack(">i", len(proof(first, "wrong"))) + proof(first, "wrong"))
                assert await client.cut_off()

    on_a_listener(tmp_path, test)


def test_a_login_runs_out_unless_it_is_renewed_by_the_same_user(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        lazy, careful = await Client.to(port), await Client.to(port)
        assert (await lazy.log_in())[2] == 500
        await careful.log_in()
        await asyncio.sleep(0.3)
        assert (await careful.log_in())[0] == 0, "renewed"
        await asyncio.sleep(0.3)
        assert await careful.serves()
        lazy.writer.write(fetch(1))
        assert await lazy.cut_off()
        await asyncio.sleep(0.3)
        assert (await careful.log_in())[0] == 0, "and again, when it had run out already"
        await careful.ask(handshake("SCRAM-SHA-256"))
        _, first, _ = await careful.authenticate(b"n,,n=bob,r=fixed")
        assert (await careful.authenticate(proof(first.decode(), user="bob")))[0] == FAILED, "not as somebody else"
        assert await careful.cut_off()

    on_a_listener(tmp_path, test, reauthenticate_ms=500)


def test_a_listener_without_sasl_says_so(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        client = await Client.to(port)
        assert (await client.ask(handshake("PLAIN")))[:2] == struct.pack(">h", ILLEGAL_STATE)
        assert (await client.authenticate(b"\0a\0b"))[0] == ILLEGAL_STATE
        assert await client.serves()

    on_a_listener(tmp_path, test, ListenerProtocol.PLAINTEXT)


HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def test_plaintext_on_a_tls_port_and_a_handshake_that_stops_halfway_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 0.4)

    async def test(server: KafkaServer, port: int) -> None:
        plain = await Client.to(port)
        plain.writer.write(handshake("PLAIN"))
        assert await plain.cut_off()
        halfway = await Client.to(port)
        halfway.writer.write(HALF_A_HELLO)
        assert await halfway.cut_off()
        listener = server._tls
        assert listener is not None
        await until(lambda: listener.handshakes == 0)
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        assert (await (await Client.to(port, context)).log_in())[0] == 0

    on_a_listener(tmp_path, test, ListenerProtocol.SASL_SSL)


def test_handshakes_at_a_time_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKES_MAX", 3)
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 60)

    async def test(server: KafkaServer, port: int) -> None:
        listener = server._tls
        assert listener is not None
        halfway = [await Client.to(port) for _ in range(3)]
        for client in halfway:
            client.writer.write(HALF_A_HELLO)
        await until(lambda: listener.handshakes == 3)
        assert await (await Client.to(port)).cut_off()
        halfway[0].writer.close()
        await until(lambda: listener.handshakes == 2)
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        assert (await (await Client.to(port, context)).log_in())[0] == 0

    on_a_listener(tmp_path, test, ListenerProtocol.SASL_SSL)


def test_a_client_that_sends_much_right_behind_its_handshake_is_served(tmp_path: Path) -> None:
    async def test(server: KafkaServer, port: int) -> None:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        for _ in range(5):
            client = await Client.to(port, context)
            client.writer.write(frame(API_VERSIONS, 0, b"") * 10)
            for _ in range(10):
                await client.reader.readexactly(int.from_bytes(await client.reader.readexactly(4), "big"))

    on_a_listener(tmp_path, test, ListenerProtocol.SASL_SSL)


def test_a_users_file_is_needed_for_the_first_users_alone(tmp_path: Path) -> None:
    class Ledger(OneUser):
        def __init__(self, users: dict[str, Any]) -> None:
            super().__init__()
            self.state.scram = users if users else {}
            self.changed: list[Any] = []

        async def change(self, decide: Decide) -> None:
            self.changed.append(decide(self.state))

    def made(ledger: Ledger) -> list[str]:
        spec = spec_of(tmp_path, ListenerProtocol.SASL_PLAINTEXT)
        spec = replace(spec, users=f"file:{users}")
        asyncio.run(Security(spec, ledger, clock=SystemClock(), rng=SeededRng(1)).make_first_users())
        return [upsert[0] for commands in ledger.changed for upsert in commands[0]["upserts"]]

    users = tmp_path / "first.json"
    for content in (None, "[]", "{}", '{"a": ["hidden"]}', '{"a": ""}'):
        if content is not None:
            users.write_text(content)
        with pytest.raises(Invalid) as refused:
            made(Ledger({}))
        assert "hidden" not in refused.value.message
        assert made(Ledger({USER: OneUser().state.scram[USER]})) == []
    users.write_text('{"alice": "changed", "bob": "new"}')
    assert made(Ledger({USER: OneUser().state.scram[USER]})) == ["bob", "bob"], "both mechanisms; alice stays"
