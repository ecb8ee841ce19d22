"""Apache Kafka as a peer: brokers from Maven Central's jars, in KRaft mode, on this machine, for as long as a benchmark
runs. Each broker is a controller too; logs go through the page cache without fsync, as Kafka's defaults have it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from providers.base.clock import Clock, SystemRng
from providers.base.errors import Unavailable
from providers.base.ports import free_ports

VERSION = "4.1.2"
POM = Path(__file__).parents[2] / "tools" / "kafka" / "pom.xml"
CLUSTER_ID = "eXVuaGUtYmVuY2gtcGVlcg"
START_MS = 90_000
STOP_S = 20
HEAP = "1g"


@dataclass(frozen=True, slots=True)
class Peer:
    """Running brokers of Apache Kafka."""

    bootstrap: str
    pids: Sequence[int]


def jars(fetch_s: float = 600) -> Path:
    """The folder of Kafka's jars, fetched once into a cache outside the tree, in `fetch_s` seconds at most.

    Raises:
        Unavailable: no java, no mvn, or no way to the repository.
    """
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise Unavailable("Apache Kafka needs java and mvn", hint="install a JDK and Maven, or leave the peer out")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "yunhe" / f"kafka-{VERSION}"
    complete = cache / f"complete-{zlib.crc32(POM.read_bytes()):08x}"
    if not complete.exists():
        command = ["mvn", "-q", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={cache}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=fetch_s, check=False)
        if done.returncode:
            raise Unavailable(f"Apache Kafka's jars could not be fetched: {done.stdout[-300:]}")
        complete.touch()
    return cache


@contextlib.contextmanager
def kafka(folder: Path, brokers: int, clock: Clock) -> Iterator[Peer]:
    """`brokers` brokers of Apache Kafka with their data under `folder`, which is removed afterwards.

    Raises:
        Unavailable: they cannot be had, or do not come up.
    """
    classpath = f"{jars()}/*"
    folder.mkdir(parents=True)
    ports = free_ports("127.0.0.1", 2 * brokers, SystemRng())
    voters = ",".join(f"{i + 1}@127.0.0.1:{ports[brokers + i]}" for i in range(brokers))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(brokers):
            home = folder / str(i + 1)
            home.mkdir()
            config = _write_config(home, i + 1, ports[i], ports[brokers + i], voters, brokers)
            java = ["java", f"-Xms{HEAP}", f"-Xmx{HEAP}", "-XX:+UseG1GC", "-cp", classpath]
            subprocess.run(
                [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(config)],
                check=True,
                capture_output=True,
                timeout=60,
            )
            with (home / "log").open("wb") as output:
                processes.append(
                    subprocess.Popen([*java, "kafka.Kafka", str(config)], stdout=output, stderr=output, cwd=home)
                )
        bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports[:brokers])
        _await(bootstrap, brokers, clock)
        yield Peer(bootstrap, [p.pid for p in processes])
    except subprocess.SubprocessError as error:
        raise Unavailable(f"Apache Kafka did not start: {error}") from error
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def create_topic(peer: Peer, topic: str, partitions: int, replicas: int) -> None:
    """Create a topic, led by the first broker, and wait until it is served."""
    admin = AdminClient({"bootstrap.servers": peer.bootstrap})
    placed = [list(range(1, replicas + 1))] * partitions
    for future in admin.create_topics([NewTopic(topic, partitions, replica_assignment=placed)]).values():
        future.result(30)


def _write_config(home: Path, node: int, port: int, controller: int, voters: str, brokers: int) -> Path:
    lines = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": voters,
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": home / "data",
        "offsets.topic.replication.factor": min(3, brokers),
        "transaction.state.log.replication.factor": min(3, brokers),
        "transaction.state.log.min.isr": min(2, brokers),
        "min.insync.replicas": min(2, brokers),
        "group.initial.rebalance.delay.ms": 0,
    }
    path = home / "server.properties"
    path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return path


def _await(bootstrap: str, brokers: int, clock: Clock) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    deadline = clock.monotonic_ms() + START_MS
    while clock.monotonic_ms() < deadline:
        with contextlib.suppress(Exception):  # librdkafka's, while nobody listens yet
            if len(admin.list_topics(timeout=2).brokers) == brokers:
                return
    raise Unavailable(f"{brokers} brokers of Apache Kafka did not come up within {START_MS // 1000} s")
