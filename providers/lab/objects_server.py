"""One emulated object store as a process: `python -m providers.lab.objects_server --dialect s3 --root DIR --credentials
FILE --ready-file FILE`.

Sockets, threads and signals are here; what a request means is the dialect's business, and what is stored the storage's.
With an `admin_token` in the credentials file (header `authorization: Bearer <admin_token>`) faults are set and the
meter is read under `/-/`: see `gate.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_server import Server

from providers.base.clock import Clock, SystemClock
from providers.base.errors import Invalid, YunheError
from providers.base.files import replace_file
from providers.base.loops import run_loop
from providers.lab.dialect_azure import AzureDialect
from providers.lab.dialect_gcs import GcsDialect
from providers.lab.dialect_oss import OssDialect
from providers.lab.dialect_s3 import S3Dialect
from providers.lab.gate import Gate, SkewedClock, standing
from providers.lab.storage import Storage
from providers.lab.wire import Dialect, Exchange, Reply, Request
from providers.lab.wire_verbs import exchange_of

BODY_BYTES_MAX = 256 << 20
"""Largest request body; more is refused with 413."""

READ_THREADS = 4
WRITE_THREADS = 8
"""Apart, so that reads do not queue behind writes that wait for the disk."""

DRAIN_MS_MAX = 2_000
"""How long requests in flight may take after SIGTERM."""


class _DialectClass(Protocol):
    def __call__(self, storage: Storage, credentials: Mapping[str, Any], clock: Clock) -> Dialect: ...


DIALECTS: Mapping[str, _DialectClass] = {
    "aliyun": OssDialect,
    "azure": AzureDialect,
    "gcp": GcsDialect,
    "s3": S3Dialect,
}

PROVIDERS = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "s3": "aws"}
"""Whose words a dialect's faults answer in, unless `--provider` says otherwise."""


class ObjectServer:
    """Answers requests of one dialect over one storage."""

    def __init__(self, dialect: Dialect, name: str, gate: Gate) -> None:
        self._dialect = dialect
        self._name = name
        self._gate = gate
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="write")
        self.in_flight = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request: body, faults, answer."""
        self.in_flight += 1
        try:
            return await self._handle(request)
        finally:
            self.in_flight -= 1

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        target = http.raw_path
        headers = {name.lower(): value for name, value in http.headers.items()}
        length = http.content_length
        if length is not None and length > BODY_BYTES_MAX:
            return self._send(http, self._too_large())
        if headers.get("expect", "").lower() == "100-continue":
            await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        if http.can_read_body:
            chunks = []
            size = 0
            async for chunk in http.content.iter_any():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    return self._send(http, self._too_large())
                chunks.append(chunk)
            body = b"".join(chunks)
        if target.startswith("/-/"):
            return self._send(http, self._gate.admin_reply(http.method, target, headers, body))
        exchange = exchange_of(self._name, http.method, target, headers, len(body))
        verdict = self._gate.judge(exchange)
        if verdict.latency_ms:
            await asyncio.sleep(verdict.latency_ms / 1000)
        if verdict.silent_ms:
            await self._gate.hold(verdict, http)
            return self._cut(http, exchange)
        if verdict.unavailable:
            return self._cut(http, exchange)
        if verdict.error is not None:
            status, code = verdict.error
            reply = self._dialect.error(status, code, "a fault says so")
            if http.method == "HEAD":
                reply = Reply(reply.status, reply.headers)
        else:
            request = Request.of(http.method, target, headers, body)
            pool = self._readers if http.method in ("GET", "HEAD") else self._writers
            reply = await asyncio.get_running_loop().run_in_executor(pool, self._answer, request)
        if verdict.drop_answer:
            return self._cut(http, exchange, done=True)
        exchange.status = reply.status
        exchange.bytes_out = len(reply.body) if isinstance(reply.body, bytes) else reply.body.size
        self._gate.note(exchange, refused=verdict.error is not None)
        return self._send(http, reply)

    def _answer(self, request: Request) -> Reply:
        try:
            return self._dialect.answer(request)
        except (ValueError, KeyError, SyntaxError) as error:
            # Malformed numbers, base64, JSON or XML (ElementTree's ParseError is a SyntaxError).
            return self._dialect.error(400, "InvalidArgument", f"malformed request: {error!r}")
        except (YunheError, OSError) as error:
            return self._dialect.error(500, "InternalError", str(error))

    def _send(self, http: web.BaseRequest, reply: Reply) -> web.StreamResponse:
        body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body.pieces())
        return web.Response(status=reply.status, headers=dict(reply.headers), body=body or None)

    def _cut(self, http: web.BaseRequest, exchange: Exchange, *, done: bool = False) -> web.StreamResponse:
        exchange.status = exchange.bytes_out = 0
        self._gate.note(exchange, refused=not done)
        if http.transport is not None:
            http.transport.abort()
        return web.Response(status=500)

    def _too_large(self) -> Reply:
        return self._dialect.error(413, "EntityTooLarge", f"a body has at most {BODY_BYTES_MAX} bytes")

    def close(self) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)


def _credentials(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"credentials file {path} cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise Invalid(f"credentials file {path} does not hold an object")
    return plain


async def serve(arguments: argparse.Namespace, clock: Clock) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        Invalid: the root, the credentials or the port cannot be used.
    """
    credentials = _credentials(Path(arguments.credentials))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    storage = Storage(Path(arguments.root))
    cloud_clock = SkewedClock(clock)
    try:
        dialect = DIALECTS[arguments.dialect](storage, credentials, cloud_clock)
    except KeyError as error:
        raise Invalid(f"credentials file {arguments.credentials} lacks {error}") from error
    gate = Gate(
        arguments.provider or PROVIDERS[arguments.dialect],
        clock=clock,
        dialect=arguments.dialect,
        admin_token=credentials.get("admin_token"),
        folder=Path(arguments.root),
        standing=lambda: standing(storage.sizes()),
    )
    cloud_clock.faults = gate.faults
    objects = ObjectServer(dialect, arguments.dialect, gate)
    server = Server(objects.handle, access_log=None)
    try:
        listening = await loop.create_server(server, arguments.host, arguments.port, reuse_address=True)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise Invalid(f"port {arguments.port} on {arguments.host} {why}") from error
    port = listening.sockets[0].getsockname()[1]
    ready = {"endpoint": f"http://{arguments.host}:{port}", "host": arguments.host, "port": port, "pid": os.getpid()}
    replace_file(Path(arguments.ready_file), json.dumps(ready).encode())
    # What start-up made lives as long as the process: leave it out of collections.
    gc.collect()
    gc.freeze()
    keeping = asyncio.create_task(gate.keeping())
    await stop.wait()
    keeping.cancel()
    listening.close()
    server.pre_shutdown()
    deadline_ms = clock.monotonic_ms() + DRAIN_MS_MAX
    while objects.in_flight and clock.monotonic_ms() < deadline_ms:
        await clock.sleep_ms(10)
    await server.shutdown(0.1)
    objects.close()
    gate.keep()
    storage.close()


def main() -> int:
    """Exit code 0 after a signal, 1 with one sentence when it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m providers.lab.objects_server", description=__doc__)
    parser.add_argument("--dialect", required=True, choices=sorted(DIALECTS))
    parser.add_argument("--provider", default="", help="whose prices, latencies and refusals; by default the dialect's")
    parser.add_argument("--root", required=True, help="directory of the objects")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--credentials", required=True, help="JSON file of the only credentials that are let in")
    parser.add_argument("--ready-file", required=True, help="written when the port is open")
    try:
        run_loop(serve(parser.parse_args(), SystemClock()))
    except YunheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the server'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
