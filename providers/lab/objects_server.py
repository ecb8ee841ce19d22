"""One emulated object store as a process: `python -m providers.lab.objects_server --dialect s3 --root DIR --credentials
FILE --ready-file FILE`.

Sockets, threads and signals are here; what a request means is the dialect's business, and what is stored the storage's.
With an `admin_token` in the credentials file (header `authorization: Bearer <admin_token>`) faults are set and the
meter is read under `/-/`: see `gate.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol

from providers.base.clock import Clock, SystemClock
from providers.base.errors import Full, Invalid, YunheError
from providers.base.files import replace_file
from providers.base.loops import run_loop
from providers.lab.dialect_azure import AzureDialect
from providers.lab.dialect_gcs import GcsDialect
from providers.lab.dialect_oss import OssDialect
from providers.lab.dialect_s3 import S3Dialect
from providers.lab.faults import Verdict
from providers.lab.gate import Gate, SkewedClock, standing
from providers.lab.storage import Storage
from providers.lab.storage_files import BLOCK_BYTES
from providers.lab.storage_payload import Payload
from providers.lab.wire import Dialect, Exchange, Reply, Request
from providers.lab.wire_body import Spooling
from providers.lab.wire_connection import Connection, HttpServer, HttpSettings
from providers.lab.wire_http import Head
from providers.lab.wire_verbs import exchange_of

log = logging.getLogger(__name__)

READ_THREADS = 4
"""They read large answers, and run what takes long: listings, copies, large bodies' checks."""
WRITE_THREADS = 4
"""They write large bodies: apart, so that answers do not queue behind them."""

FILES_OPEN = 8_192
"""Descriptors: a connection each, the log's segments, payload files in use. Many systems begin with 1,024."""

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another one waits: the answer of a group commit is not held up."""

UPLOADS_KEPT_MS = 7 * 24 * 3_600_000
"""Multipart uploads are dropped after so long: Azure keeps uncommitted blocks a week, a session of GCS lives a week,
and on S3 and OSS a lifecycle rule does it."""
COLLECT_EVERY_MS = 60_000

ADMIN_BYTES_MAX = 1 << 20

QUICK = frozenset({"put", "append", "get", "head", "delete", "session"})
"""Verbs that are answered on the loop, if their body is small: they look at few names and write little."""

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
    """Answers requests of one dialect over one storage.

    What is quick is answered on the loop, the rest in threads. Either way the storage does not wait for the disk: the
    answer is held back here until all that it may have seen is durable.
    """

    def __init__(
        self,
        dialect: Dialect,
        name: str,
        storage: Storage,
        readers: ThreadPoolExecutor,
        *,
        clock: Clock,
        gate: Gate,
    ) -> None:
        """`clock`: the cloud's own, as answers date themselves by it."""
        self._dialect = dialect
        self._name = name
        self._storage = storage
        self._readers = readers
        self._clock = clock
        self._dated = (0, "")
        self.server: HttpServer | None = None
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[int, Callable[[], None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        storage.on_synced(self._synced)

    # ── one request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, connection: Connection, head: Head, payload: Payload) -> None:
        """One request, its body received: faults, answer, durability, reply."""
        self.in_flight += 1
        if head.target.startswith("/-/"):
            body = payload.read() if payload.size <= ADMIN_BYTES_MAX else b""
            self._over(connection, payload, self._gate.admin_reply(head.method, head.target, head.headers, body))
            return
        exchange = exchange_of(self._name, head.method, head.target, head.headers, payload.size)
        verdict = self._gate.judge(exchange)
        quick = exchange.verb in QUICK and payload.spool is None and (exchange.verb != "delete" or exchange.key != "")
        if verdict.calm and quick:
            self._hold_back(connection, exchange, payload, verdict, self._answer(head, payload))
        else:
            task = self._loop.create_task(self._slowly(connection, head, exchange, payload, verdict))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _slowly(
        self, connection: Connection, head: Head, exchange: Exchange, payload: Payload, verdict: Verdict
    ) -> None:
        if verdict.latency_ms:
            await asyncio.sleep(verdict.latency_ms / 1000)
        if verdict.silent_ms:
            await self._keep_silent(connection, verdict.silent_ms)
        if verdict.silent_ms or verdict.unavailable:
            self._over(connection, payload, None, exchange, refused=True)
        elif verdict.error is not None:
            status, code = verdict.error
            reply = self._dialect.error(status, code, "a fault says so")
            self._over(connection, payload, reply, exchange, refused=True)
        else:
            reply = await self._loop.run_in_executor(self._readers, self._answer, head, payload)
            self._hold_back(connection, exchange, payload, verdict, reply)

    async def _keep_silent(self, connection: Connection, for_ms: float) -> None:
        """Until the client has gone, or for as long as the fault says."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_ms / 1000):
                await connection.lost.wait()

    def _answer(self, head: Head, payload: Payload) -> Reply:
        """On the loop or in a thread."""
        try:
            with self._storage.deferred():
                reply = self._dialect.answer(Request.of(head.method, head.target, head.headers, payload))
            if not isinstance(reply.body, bytes) and reply.body.size <= BLOCK_BYTES:
                with contextlib.closing(reply.body) as content:
                    reply = Reply(reply.status, reply.headers, b"".join(content.pieces()))
            return reply
        except (ValueError, KeyError, SyntaxError) as error:
            # Malformed numbers, base64, JSON or XML (ElementTree's ParseError is a SyntaxError).
            return self._dialect.error(400, "InvalidArgument", f"malformed request: {error!r}")
        except Full as error:
            return self._dialect.error(503, "ServiceUnavailable", str(error))
        except (YunheError, OSError) as error:
            return self._dialect.error(500, "InternalError", str(error))
        except Exception as error:
            # A bug: the client sees a failed request, the log has the trace, and the next request is served.
            log.error("dialect-failed", exc_info=error)
            return self._dialect.error(500, "InternalError", f"the emulation failed: {type(error).__name__}")

    def _hold_back(
        self, connection: Connection, exchange: Exchange, payload: Payload, verdict: Verdict, reply: Reply
    ) -> None:
        """Send the answer when all that it may tell of is durable."""
        answer = None if verdict.drop_answer else reply

        def finish() -> None:
            self._over(connection, payload, answer, exchange)

        if self._storage.synced >= self._storage.written:
            finish()
        else:
            self._held.append((self._storage.written, finish))

    def _synced(self) -> None:
        """In the storage's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._send_held)

    def _send_held(self) -> None:
        if self._storage.broken is not None:
            # Nobody knows what the disk has: no answer is the only right one.
            for connection in list(self.server.connections if self.server else ()):
                connection.abort()
            self._held.clear()
            return
        synced = self._storage.synced
        while self._held and self._held[0][0] <= synced:
            self._held.popleft()[1]()

    def _over(
        self,
        connection: Connection,
        payload: Payload,
        reply: Reply | None,
        exchange: Exchange | None = None,
        *,
        refused: bool = False,
    ) -> None:
        """The end of every request; no reply: the connection is cut. `refused`: a fault kept it from being done."""
        self.in_flight -= 1
        payload.close()
        if exchange is not None:
            if reply is not None:
                exchange.status = reply.status
                if exchange.method != "HEAD":
                    exchange.bytes_out = len(reply.body) if isinstance(reply.body, bytes) else reply.body.size
            self._gate.note(exchange, refused=refused)
        if reply is None:
            connection.abort()
        else:
            connection.answer(Reply(reply.status, {"Date": self._date(), **reply.headers}, reply.body))

    def _date(self) -> str:
        second = self._clock.wall_ms() // 1000
        if second != self._dated[0]:
            self._dated = (second, formatdate(second, usegmt=True))
        return self._dated[1]

    def refuse(self, status: int, message: str) -> Reply:
        """What is no request, too large, or could not be stored, in the dialect's own shape."""
        codes = {413: "EntityTooLarge", 411: "MissingContentLength", 501: "NotImplemented", 503: "ServiceUnavailable"}
        return self._dialect.error(status, codes.get(status, "InvalidRequest"), message)


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
    sys.setswitchinterval(SWITCH_S)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if 0 <= most < FILES_OPEN else FILES_OPEN, most))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    storage = Storage(Path(arguments.root), clock=clock)
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
    gate.observe()
    readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
    writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="write")
    objects = ObjectServer(dialect, arguments.dialect, storage, readers, clock=cloud_clock, gate=gate)
    server = HttpServer(objects, Spooling(storage.files, writers), readers, HttpSettings())
    objects.server = server
    try:
        port = await server.start(arguments.host, arguments.port)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise Invalid(f"port {arguments.port} on {arguments.host} {why}") from error
    ready = {"endpoint": f"http://{arguments.host}:{port}", "host": arguments.host, "port": port, "pid": os.getpid()}
    replace_file(Path(arguments.ready_file), json.dumps(ready).encode())
    # What start-up made lives as long as the process: leave it out of collections.
    gc.collect()
    gc.freeze()
    collecting = loop.create_task(_collect(storage, readers, arguments.uploads_kept_ms, clock))
    keeping = loop.create_task(gate.keeping())
    await stop.wait()
    collecting.cancel()
    keeping.cancel()
    server.stop_listening()
    deadline_ms = clock.monotonic_ms() + DRAIN_MS_MAX
    while objects.in_flight and clock.monotonic_ms() < deadline_ms:
        await clock.sleep_ms(10)
    await server.close()
    readers.shutdown(wait=True, cancel_futures=True)
    writers.shutdown(wait=True, cancel_futures=True)
    gate.keep()
    storage.close()


async def _collect(storage: Storage, threads: ThreadPoolExecutor, kept_ms: int, clock: Clock) -> None:
    """Drop stale multipart uploads, now and then."""
    while True:
        with contextlib.suppress(YunheError):  # a full disk: the next time
            await asyncio.get_running_loop().run_in_executor(threads, storage.collect_uploads, kept_ms)
        await clock.sleep_ms(min(COLLECT_EVERY_MS, max(kept_ms / 4, 100)))


def main() -> int:
    """Exit code 0 after a signal, 1 with one sentence when it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m providers.lab.objects_server", description=__doc__)
    parser.add_argument("--dialect", required=True, choices=sorted(DIALECTS))
    parser.add_argument("--provider", default="", help="whose prices, latencies and refusals; by default the dialect's")
    parser.add_argument("--root", required=True, help="directory of the objects")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--credentials", required=True, help="JSON file of the only credentials that are let in")
    parser.add_argument(
        "--uploads-kept-ms", type=int, default=UPLOADS_KEPT_MS, help="age at which multipart uploads are dropped"
    )
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
