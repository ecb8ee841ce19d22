"""The broker process, put together: stores, volumes, node, Kafka server.

Exit codes: 0 after SIGTERM or SIGINT (partitions handed over), 1 when it could not start or had to stop (fenced, WAL
dead); the agent starts it again under a new epoch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from dataplane.broker.autoscaler import Autoscaler
from dataplane.broker.metrics import BrokerMetrics
from dataplane.broker.net import KafkaServer
from dataplane.broker.node import Node, NodeConfig
from dataplane.broker.node_engine import NodeEngine
from dataplane.broker.node_security import NodeSecurity
from dataplane.broker.peer_secrets import keep_fresh, read_peer_secrets
from dataplane.broker.peers import TcpPeers
from dataplane.broker.security import Security
from dataplane.broker.wals import AssignedLogs
from dataplane.contract.assignment import SparesWanted
from dataplane.contract.broker_config import BrokerConfig
from dataplane.contract.codec import from_json
from dataplane.metrics.endpoint import MetricsEndpoint, serve_metrics
from dataplane.stream.disk_cache import DiskCache
from dataplane.wal.superblock import holds_ring
from providers.base.blocking import health_of_open_stores
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, YunheError
from providers.base.files import replace_file
from providers.base.garbage import collect_less_often
from providers.base.logs import configure, say_error
from providers.base.loops import run_loop
from providers.base.registry import open_store, open_volumes

log = logging.getLogger("dataplane.broker")

FILES_OPEN_MAX = 10_000
SWITCH_INTERVAL_S = 0.000_5
"""How long a thread that uploads keeps the interpreter from the loop, which needs it for microseconds at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dataplane.broker", description="One Yunhe broker.")
    parser.add_argument("--config", required=True, type=Path, help="broker configuration, JSON, written by the agent")
    args = parser.parse_args()
    configure()
    try:
        config = from_json(BrokerConfig, args.config.read_bytes())
        _raise_file_limit()
        _check_port(config.broker.host, config.broker.kafka_port)
        return run_loop(serve(config))
    except (OSError, YunheError) as error:
        say_error(error)
        return 1


def _check_port(host: str, port: int) -> None:
    """Fail before joining the cell, which would fence this broker's former life, when the port cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Invalid(f"port {host}:{port} cannot be listened on: {error.strerror}") from error


def _raise_file_limit() -> None:
    """As many open files as this process may have: many systems begin with 1,024, which is fewer than a listener's
    connections."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OPEN_MAX if most == resource.RLIM_INFINITY else min(FILES_OPEN_MAX, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def serve(config: BrokerConfig) -> int:
    """Join, serve until told to stop or unable to go on; returns the exit code."""
    clock, rng = SystemClock(), SystemRng()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    bucket = open_store(config.bucket, clock=clock, rng=rng)
    express = {name: open_store(address, clock=clock, rng=rng) for name, address in config.express.items()}
    volumes = None
    if config.volumes is not None:
        volumes = open_volumes(config.volumes, clock=clock, ours=holds_ring)
    secrets = read_peer_secrets(config.security.peer_secret)
    peers = TcpPeers(secrets, rng)
    knowing = asyncio.create_task(keep_fresh(config.security.peer_secret, secrets, peers.use, clock))
    engines: list[NodeEngine] = []

    async def handle(message: dict[str, object]) -> dict[str, object] | None:
        return await engines[0].handle(message) if engines else None

    host = config.broker.host
    peer_port = await peers.start(host, 0, handle)
    disk = _disk_cache(config)
    said = _Said(config)
    autoscaler = Autoscaler(
        config.settings.scale, config.broker.spare, config.spares, busy_ms=_busy_ms, on_word=said.spares
    )
    node = Node(
        NodeConfig(config.cell, config.cluster, config.broker, config.settings, config.broker.kafka_port, peer_port),
        store=bucket,
        logs=AssignedLogs(config.cluster, config.broker, bucket=bucket, volumes=volumes, express=express, clock=clock),
        peers=peers,
        clock=clock,
        rng=rng,
        disk=disk,
        autoscaler=autoscaler,
    )
    engine = NodeEngine(node, peers, clock=clock, rng=rng)
    security = Security(config.security, NodeSecurity(node), clock=clock, rng=rng)
    server = KafkaServer(engine, clock=clock, rng=rng, security=security)
    told = BrokerMetrics(node, server, engine.forwarder, disk=disk, stores=health_of_open_stores, clock=clock)
    metrics = MetricsEndpoint(told.page, clock)
    try:
        if disk is not None:
            await disk.open()
        await node.start()
        engines.append(engine)
        await security.make_first_users()
        await server.start(host, config.broker.kafka_port)
        engine.attach()
        collect_less_often()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        address = await serve_metrics(metrics, config.settings.metrics, nth=node.node_id, name=host)
        said.serves(peer_port, node, address)
        node.on_health = said.slow
        log.info("serving", extra={"node": node.node_id, "epoch": node.me.epoch, "port": config.broker.kafka_port})
        node.failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
        if node.failed.done():
            log.error("stopping", extra={"reason": str(node.failed.result())})
            return 1
        await node.stop()
        await engine.settle()
        return 0
    finally:
        await metrics.close()
        await node.kill()
        await server.close()
        knowing.cancel()
        await asyncio.gather(knowing, return_exceptions=True)
        await peers.close()
        if disk is not None:
            await disk.close()
        if volumes is not None:
            await volumes.close()
        for store in (bucket, *express.values()):
            await store.close()


def _disk_cache(config: BrokerConfig) -> DiskCache | None:
    """The broker's own folder: several brokers of a host, of several clusters, may be given the same path."""
    spec = config.settings.disk_cache
    if spec is None:
        return None
    return DiskCache(Path(spec.path, config.cell, config.cluster, config.broker.name), spec.bytes_max)


def _busy_ms() -> float:
    """Processor time that the calling thread, which is the loop's, has taken."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return (used.ru_utime + used.ru_stime) * 1000


class _Said:
    """The ready file: what the broker says to its agent, written from when it serves, and at each change."""

    def __init__(self, config: BrokerConfig) -> None:
        self._path = Path(config.ready_file)
        self._said: dict[str, Any] = {"kafka_port": config.broker.kafka_port, "slow": None, "spares": None}
        self._serves = False

    def serves(self, peer_port: int, node: Node, metrics: str | None) -> None:
        self._serves = True
        self._say(pid=os.getpid(), peer_port=peer_port, node_id=node.node_id, epoch=node.me.epoch, metrics=metrics)

    def slow(self, why: str | None) -> None:
        self._say(slow=why)

    def spares(self, word: SparesWanted) -> None:
        self._say(spares=[word.term, word.number, word.count])

    def _say(self, **said: Any) -> None:
        self._said.update(said)
        if self._serves:
            replace_file(self._path, json.dumps(self._said).encode())
