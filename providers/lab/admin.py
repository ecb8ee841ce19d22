"""Admin calls to the processes of emulated clouds (`gate.py` says which there are), over HTTP or, to a volume daemon,
over its own socket. Blocking: for command lines and tests."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from providers.base.errors import Invalid, NotFound, Unavailable
from providers.lab import volumes_protocol as wire

TIMEOUT_S = 10.0
"""Admin calls are answered from memory: longer is a process that hangs."""


class Admin(Protocol):
    """One process's admin calls."""

    def call(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer.

        Raises:
            Invalid: refused; nothing was changed.
            NotFound: it names something that is not there.
            Unavailable: nobody answers.
        """
        ...


class HttpAdmin:
    """Of an object-store or control server."""

    def __init__(self, name: str, port: int, token: str) -> None:
        self._name = name
        self._port = port
        self._token = token

    def call(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        # No proxy is ever asked: http.client knows none.
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self._name} does not answer", hint="yunhe lab status says what runs") from error
        finally:
            connection.close()
        return _answer(self._name, answer.status, _plain(text))


class VolumeAdmin:
    """Of a volume daemon at `unix:PATH` or `tcp:HOST:PORT`."""

    def __init__(self, name: str, address: str, token: str) -> None:
        self._name = name
        self._where = wire.parse_address(address)
        self._token = token

    def call(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        asked = {"token": self._token, "method": method, "target": target}
        payload = wire.encode(asked if body is None else {**asked, "body": dict(body)})
        family = socket.AF_UNIX if isinstance(self._where, Path) else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT_S)
                connection.connect(str(self._where) if isinstance(self._where, Path) else self._where)
                connection.sendall(wire.REQUEST.pack(len(payload), wire.Op.ADMIN, 1, 0, 0) + payload)
                length, status, _ = wire.REPLY.unpack(_receive(connection, wire.REPLY.size))
                said = _receive(connection, min(length, wire.PAYLOAD_BYTES_MAX))
        except OSError as error:
            raise Unavailable(f"{self._name} does not answer", hint="yunhe lab status says what runs") from error
        if status != wire.OK:
            raise wire.to_error(status, said)
        plain = _plain(said)
        return _answer(self._name, int(plain["status"]), plain["answer"])


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = connection.recv(min(1 << 20, size - len(received)))
        if not part:
            raise ConnectionResetError("the connection ended early")
        received += part
    return bytes(received)


def _plain(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"error": text.decode(errors="replace").strip() or "no words", "hint": None}


def _answer(name: str, status: int, plain: Any) -> dict[str, Any]:
    if status == 200 and isinstance(plain, dict):
        return plain
    said = plain.get("error") if isinstance(plain, dict) else plain
    hint = plain.get("hint") if isinstance(plain, dict) else None
    if status == 404:
        raise NotFound(str(said), hint=hint)
    if status == 400:
        raise Invalid(str(said), hint=hint)
    raise Unavailable(f"{name} answered {status}: {said}")
