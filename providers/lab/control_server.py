"""The control API of one emulated cloud as a process: `python -m providers.lab.control_server --provider aws --region
us-east-1 --zones use1-az4,use1-az6 --root DIR --credentials FILE --ready-file FILE [--volumes ADDRESS]`.

Sockets, threads and signals are here; what a request means is the dialect's business (`control_<provider>.py`), and
what happens the cores' (`compute.py`, `zones_dns.py`). `--volumes`: the volume daemon that holds the disks' bytes.

With an `admin_token` in the credentials file (header `authorization: Bearer <admin_token>`):
`/-/faults` and `/-/meter` as on the object server (`gate.py`); the verb of a request follows its target after a space,
so that a rule with `contains: AttachVolume` meets it. `/-/instances`: GET shows machines and disks, POST
`{"add": [{"name", "zone", "kind"?, "shares_volumes"?}], "stop": [ids], "start": [ids], "remove": [ids]}`.
`/-/compute`: POST `{"durations": {…}, "quotas": {…}, "hold": [[disk, instance, true]], "degraded": [[disk, true]]}`;
durations and quotas are forgotten when the server ends.
`/-/dns`: GET shows the zones, POST `{"add": ["example.test"], "remove": ["empty.test"]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_server import Server

from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, YunheError
from providers.base.files import replace_file
from providers.base.loops import run_loop
from providers.lab.calls import Call, control_call
from providers.lab.compute import Compute
from providers.lab.compute_state import Machine, disk_plain
from providers.lab.compute_volumes import DaemonVolumes
from providers.lab.control import MACHINE_TYPES, ControlDialect, ControlPlane, machine_id, seed_machines
from providers.lab.gate import GATE_PATHS, Gate, SkewedClock
from providers.lab.state_file import StateFile
from providers.lab.wire import Exchange, Reply, Request
from providers.lab.zones_dns import DnsZones

DIALECTS: Mapping[str, str] = {
    "aliyun": "providers.lab.control_aliyun:AliyunControl",
    "aws": "providers.lab.control_aws:AwsControl",
    "azure": "providers.lab.control_azure:AzureControl",
    "gcp": "providers.lab.control_gcp:GcpControl",
}
"""Imported when asked for, so that a process starts fast."""

BODY_BYTES_MAX = 4 << 20
"""Largest request body: control calls are small."""
THREADS = 8
SEEDED = "seeded"
"""The note of the machines that a lab was begun with."""
TICK_MS = 20
"""How often transitions that nobody asks about are looked at."""
DRAIN_MS_MAX = 2_000
"""How long requests in flight may take after SIGTERM."""


class ControlServer:
    """Requests, faults and the admin's calls before one dialect."""

    def __init__(self, provider: str, plane: ControlPlane, dialect: ControlDialect, gate: Gate) -> None:
        self._provider = provider
        self._plane = plane
        self._dialect = dialect
        self._gate = gate
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="control")
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
        body = await http.content.read(BODY_BYTES_MAX + 1) if http.can_read_body else b""
        while 0 < len(body) <= BODY_BYTES_MAX and (more := await http.content.read(BODY_BYTES_MAX + 1 - len(body))):
            body += more
        if len(body) > BODY_BYTES_MAX:
            return self._send(self._dialect.error(413, "RequestTooLarge", f"a body has at most {BODY_BYTES_MAX} bytes"))
        if target.partition("?")[0] in GATE_PATHS:
            return self._send(self._gate.admin_reply(http.method, target, headers, body))
        if target.startswith("/-/"):
            reply = await self._in_thread(lambda: self._admin(http.method, target, headers, body))
            return self._send(reply)
        request = Request.of(http.method, target, headers, body)
        verb = self._verb(request)
        caller_zone = headers.get("x-yunhe-zone", "")[:32]
        subject = f"{target} {verb}".rstrip()
        exchange = Exchange(http.method, subject, verb, bytes_in=len(body), caller_zone=caller_zone)
        call = control_call(exchange, body)
        verdict = self._gate.judge(exchange, call)
        if verdict.latency_ms:
            await asyncio.sleep(verdict.latency_ms / 1000)
        if verdict.silent_ms:
            await self._gate.hold(verdict, lambda: http.transport is None or http.transport.is_closing())
        if verdict.unavailable or verdict.silent_ms:
            return self._cut(http, exchange, call)
        if verdict.error is not None:
            status, code = verdict.error
            reply = self._dialect.error(status, code, "a fault says so")
        else:
            reply = await self._in_thread(lambda: self._answer(request))
        if verdict.drop_answer:
            return self._cut(http, exchange, call, done=True)
        exchange.status = reply.status
        exchange.bytes_out = len(_whole(reply))
        self._gate.note(exchange, call, refused=verdict.error is not None)
        return self._send(reply)

    async def _in_thread(self, work: Any) -> Reply:
        reply: Reply = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        return reply

    def _verb(self, request: Request) -> str:
        try:
            return self._dialect.verb(request)
        except (ValueError, KeyError, SyntaxError):
            return ""

    def _answer(self, request: Request) -> Reply:
        try:
            return self._dialect.answer(request)
        except (ValueError, KeyError, SyntaxError, TypeError) as error:
            # Malformed numbers, JSON or XML (ElementTree's ParseError is a SyntaxError).
            return self._dialect.error(400, "InvalidRequest", f"malformed request: {error!r}")
        except (YunheError, OSError) as error:
            return self._dialect.error(500, "InternalError", str(error))

    def _send(self, reply: Reply) -> web.StreamResponse:
        return web.Response(status=reply.status, headers=dict(reply.headers), body=_whole(reply) or None)

    def _cut(self, http: web.BaseRequest, exchange: Exchange, call: Call, *, done: bool = False) -> web.StreamResponse:
        self._gate.note(exchange, call, refused=not done)
        if http.transport is not None:
            http.transport.abort()
        return web.Response(status=500)

    # ---- the admin's calls

    def _admin(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if not self._gate.allowed(headers.get("authorization", "").removeprefix("Bearer ")):
            return Reply(403, body=b"the admin token of the credentials file is needed\n")
        try:
            asked = json.loads(body) if method == "POST" else None
            if asked is not None and not isinstance(asked, dict):
                raise Invalid("the body is a JSON object")
            match target:
                case "/-/instances":
                    plain = self._admin_instances(asked or {})
                case "/-/compute":
                    plain = self._admin_compute(asked or {})
                case "/-/dns":
                    for name in (asked or {}).get("add", ()):
                        self._plane.dns.create_zone(name, f"Z{self._plane.rng.token()[:20].upper()}")
                    for name in (asked or {}).get("remove", ()):
                        self._plane.dns.remove_zone(name)
                    plain = {"zones": [asdict(zone) for zone in self._plane.dns.zones()]}
                case _:
                    return Reply(404)
        except (YunheError, ValueError, TypeError, AttributeError, KeyError) as error:
            return Reply(400, body=f"{error}\n".encode())
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(plain).encode())

    def _admin_instances(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        compute = self._plane.compute
        for row in asked.get("add", ()):
            given = {"kind": MACHINE_TYPES[self._provider], **row}
            if given["zone"] not in self._plane.zones:
                raise Invalid(f"zone {given['zone']} is not one of {', '.join(self._plane.zones)}")
            given.setdefault("id", machine_id(self._provider, self._plane.region, given["name"]))
            compute.put_machine(Machine(**given))
        for instance in asked.get("stop", ()):
            compute.set_running(instance, False)
        for instance in asked.get("start", ()):
            compute.set_running(instance, True)
        for instance in asked.get("remove", ()):
            compute.remove_machine(instance)
        return {
            "instances": [asdict(machine) for machine in compute.machines()],
            "disks": [disk_plain(disk) for disk in compute.disks()],
        }

    def _admin_compute(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        compute = self._plane.compute
        compute.durations = replace(compute.durations, **asked.get("durations", {}))
        compute.quotas = replace(compute.quotas, **asked.get("quotas", {}))
        for disk, instance, held in asked.get("hold", ()):
            compute.hold(disk, instance, bool(held))
        for disk_id, degraded in asked.get("degraded", ()):
            compute.set_degraded(disk_id, bool(degraded))
        return {"durations": asdict(compute.durations), "quotas": asdict(compute.quotas)}

    async def tick(self, clock: Clock) -> None:
        """Move what is on its way, for ever."""
        compute = self._plane.compute
        while True:
            await clock.sleep_ms(TICK_MS)
            if compute.unsettled:
                try:
                    await asyncio.get_running_loop().run_in_executor(self._threads, compute.settle)
                except YunheError as error:
                    print(f"error: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _whole(reply: Reply) -> bytes:
    """A control API's answers are documents, never streams."""
    return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body.pieces())


def _credentials(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"credentials file {path} cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise Invalid(f"credentials file {path} does not hold an object")
    return plain


def _lock_root(root: Path) -> int:
    """Held as long as the process lives: two servers over one folder would each believe in a state of its own."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Invalid(f"another control server already serves {root}") from error
    return descriptor


def load_dialect(provider: str) -> type[ControlDialect]:
    """
    Raises:
        Invalid: this provider has no control dialect.
    """
    module, _, name = DIALECTS[provider].partition(":")
    try:
        made: type[ControlDialect] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise Invalid(f"there is no control dialect for {provider}: {error}") from error
    return made


def open_plane(arguments: argparse.Namespace, clock: Clock, rng: Rng) -> ControlPlane:
    """The cores of the lab in `--root`, seeded with machines and zones when they are new.

    Raises:
        Invalid, Corrupt: the root or the credentials cannot be used.
    """
    root, zones = Path(arguments.root), tuple(zone for zone in arguments.zones.split(",") if zone)
    if not zones:
        raise Invalid("--zones names no zone")
    backing = DaemonVolumes(arguments.volumes, clock) if arguments.volumes else None
    compute = Compute(StateFile(root / "compute.json"), clock, backing=backing)
    seeded = list(compute.noted(SEEDED) or ())
    for machine in seed_machines(arguments.provider, arguments.region, zones, arguments.instances_per_zone):
        if machine.id not in seeded:  # one that was removed since stays removed
            compute.put_machine(machine)
            seeded.append(machine.id)
    compute.note(SEEDED, seeded)
    dns = DnsZones(StateFile(root / "dns.json"))
    for name in arguments.dns_zone:
        dns.create_zone(name, f"Z{rng.token()[:20].upper()}")
    credentials = _credentials(Path(arguments.credentials))
    return ControlPlane(arguments.region, zones, compute, dns, credentials, clock, rng, arguments.page_max)


async def serve(arguments: argparse.Namespace, clock: Clock, rng: Rng) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        Invalid: the root, the credentials or the port cannot be used.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lock = _lock_root(Path(arguments.root))
    plane = open_plane(arguments, clock, rng)
    dialect_class = load_dialect(arguments.provider)
    running: list[ControlServer] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await running[0].handle(request)

    server = Server(handle, access_log=None)
    try:
        listening = await loop.create_server(
            server, arguments.host, arguments.port, reuse_address=True, start_serving=False
        )
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise Invalid(f"port {arguments.port} on {arguments.host} {why}") from error
    port = listening.sockets[0].getsockname()[1]
    cloud_clock = SkewedClock(clock)
    plane = replace(plane, endpoint=f"http://{arguments.host}:{port}", clock=cloud_clock)
    try:
        dialect = dialect_class(plane)
    except KeyError as error:
        raise Invalid(f"credentials file {arguments.credentials} lacks {error}") from error
    gate = Gate(
        arguments.provider,
        clock=clock,
        admin_token=plane.credentials.get("admin_token"),
        folder=Path(arguments.root),
    )
    cloud_clock.faults = gate.faults
    control = ControlServer(arguments.provider, plane, dialect, gate)
    running.append(control)
    await listening.start_serving()
    ticking = [asyncio.create_task(control.tick(clock)), asyncio.create_task(gate.keeping())]
    ready = {"endpoint": plane.endpoint, "host": arguments.host, "port": port, "pid": os.getpid()}
    replace_file(Path(arguments.ready_file), json.dumps(ready).encode())
    # What start-up made lives as long as the process: leave it out of collections.
    gc.collect()
    gc.freeze()
    await stop.wait()
    listening.close()
    for task in ticking:
        task.cancel()
    server.pre_shutdown()
    deadline_ms = clock.monotonic_ms() + DRAIN_MS_MAX
    while control.in_flight and clock.monotonic_ms() < deadline_ms:
        await clock.sleep_ms(10)
    await server.shutdown(0.1)
    control.close()
    gate.keep()
    os.close(lock)


def main() -> int:
    """Exit code 0 after a signal, 1 with one sentence when it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m providers.lab.control_server", description=__doc__)
    parser.add_argument("--provider", required=True, choices=sorted(DIALECTS))
    parser.add_argument("--region", required=True)
    parser.add_argument("--zones", required=True, help="comma-separated, as the cloud's capabilities write them")
    parser.add_argument("--root", required=True, help="directory of the state")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--credentials", required=True, help="JSON file of the only credentials that are let in")
    parser.add_argument("--ready-file", required=True, help="written when the port is open")
    parser.add_argument("--volumes", help="the volume daemon behind the disks, unix:PATH or tcp:HOST:PORT")
    parser.add_argument("--instances-per-zone", type=int, default=1, help="machines that a new lab starts with")
    parser.add_argument("--page-max", type=int, default=1000, help="rows in a page of a listing")
    parser.add_argument("--dns-zone", action="append", default=[], help="a DNS zone that a new lab starts with")
    try:
        run_loop(serve(parser.parse_args(), SystemClock(), SystemRng()))
    except YunheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the server'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
