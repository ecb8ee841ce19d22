"""Control APIs for tests: real control servers of the lab, one kind a cloud, behind one face.

A cloud takes part as soon as `providers/<cloud>/volumes.py`, `instances.py` or `dns.py` and its dialect
`providers/lab/control_<cloud>.py` exist; its row in `KINDS` says what it has and how its errors look on the wire.
Adapters are opened with `settings=StoreSettings(...)` and `wait=WaitSettings(...)` where they take them.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from providers.base.blocking import StoreSettings
from providers.base.clock import SystemClock, SystemRng
from providers.base.dns import Dns
from providers.base.errors import YunheError
from providers.base.instances import Instance, Instances
from providers.base.registry import AccountAddress
from providers.base.volume_api import VolumeApi, VolumeSpec
from providers.base.waiting import WaitSettings
from providers.lab.control_server import DIALECTS
from tests.conformance.google_keys import service_account
from tests.conformance.volumes_lab import VolumeDaemon, start_volume_daemon

T = TypeVar("T")

START_S_MAX = 60.0
ADMIN_TOKEN = "admin-of-the-test"
REAL = os.environ.get("YUNHE_CLOUD", "")
"""A real cloud instead of everything else: see `control_real.py`."""
RUN = f"yc-{SystemRng().token()[:12]}" if REAL else "wal"
"""What the names of the suite's volumes and records begin with. In a real account nothing else is touched."""
ZONE = os.environ.get("YUNHE_CONFORMANCE_DNS_ZONE", "") if REAL else "example.test"
DOMAIN = f"{RUN}.{ZONE}" if REAL else ZONE
"""All names of records are in it."""
GIB = 1 << 30
MACHINES_PER_ZONE = 3
NOBODY_LISTENS = 9
"""The port "discard"."""
JUDGES = ("moto",)
"""Modules `control_<name>` of this package: emulators that nobody here wrote."""
QUICK = WaitSettings(wait_timeout_ms=12_000, poll_ms=10, poll_ms_max=100)
SHORT = StoreSettings(connect_timeout_ms=1_000, read_timeout_ms=2_000, call_timeout_ms=6_000, retry_pause_ms=20)
BUDGET_S_MAX = 20.0
"""More than QUICK and SHORT allow together: a call that takes longer has lost its bound."""


@dataclass(frozen=True)
class ControlKind:
    """One cloud's control API as the suites see it. Error pairs are (HTTP status, code) as the cloud words them."""

    provider: str
    region: str
    zones: tuple[str, str, str]
    credentials: Mapping[str, Any]
    shared: VolumeSpec
    """A volume that two instances may have at once."""
    single: VolumeSpec
    """A volume that one instance may have."""
    sharers: tuple[int, ...]
    """Of the zones, by index: where the machines are that share it, taken in turn."""
    stranger: int | None
    """Index of a zone that `single` does not reach."""
    creates: Mapping[str, str]
    """The fault rule's `method` and `contains` that meet the creation of a volume; so below."""
    attaches: Mapping[str, str]
    detaches: Mapping[str, str]
    changes_dns: Mapping[str, str]
    throttled: tuple[int, str]
    failing: tuple[int, str]
    refused: tuple[int, str]
    """Credentials without the right."""
    skewed: tuple[int, str]
    """A request dated too far off."""
    wrong: Mapping[str, Any] = field(default_factory=dict)
    """What makes the credentials wrong."""
    account: str = ""
    group: str = ""
    forced_detach: bool = True
    """False: this cloud takes over by a forced attach only."""
    compares_atomically: bool = True
    """False: DNS compares just before it replaces."""
    judge: str = ""
    """A third-party emulator that stands in for the lab: the module of this package that starts it."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Tests that are known to fail over that emulator, and why."""

    def __str__(self) -> str:
        return f"{self.provider}-{self.judge}" if self.judge else self.provider

    def named(self, name: str, spec: VolumeSpec | None = None) -> VolumeSpec:
        """`single`, or another, under a name of its own."""
        return replace(spec or self.single, name=f"{RUN}-{name}")


_ALIYUN_ZONES = ("cn-hangzhou-h", "cn-hangzhou-i", "cn-hangzhou-j")
_AWS_ZONES = ("use1-az4", "use1-az5", "use1-az6")

KINDS = (
    ControlKind(
        provider="aws",
        region="us-east-1",
        zones=_AWS_ZONES,
        credentials={"access_key": "LABKEY", "secret_key": "lab-secret"},
        wrong={"secret_key": "another"},
        shared=VolumeSpec(f"{RUN}-1", "io2", 4 * GIB, _AWS_ZONES[:1], share_max=2, iops=1000),
        single=VolumeSpec(f"{RUN}-1", "gp3", 4 * GIB, _AWS_ZONES[:1]),
        sharers=(0,),
        stranger=1,
        creates={"contains": "CreateVolume"},
        attaches={"contains": "AttachVolume"},
        detaches={"contains": "DetachVolume"},
        changes_dns={"contains": "ChangeResourceRecordSets"},
        throttled=(503, "RequestLimitExceeded"),
        failing=(500, "InternalError"),
        refused=(403, "UnauthorizedOperation"),
        skewed=(400, "RequestExpired"),
    ),
    ControlKind(
        provider="azure",
        region="eastus",
        zones=("1", "2", "3"),
        credentials={"tenant": "lab-tenant", "client_id": "lab-client", "client_secret": "lab-secret"},
        wrong={"client_secret": "another"},
        account="00000000-0000-4000-8000-000000000001",
        group="yunhe-lab",
        shared=VolumeSpec(f"{RUN}-1", "Premium_ZRS", 128 * GIB, ("1", "2", "3"), share_max=2),
        single=VolumeSpec(f"{RUN}-1", "PremiumV2_LRS", 4 * GIB, ("1",)),
        sharers=(0, 1, 2),
        stranger=1,
        creates={"method": "PUT", "contains": "Microsoft.Compute/disks/write"},
        attaches={"contains": "attachDetachDataDisks"},
        detaches={"contains": "attachDetachDataDisks"},
        changes_dns={"method": "PUT", "contains": "Microsoft.Network/dnsZones"},
        throttled=(429, "TooManyRequests"),
        failing=(500, "InternalServerError"),
        refused=(403, "AuthorizationFailed"),
        skewed=(401, "ExpiredAuthenticationToken"),
    ),
    ControlKind(
        provider="aliyun",
        region="cn-hangzhou",
        zones=_ALIYUN_ZONES,
        credentials={"access_key": "LABKEY", "secret_key": "lab-secret"},
        wrong={"secret_key": "another"},
        shared=VolumeSpec(f"{RUN}-1", "cloud_regional_disk_auto", 10 * GIB, _ALIYUN_ZONES, share_max=2),
        single=VolumeSpec(f"{RUN}-1", "cloud_essd", 20 * GIB, _ALIYUN_ZONES[:1]),
        sharers=(0, 1, 2),
        stranger=1,
        creates={"contains": "CreateDisk"},
        attaches={"contains": "AttachDisk"},
        detaches={"contains": "DetachDisk"},
        changes_dns={"contains": "UpdateDomainRecord"},
        throttled=(400, "Throttling.User"),
        failing=(500, "InternalError"),
        refused=(403, "Forbidden.RAM"),
        skewed=(400, "InvalidTimeStamp.Expired"),
        forced_detach=False,
        compares_atomically=False,
    ),
)


_GCP_ZONES = ("us-central1-a", "us-central1-b", "us-central1-c")

KINDS += (
    ControlKind(
        provider="gcp",
        region="us-central1",
        zones=_GCP_ZONES,
        credentials={"service_account": service_account("lab-project", "yunhe")},
        wrong={"service_account": service_account("lab-project", "yunhe", key=1)},
        shared=VolumeSpec(f"{RUN}-1", "hyperdisk-balanced-high-availability", 4 * GIB, _GCP_ZONES[:2], share_max=2),
        single=VolumeSpec(f"{RUN}-1", "pd-balanced", 10 * GIB, _GCP_ZONES[:1]),
        sharers=(0, 1, 0),
        stranger=1,
        creates={"contains": "isks.insert"},
        attaches={"contains": "instances.attachDisk"},
        detaches={"contains": "instances.detachDisk"},
        changes_dns={"contains": "changes.create"},
        throttled=(403, "rateLimitExceeded"),
        failing=(503, "backendError"),
        refused=(403, "forbidden"),
        skewed=(401, "authError"),
        forced_detach=False,
    ),
)


def parametrize(what: str) -> list[ControlKind]:
    """The kinds that have an adapter `what` (volumes, instances, dns) and a dialect, and the judges that the
    environment asks for: YUNHE_JUDGES=all, or names divided by commas."""
    if REAL:
        return importlib.import_module("tests.conformance.control_real").kinds(what)  # type: ignore[no-any-return]
    found = [
        kind
        for kind in KINDS
        if importlib.util.find_spec(f"providers.{kind.provider}.{what}") is not None
        and importlib.util.find_spec(DIALECTS[kind.provider].partition(":")[0]) is not None
    ]
    wanted = os.environ.get("YUNHE_JUDGES", "").split(",")
    judges = [name for name in JUDGES if name in wanted or "all" in wanted]
    return found + [importlib.import_module(f"tests.conformance.control_{name}").KIND for name in judges]


def of(request: pytest.FixtureRequest) -> Any:
    """The `kind` of a parametrised fixture; a gap of its judge is an expected failure, and a strict one: when it
    closes, its entry has to go."""
    kind = request.param
    reason = getattr(kind, "gaps", {}).get(request.node.originalname)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=f"{kind}: {reason}", strict=True))
    return kind


class ControlServer:
    """A lab control server as a process of its own, with three machines in each zone, and pages of three rows."""

    settings = SHORT
    wait = QUICK
    """How adapters are opened when a test does not say."""

    def __init__(self, kind: ControlKind, tmp_path: Path, *, volumes: str | None = None) -> None:
        self.kind = kind
        self.root = tmp_path / "control"
        self._volumes = volumes
        tmp_path.mkdir(parents=True, exist_ok=True)
        self.credentials = tmp_path / "credentials.json"
        self.credentials.write_text(json.dumps({**kind.credentials, "admin_token": ADMIN_TOKEN}))
        self.wrong_credentials = tmp_path / "wrong.json"
        self.wrong_credentials.write_text(json.dumps({**kind.credentials, **kind.wrong}))
        self._ready = tmp_path / "control-ready.json"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "providers.lab.control_server", "--provider", self.kind.provider),
            *("--region", self.kind.region, "--zones", ",".join(self.kind.zones), "--root", str(self.root)),
            *("--port", str(port), "--credentials", str(self.credentials), "--ready-file", str(self._ready)),
            *("--instances-per-zone", str(MACHINES_PER_ZONE), "--dns-zone", ZONE, "--page-max", "3"),
            *(("--volumes", self._volumes) if self._volumes else ()),
        ]

    def start(self) -> None:
        """Start, on the same port as before if there was one, and return when it listens."""
        self._ready.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.argv(self.port))
        deadline = time.monotonic() + START_S_MAX
        while not self._ready.exists():
            assert self.process.poll() is None, "the control server ended at once"
            assert time.monotonic() < deadline, "the control server did not get ready"
            time.sleep(0.01)
        self.port = int(json.loads(self._ready.read_text())["port"])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def address(self, credentials: Path | None = None) -> AccountAddress:
        kind = self.kind
        file = str(credentials or self.credentials)
        return AccountAddress(kind.provider, kind.region, kind.account, kind.group, self.endpoint, file)

    def open_volumes(self, credentials: Path | None = None, wait: WaitSettings | None = None) -> VolumeApi:
        found: VolumeApi = self._open("volumes", "open_volume_api", credentials, wait)
        return found

    def open_instances(self, credentials: Path | None = None) -> Instances:
        found: Instances = self._open("instances", "open_instances", credentials, None)
        return found

    def open_dns(self, credentials: Path | None = None, zone: str = ZONE) -> Dns:
        found: Dns = self._open("dns", "open_dns", credentials, None, zone)
        return found

    def _open(self, module: str, name: str, credentials: Path | None, wait: WaitSettings | None, *more: str) -> Any:
        if self.port != NOBODY_LISTENS and self.settings is SHORT:
            warm_up(self.kind.provider, module)
        opener = getattr(importlib.import_module(f"providers.{self.kind.provider}.{module}"), name)
        known = inspect.signature(opener).parameters
        bounds = {k: v for k, v in {"settings": self.settings, "wait": wait or self.wait}.items() if k in known}
        return opener(self.address(credentials), *more, clock=SystemClock(), rng=SystemRng(), **bounds)

    async def machines(self, zone: int) -> list[Instance]:
        """The machines in a zone of the kind, by name."""
        instances = self.open_instances()
        try:
            found = await instances.describe()
        finally:
            await instances.close()
        return sorted((i for i in found if i.zone == self.kind.zones[zone]), key=lambda i: i.name)

    def kill(self) -> None:
        """kill -9: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def set_faults(self, *rules: dict[str, Any], seed: int = 0) -> None:
        """Replace the fault rules; none: all is well again. See `providers.lab.faults.Rule`."""
        self.admin("faults", {"seed": seed, "rules": list(rules)})

    def requests(self) -> list[tuple[str, str, int]]:
        """The newest requests: method, target and verb, status (0: no answer was sent)."""
        return [(method, target, status) for method, target, status in self.admin("faults")["requests"]]

    def disks(self) -> list[dict[str, Any]]:
        """What the lab itself says there is."""
        return list(self.admin("instances")["disks"])

    def admin(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One of the admin's calls; `body` None: GET."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.endpoint}/-/{what}", data=data, method="POST" if data else "GET")
        request.add_header("authorization", f"Bearer {ADMIN_TOKEN}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return dict(json.loads(answer.read()))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def apart(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in a thread of its own: the caller may be inside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@functools.cache
def warm_up(kind_name: str, what: str) -> None:
    """Import the SDK before a test's short budgets count: some take seconds on a busy machine. Nobody listens at the
    address."""
    kind = next(kind for kind in KINDS if kind.provider == kind_name)

    async def ask() -> None:
        with tempfile.TemporaryDirectory() as folder:
            server = ControlServer(kind, Path(folder))
            server.port, server.settings = NOBODY_LISTENS, StoreSettings(call_timeout_ms=60_000, retry_max=0)
            opened = {"volumes": server.open_volumes, "instances": server.open_instances, "dns": server.open_dns}[
                what
            ]()
            try:
                await (opened.list() if what == "dns" else opened.describe())
            except YunheError:
                pass
            finally:
                await opened.close()

    apart(ask())


def start_control_server(kind: ControlKind, tmp_path: Path, *, volumes: str | None = None) -> ControlServer:
    """A running server, its files under `tmp_path`; `volumes`: the address of a volume daemon behind it."""
    if kind.judge:
        if volumes:
            pytest.skip(f"{kind} has no volume daemon behind it")
        started: ControlServer = importlib.import_module(f"tests.conformance.control_{kind.judge}").start(tmp_path)
        return started
    server = ControlServer(kind, tmp_path, volumes=volumes)
    server.start()
    return server


async def start_with_daemon(kind: ControlKind, tmp_path: Path) -> tuple[ControlServer, VolumeDaemon]:
    """A server with a volume daemon behind it."""
    if kind.judge:
        pytest.skip(f"{kind} has no volume daemon behind it")
    daemon = await start_volume_daemon(tmp_path)
    return await asyncio.to_thread(start_control_server, kind, tmp_path, volumes=daemon.listen), daemon
