"""One connection to a broker for requests that librdkafka has no call for: TLS and a login if the cluster wants them,
then frames. SCRAM: RFC 5802 and 7677; PLAIN: RFC 4616; in Kafka's frames: KIP-43, KIP-152.

Imported only when needed: the codec costs a tenth of a second.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import socket
import ssl
from collections.abc import Iterator
from typing import Any, TypeVar

from kio.schema.errors import ErrorCode
from kio.schema.request_header.v1.header import RequestHeader as RequestHeaderV1
from kio.schema.request_header.v2.header import RequestHeader
from kio.schema.response_header.v0.header import ResponseHeader as ResponseHeaderV0
from kio.schema.response_header.v1.header import ResponseHeader
from kio.schema.sasl_authenticate.v1.request import SaslAuthenticateRequest
from kio.schema.sasl_authenticate.v1.response import SaslAuthenticateResponse
from kio.schema.sasl_handshake.v1.request import SaslHandshakeRequest
from kio.schema.sasl_handshake.v1.response import SaslHandshakeResponse
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i32

from controlplane.cli.kafka_login import HINT, KafkaLogin
from providers.base.clock import Rng
from providers.base.errors import Corrupt, Invalid, Unavailable

R = TypeVar("R")

CLIENT_ID = "yunhe"
ANSWER_BYTES_MAX = 16 << 20
CONNECT_TIMEOUT_S = 3.0
ITERATIONS_MAX = 1_000_000
HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


class Channel:
    """A connected, logged-in socket; one request at a time. From `connected`."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._connection = connection
        self._name = name

    def call(self, request: Any, answer: type[R]) -> R:
        """Send a request, and read its answer.

        Raises:
            Unavailable: the broker does not answer. Corrupt: it does not speak Kafka.
        """
        kind = type(request)
        flexible = kind.__flexible__
        head = (RequestHeader if flexible else RequestHeaderV1)(
            request_api_key=kind.__api_key__,
            request_api_version=kind.__version__,
            correlation_id=i32(1),
            client_id=CLIENT_ID,
        )
        buffer = io.BytesIO()
        entity_writer(type(head))(buffer, head)
        entity_writer(kind)(buffer, request)
        frame = buffer.getvalue()
        try:
            self._connection.sendall(len(frame).to_bytes(4, "big") + frame)
            size = int.from_bytes(self._read(4), "big")
            if size > ANSWER_BYTES_MAX:
                raise Corrupt(f"the broker at {self._name} answers with {size} bytes: it does not speak Kafka")
            body = self._read(size)
        except OSError as error:
            raise Unavailable(f"the broker at {self._name} does not answer: {error}") from error
        _, used = entity_reader(ResponseHeader if flexible else ResponseHeaderV0)(body, 0)
        value, _ = entity_reader(answer)(body, used)  # type: ignore[type-var]
        return value

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._connection.recv(size - len(parts))
            if not part:
                raise ConnectionResetError("it closed the connection")
            parts += part
        return bytes(parts)


@contextlib.contextmanager
def connected(address: tuple[str, int], login: KafkaLogin, rng: Rng, timeout_s: float) -> Iterator[Channel]:
    """A channel to the broker at `address`; `timeout_s` bounds each read.

    Raises:
        Invalid: the broker does not let this client in, or the login's files cannot be used.
        Unavailable: it does not answer.
    """
    name = f"{address[0]}:{address[1]}"
    try:
        connection = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        raise Unavailable(f"the broker at {name} does not answer: {error}") from error
    with contextlib.closing(connection):
        connection.settimeout(timeout_s)
        if login.protocol.endswith("SSL"):
            connection = _over_tls(connection, address[0], name, login)
        with contextlib.closing(connection):
            channel = Channel(connection, name)
            if login.protocol.startswith("SASL"):
                _log_in(channel, name, login, rng)
            yield channel


def _over_tls(connection: socket.socket, host: str, name: str, login: KafkaLogin) -> socket.socket:
    given = login.properties
    try:
        context = ssl.create_default_context(cafile=given.get("ssl.ca.location"))
        if given.get("ssl.endpoint.identification.algorithm", "https") == "none":
            context.check_hostname = False
        if certificate := given.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, given.get("ssl.key.location"), given.get("ssl.key.password"))
    except OSError as error:
        raise Invalid(f"the certificates of --command-config cannot be used: {error}") from error
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLError as error:
        raise Invalid(f"no TLS with the broker at {name}: {error}") from error
    except OSError as error:
        raise Unavailable(f"the broker at {name} does not answer: {error}") from error


def _log_in(channel: Channel, name: str, login: KafkaLogin, rng: Rng) -> None:
    given = login.properties
    mechanism, user, password = given["sasl.mechanism"], given["sasl.username"], given["sasl.password"]
    shaken = channel.call(SaslHandshakeRequest(mechanism=mechanism), SaslHandshakeResponse)
    if shaken.error_code is not ErrorCode.none:
        offered = ", ".join(shaken.mechanisms) or "none"
        raise Invalid(f"the broker at {name} takes no {mechanism}", hint=f"sasl.mechanism: {offered}")

    def say(said: bytes) -> bytes:
        answer = channel.call(SaslAuthenticateRequest(auth_bytes=said), SaslAuthenticateResponse)
        if answer.error_code is not ErrorCode.none:
            why = answer.error_message or answer.error_code.name.replace("_", " ")
            raise Invalid(f"the broker at {name} does not let {user} in: {why}", hint=HINT)
        return bytes(answer.auth_bytes)

    if mechanism == "PLAIN":
        say(b"\0".join((b"", user.encode(), password.encode())))
    elif mechanism in HASHES:
        scram = Scram(HASHES[mechanism], user, password, rng.token())
        if not scram.proven(say(scram.final(say(scram.first())))):
            raise Invalid(f"the broker at {name} does not know the password of {user}: it is not who it says it is")
    else:
        raise Invalid(f"{mechanism} is not spoken here", hint=f"sasl.mechanism: PLAIN, {', '.join(HASHES)}")


class Scram:
    """A client's side of one SCRAM exchange."""

    def __init__(self, algorithm: str, user: str, password: str, nonce: str) -> None:
        self._algorithm = algorithm
        self._password = password.encode()
        self._nonce = nonce
        self._bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self._signature = b""

    def first(self) -> bytes:
        """The client's first message."""
        return f"n,,{self._bare}".encode()

    def final(self, answer: bytes) -> bytes:
        """The client's proof, given the server's first message.

        Raises:
            Corrupt: that is none, or asks for more work than any server does.
        """
        try:
            told = dict(part.split("=", 1) for part in answer.decode().split(","))
            nonce, salt, iterations = told["r"], base64.b64decode(told["s"], validate=True), int(told["i"])
        except (ValueError, KeyError) as error:
            raise Corrupt("the broker's answer is not SCRAM") from error
        if not nonce.startswith(self._nonce) or not 0 < iterations <= ITERATIONS_MAX:
            raise Corrupt("the broker's answer is not for this login")
        salted = hashlib.pbkdf2_hmac(self._algorithm, self._password, salt, iterations)
        key = self._mac(salted, b"Client Key")
        without_proof = f"c=biws,r={nonce}"
        said = f"{self._bare},{answer.decode()},{without_proof}".encode()
        signature = self._mac(hashlib.new(self._algorithm, key).digest(), said)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        self._signature = self._mac(self._mac(salted, b"Server Key"), said)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def proven(self, answer: bytes) -> bool:
        """Whether the server's final message proves that it knows the password too."""
        return hmac.compare_digest(answer.split(b",")[0], b"v=" + base64.b64encode(self._signature))

    def _mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, self._algorithm)
