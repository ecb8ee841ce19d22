"""A lab with one cloud of two brokers, the judges' programs, and the record of what each said.

A judgement is a test with the mark `judge(name, asked)`. What it needs of the broker it asks ApiVersions for, so that
it counts from the day on which that is served. `YUNHE_JUDGES_RECORD` names the file for the record (`table.py`).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, libversion
from confluent_kafka.admin import AdminClient, NewTopic
from kio import index
from kio.serial import entity_reader

from controlplane.bench import peers
from providers.base.clock import SystemClock
from providers.base.errors import Unavailable

ROOT = Path(__file__).parents[2]
SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: gcp}
spec: {provider: gcp, region: us-central1, zones: [us-central1-a, us-central1-b]}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: gcp}
spec: {cloud: gcp, brokers: 2}
"""
FETCH, TRANSACTIONS, CONSUMER_GROUPS, SASL, ACLS, OFFSET_DELETE, LIST_TRANSACTIONS = 1, 24, 68, 17, 29, 47, 66
"""Api keys by which a broker says what it serves."""
NAMES = {
    FETCH: "Fetch",
    OFFSET_DELETE: "OffsetDelete",
    TRANSACTIONS: "transactions (AddPartitionsToTxn)",
    CONSUMER_GROUPS: "KIP-848 groups (ConsumerGroupHeartbeat)",
    SASL: "SASL (SaslHandshake)",
    ACLS: "ACLs (DescribeAcls)",
    LIST_TRANSACTIONS: "ListTransactions",
}
TOOL_S = 90
_SESSION = os.urandom(3).hex()
_names = itertools.count()
_record: list[dict[str, str]] = []
_versions: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "judge(name, asked): one judgement: who was asked, and what for")
    _versions.update(
        {
            "Apache Kafka's tools": peers.VERSION,
            "MirrorMaker 2": peers.VERSION,
            "librdkafka": libversion()[0],
            "aiokafka": version("aiokafka"),
            "kafka-python": version("kafka-python"),
        }
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    mark = item.get_closest_marker("judge")
    if mark is None or (report.when != "call" and report.passed) or report.when == "teardown":
        return
    name, asked = mark.args
    reason = ""
    if report.skipped:
        reason = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    elif report.failed:
        reason = (
            str(call.excinfo.value).strip().splitlines()[0][:160] if call.excinfo and str(call.excinfo.value) else "?"
        )
    verdict = {"passed": "yes", "skipped": "not judged", "failed": "no"}[report.outcome]
    _record.append(
        {"judge": name, "version": _versions.get(name, "?"), "asked": asked, "verdict": verdict, "reason": reason}
    )


def pytest_sessionfinish() -> None:
    if path := os.environ.get("YUNHE_JUDGES_RECORD"):
        Path(path).write_text(json.dumps(_record, indent=1))


# ── what is judged ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a lab that is up, or of what YUNHE_JUDGES_BOOTSTRAP names."""
    if given := os.environ.get("YUNHE_JUDGES_BOOTSTRAP"):
        yield given
        return
    folder = tmp_path_factory.mktemp("lab")
    (folder / "spec.yaml").write_text(SPEC)
    env = {**os.environ, "YUNHE_STATE_DIR": str(folder / "state")}

    def yunhe(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "controlplane.cli.main", *args]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=180, check=False)

    try:
        up = yunhe("up", str(folder / "spec.yaml"), "--timeout", "120")
        assert up.returncode == 0, up.stderr
        [cloud] = json.loads(yunhe("status", "-o", "json").stdout)["clouds"]
        yield str(cloud["bootstrapServers"])
    finally:
        down = yunhe("down", "--purge")
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="session")
def served(bootstrap: str) -> dict[int, tuple[int, int]]:
    """What the broker says that it serves: versions by api key."""
    host, _, port = bootstrap.split(",")[0].partition(":")
    frame = b"\0\x12\0\0\0\0\0\1\xff\xff"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(len(frame).to_bytes(4, "big") + frame)
        stream = connection.makefile("rb")
        answer = io.BytesIO(stream.read(int.from_bytes(stream.read(4), "big"))).getvalue()
    body, _ = entity_reader(index.load_response_schema(18, 0))(answer, 4)
    return {k.api_key: (k.min_version, k.max_version) for k in body.api_keys}


@pytest.fixture
def needs(served: dict[int, tuple[int, int]]) -> Callable[..., None]:
    """Skips a judgement of what the broker does not say that it serves."""

    def check(api_key: int, version: int = 0) -> None:
        if api_key not in served:
            pytest.skip(f"the broker does not serve {NAMES.get(api_key, api_key)}")
        if served[api_key][1] < version:
            pytest.skip(
                f"the broker serves {NAMES.get(api_key, api_key)} up to version {served[api_key][1]}; the judge speaks "
                f"version {version} alone"
            )

    return check


def fresh(prefix: str) -> str:
    """A name that nobody has had."""
    return f"{prefix}-{_SESSION}-{next(_names)}"


def make_topic(bootstrap: str, partitions: int = 3, **config: str) -> str:
    """A new topic that every broker knows."""
    name = fresh("t")
    admin = AdminClient({"bootstrap.servers": bootstrap})  # a name of its own: its answers end with it
    admin.create_topics([NewTopic(name, partitions, config=config)])[name].result(30)
    for server in bootstrap.split(","):
        one = AdminClient({"bootstrap.servers": server})
        until(f"{server} knows {name}", lambda one=one: name in one.list_topics(timeout=10).topics)  # type: ignore[misc]
    return name


@pytest.fixture
def needs_compaction(bootstrap: str) -> None:
    """Skips where a compacted topic is refused."""
    topic = NewTopic("probe", 1, config={"cleanup.policy": "compact"})
    admin = AdminClient({"bootstrap.servers": bootstrap})
    try:
        admin.create_topics([topic], validate_only=True)["probe"].result(30)
    except KafkaException as error:
        pytest.skip(f"the broker does not serve compacted topics: {error.args[0].str()}")


def until(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


# ── the judges' programs ────────────────────────────────────────────────────────────────────────────────────────────


class Tools:
    """Apache Kafka's programs, by class name."""

    def __init__(self, jars: Path, bootstrap: str) -> None:
        self.jars = jars
        self.bootstrap = bootstrap

    def command(self, tool: str, *args: str) -> list[str]:
        return ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{self.jars}/*", tool, *args]

    def run(self, tool: str, *args: str, text: str | None = None, fails: bool = False) -> str:
        """What the tool prints; it has to succeed, or with `fails` to fail. Its bootstrap servers are given to it."""
        short = "org.apache.kafka.tools." if "." not in tool else ""
        server = ("--bootstrap-server", self.bootstrap)
        # This one alone wants to be told first what to do.
        given = (args[0], *server, *args[1:]) if tool == "ClusterTool" else (*server, *args)
        command = self.command(short + tool, *given)
        done = subprocess.run(command, capture_output=True, text=True, input=text, timeout=TOOL_S, check=False)
        said = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, f"{tool} ends with {done.returncode}: {_gist(said)}"
        return said


def _gist(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("SLF4J", "\tat "))]
    telling = [line for line in lines if "Exception" in line or "rror" in line]
    return " / ".join((telling or lines)[:3])[:600]


@pytest.fixture(scope="session")
def jars() -> Path:
    try:
        return peers.jars()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def tools(jars: Path, bootstrap: str) -> Tools:
    return Tools(jars, bootstrap)


@pytest.fixture(scope="session")
def kcat() -> str:
    """The path of kcat, installed if need be."""
    found = shutil.which("kcat")
    if found is None:
        installer = ROOT / "tools" / "judges" / "kcat.sh"
        done = subprocess.run([str(installer)], capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(done.stderr.strip().splitlines()[-1])
        found = done.stdout.strip()
    said = subprocess.run([found, "-V"], capture_output=True, text=True, timeout=10, check=True).stdout
    _versions["kcat"] = said.partition("Version ")[2].split(" ")[0] or "?"
    return found


@pytest.fixture(scope="session")
def real_kafka(tmp_path_factory: pytest.TempPathFactory, jars: Path) -> Iterator[str]:
    """Bootstrap servers of one broker of Apache Kafka."""
    with peers.kafka(tmp_path_factory.mktemp("kafka") / "peer", 1, SystemClock()) as peer:
        yield peer.bootstrap
