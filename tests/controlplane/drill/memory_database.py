"""A cloud database of two nodes and two edges that speak HTTP and keep everything in memory: what drills are tried on.

They can be told to lie: to ack a batch and lose it, keep it twice, or keep another value. A killed node answers nobody
until the fault is undone; of a killed owner the other node takes over, or not.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from providers.base.clock import SystemClock
from providers.lab.processes import ProcessId

Point = tuple[str, int, int, int]
_LINE = re.compile(r"(\w+),series=([\w-]+) n=(\d+)i,v=(\d+)i (\d+)")


class MemoryDatabases:
    """`Breaker` and status as well."""

    def __init__(self, *, lie: str = "", taken_over_after_s: float | None = 0.3) -> None:
        self.lie = lie
        self.taken_over_after_s = taken_over_after_s
        self.tables: dict[str, set[str]] = {}
        """Node → tables."""
        self.points: list[Point] = []
        """What the cloud shows."""
        self.down: set[str] = set()
        self.owner: str | None = "fleet-1"
        self.struck: list[dict[str, Any]] = []
        self.undone = 0
        self.stalled = False
        """Edges take no writes while the bucket is away."""
        self._batches = 0
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._servers = {name: _serve(self, name) for name in ("fleet-1", "fleet-2", "cars-1", "cars-2")}

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    # ── the database ────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, node: str, body: str) -> int:
        """The status of the answer."""
        if node.startswith("fleet") and node != self.owner:
            return 503
        if node.startswith("cars") and self.stalled and self.struck:
            return 503
        points = []
        for line in body.splitlines():
            match = _LINE.fullmatch(line)
            if match is None or match[1] not in self.tables.get(node, ()):
                return 400
            points.append((match[2], int(match[5]), int(match[3]), int(match[4])))
        with self._lock:
            self._batches += 1
            lies = self._batches == 30
            if lies and self.lie == "lose":
                points = points[1:]
            if lies and self.lie == "double":
                points.append(points[0])
            if lies and self.lie == "alter":
                points[0] = (*points[0][:3], points[0][3] ^ 1)
            self.points += points
        return 204

    def sql(self, node: str, text: str) -> Any:
        if match := re.match(r"CREATE TABLE IF NOT EXISTS (\w+) .*'append_mode' = 'true'", text):
            self.tables.setdefault(node, set()).add(match[1])
            if node == "fleet-1":
                self.tables.setdefault("fleet-2", set()).add(match[1])
        elif match := re.match(r"DROP TABLE IF EXISTS (\w+)", text):
            self.tables.get(node, set()).discard(match[1])
        elif text.startswith("SELECT count(*)"):
            return [[len(self.points)]]
        elif text.startswith("SELECT series, ts, n, v"):
            return [list(point) for point in self.points]
        return None

    # ── status and breaker ──────────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, Any]:
        def nodes(first: str) -> list[dict[str, Any]]:
            return [
                {"name": name, "zone": "a", "pid": 7, "host": "127.0.0.1", "httpPort": server.server_port}
                for name, server in self._servers.items()
                if name.startswith(first)
            ]

        def one(name: str, role: str, to: str | None) -> dict[str, Any]:
            mine = nodes(name)
            ready = not self.down & {n["name"] for n in mine} and (role == "edge" or self.owner is not None)
            order = sorted(mine, key=lambda n: n["name"] != self.owner)
            return {
                "name": name,
                "cloud": "plant",
                "role": role,
                "uploadTo": to,
                "state": "Ready" if ready else "Degraded",
                "sentence": "as it is",
                "owner": self.owner if role == "cloud" else None,
                "http": [f"http://127.0.0.1:{n['httpPort']}" for n in order if n["name"] not in self.down],
                "nodes": mine,
            }

        return {"clouds": [], "databases": [one("fleet", "cloud", None), one("cars", "edge", "fleet")]}

    def kill_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        at_ms = SystemClock().monotonic_ms()
        self.down.add(broker["name"])
        if broker["name"] == self.owner:
            self.owner = None
            if self.taken_over_after_s is not None:
                self._timers.append(threading.Timer(self.taken_over_after_s, self._take_over))
                self._timers[-1].start()
        return at_ms

    def _take_over(self) -> None:
        self.owner = "fleet-2"

    def strike(self, cloud: str, faults: Sequence[dict[str, Any]]) -> float:
        self.struck += faults
        return SystemClock().monotonic_ms()

    def undo(self) -> None:
        self.undone += 1
        self.down.clear()
        self.struck.clear()
        self.owner = self.owner or "fleet-1"

    def kill_zone(self, cloud: dict[str, Any], zone: str) -> float:
        raise NotImplementedError

    def kill_control_plane(self) -> float:
        raise NotImplementedError

    def freeze_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        raise NotImplementedError

    def thaw(self) -> None: ...

    def restart_broker(self, broker: dict[str, Any]) -> None: ...

    def identities(self, clouds: Sequence[dict[str, Any]]) -> dict[str, ProcessId]:
        return {}

    def alive(self, process: ProcessId) -> bool:
        return True


def _serve(database: MemoryDatabases, node: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if node in database.down:
                self.close_connection = True
                return
            path = urlsplit(self.path)
            if path.path == "/v1/influxdb/api/v2/write" and parse_qs(path.query) == {"precision": ["ms"]}:
                self._answer(database.write(node, body), b"")
            elif path.path == "/v1/sql":
                rows = database.sql(node, parse_qs(body)["sql"][0])
                output = {"affectedrows": 0} if rows is None else {"records": {"rows": rows}}
                self._answer(200, json.dumps({"output": [output]}).encode())
            else:
                self._answer(404, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
