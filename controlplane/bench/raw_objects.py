"""A lean client of the lab's object stores: each cloud's own requests, signed, without an SDK. Where an SDK's own work
is what limits a figure, this one shows what the server does; it is no client for anything else.

Signatures: AWS Signature Version 4 (payload unsigned), Azure's Shared Key, OSS's version 1; the lab's GCS takes any.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from xml.etree import ElementTree

from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.base.registry import StoreAddress

ANSWER_HEAD_BYTES_MAX = 64 << 10
RECEIVE_BYTES = 1 << 20
_BOUNDARY = "yunhe-bench"


@dataclass(frozen=True, slots=True)
class Target:
    """A bucket of an emulated cloud, with what signs requests to it. `session`: S3 Express's token."""

    address: StoreAddress
    credentials: Mapping[str, Any]
    clock: Clock
    session: str = ""

    @property
    def host(self) -> str:
        return str(self.address.endpoint).removeprefix("http://")

    def put(self, key: str, data: bytes) -> list[bytes]:
        """A request that stores `data`, as pieces to send."""
        match self.address.provider:
            case "gcp":
                head = json.dumps({"name": key})
                first = (
                    f"--{_BOUNDARY}\r\ncontent-type: application/json\r\n\r\n{head}\r\n--{_BOUNDARY}\r\n\r\n".encode()
                )
                body = [first, data, f"\r\n--{_BOUNDARY}--".encode()]
                path = f"/upload/storage/v1/b/{self.address.bucket}/o?uploadType=multipart"
                kind = {"content-type": f"multipart/related; boundary={_BOUNDARY}"}
                return [self._head("POST", path, kind, sum(map(len, body))), *body]
            case "azure":
                return [self.signed("PUT", key, {"x-ms-blob-type": "BlockBlob"}, len(data)), data]
        return [self.signed("PUT", key, {}, len(data)), data]

    def get(self, key: str) -> bytes:
        """A request for all of an object."""
        if self.address.provider == "gcp":
            path = f"/download/storage/v1/b/{self.address.bucket}/o/{quote(key, safe='')}?alt=media"
            return self._head("GET", path, {}, None)
        return self.signed("GET", key, {}, None)

    def _head(self, method: str, path: str, headers: Mapping[str, str], length: int | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", *(f"{k}: {v}" for k, v in headers.items())]
        if length is not None:
            lines.append(f"content-length: {length}")
        return "\r\n".join([*lines, "", ""]).encode()

    def signed(self, method: str, key: str, headers: dict[str, str], length: int | None, query: str = "") -> bytes:
        """A request's head; `length` of the body that follows. Not for GCS, whose heads name more than a key."""
        sign = {"azure": self._azure, "aliyun": self._oss}.get(self.address.provider, self._aws)
        path = f"/{self.address.bucket}/{key}".rstrip("/") if query else f"/{self.address.bucket}/{key}"
        if self.address.provider == "azure":
            path = f"/{self.credentials['account']}{path}"
        sign(method, path, query, headers, length)
        return self._head(method, path + (f"?{query}" if query else ""), headers, length)

    def _aws(self, method: str, path: str, query: str, headers: dict[str, str], length: int | None) -> None:
        service = "s3express" if self.address.bucket.endswith("--x-s3") else "s3"
        stamp = _stamp(self.clock.wall_ms() // 1000)
        headers |= {"x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": stamp}
        if self.session:
            headers["x-amz-s3session-token"] = self.session
        signed = {"host": self.host, **headers}
        names = ";".join(sorted(signed))
        lines = [method, path, f"{query}=" if query else "", *(f"{name}:{signed[name]}" for name in sorted(signed))]
        canonical = "\n".join([*lines, "", names, "UNSIGNED-PAYLOAD"])
        scope = f"{stamp[:8]}/{self.address.region}/{service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(_aws_key(self.credentials["secret_key"], scope), text.encode(), "sha256").hex()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.credentials['access_key']}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}"
        )

    def _azure(self, method: str, path: str, query: str, headers: dict[str, str], length: int | None) -> None:
        headers |= {"x-ms-date": _date(self.clock.wall_ms() // 1000), "x-ms-version": "2025-05-05"}
        own = "\n".join(f"{name}:{headers[name]}" for name in sorted(headers))
        text = f"{method}\n\n\n{length or ''}\n\n\n\n\n\n\n\n\n{own}\n/{self.credentials['account']}{path}"
        key = base64.b64decode(self.credentials["account_key"])
        signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
        headers["authorization"] = f"SharedKey {self.credentials['account']}:{signature}"

    def _oss(self, method: str, path: str, query: str, headers: dict[str, str], length: int | None) -> None:
        headers["date"] = _date(self.clock.wall_ms() // 1000)
        text = f"{method}\n\n\n{headers['date']}\n{path}"
        signature = base64.b64encode(hmac.digest(self.credentials["secret_key"].encode(), text.encode(), "sha1"))
        headers["authorization"] = f"OSS {self.credentials['access_key']}:{signature.decode()}"


async def open_target(address: StoreAddress, clock: Clock) -> Target:
    """With the credentials of the address's file, and a session where S3 Express wants one.

    Raises:
        Unavailable: no session was given.
    """
    credentials = json.loads(Path(str(address.credentials_file)).read_bytes())
    target = Target(address, credentials, clock)
    if not address.bucket.endswith("--x-s3"):
        return target
    connection = await Connection.open(target)
    try:
        await connection.ask([target.signed("GET", "", {}, None, "session")], keep=True)
        root = ElementTree.fromstring(bytes(connection.kept))
    finally:
        connection.close()
    found = {element.tag.rpartition("}")[2]: element.text or "" for element in root.iter()}
    keys = {"access_key": found["AccessKeyId"], "secret_key": found["SecretAccessKey"]}
    return Target(address, keys, clock, found["SessionToken"])


class Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time. `first_ms`: when the last answer's first byte came."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._head = bytearray()
        self._left: int | None = None
        self._answer: asyncio.Future[int] | None = None
        self._status = 0
        self._transport: asyncio.Transport | None = None
        self._keep = False
        self.kept = bytearray()
        self.first_ms = 0.0

    @classmethod
    async def open(cls, target: Target) -> Connection:
        host, _, port = target.host.partition(":")
        _, made = await asyncio.get_running_loop().create_connection(lambda: cls(target.clock), host, int(port))
        return made

    async def ask(self, request: Sequence[bytes], *, keep: bool = False) -> int:
        """Send a request and read its answer to the end; its status. `keep`: the body, in `kept`.

        Raises:
            Unavailable: the connection was lost, or the answer is an error.
        """
        assert self._transport is not None
        self._head.clear()
        self.kept.clear()
        self._left, self._keep, self.first_ms = None, keep, 0.0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        status = await self._answer
        if status >= 300:
            raise Unavailable(f"the lab's object store answered {status}: {bytes(self._head[:300])!r}")
        return status

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unavailable("the lab's object store closed the connection"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.first_ms:
            self.first_ms = self._clock.monotonic_ms()
        if self._left is None:
            self._head += self._buffer[:nbytes]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = bytes(self._head[:end]).lower().split(b"\r\n")
            self._status = int(lines[0].split()[1])
            self._left = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            rest = self._head[end + 4 :]
            nbytes = len(rest)
            if self._keep:
                self.kept += rest
        elif self._keep:
            self.kept += self._buffer[:nbytes]
        self._left -= nbytes
        if self._left <= 0 and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._status)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run_many(
    target: Target,
    requests: Iterator[Callable[[], Sequence[bytes]]],
    connections: int,
    *,
    ended: list[float] | None = None,
) -> list[float]:
    """Carry out all requests over so many connections; milliseconds of each until its first byte. `ended`: when each
    was over goes there."""
    opened = [await Connection.open(target) for _ in range(connections)]
    waited: list[float] = []

    async def worker(connection: Connection) -> None:
        for make in requests:
            at_ms = target.clock.monotonic_ms()
            await connection.ask(make())
            waited.append(connection.first_ms - at_ms)
            if ended is not None:
                ended.append(target.clock.monotonic_ms())

    try:
        await asyncio.gather(*(worker(connection) for connection in opened))
    finally:
        for connection in opened:
            connection.close()
    return waited


@functools.lru_cache(maxsize=8)
def _stamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")


@functools.lru_cache(maxsize=8)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


@functools.lru_cache(maxsize=16)
def _aws_key(secret: str, scope: str) -> bytes:
    key = ("AWS4" + secret).encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key
