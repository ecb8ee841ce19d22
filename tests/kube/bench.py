"""`python -m tests.kube.bench`: the operator's figures over a real API server, as JSON on standard output.

    create      a BrokerCluster is created (its Cloud is Ready) → the assignment of its agent is in the cell's bucket
    thousand    1,000 resources are created at once (a Cloud, a BrokerCluster of two live brokers, Topics) → all Ready
    resync      a replica that begins: from leading to the end of a turn over all of them, none changed
    memory      resident, before and after that

The webhook is off: what it costs is the creator's time. API server, lab, brokers and operator share the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from kubernetes import client

from controlplane.server.files import StateDir
from controlplane.store.kube_api import Kube, resources_path
from dataplane.ledger.mailbox import mailbox_prefix
from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import StoreAddress, open_store
from providers.lab.launcher import Lab as LabClouds
from tests.kube.cluster import Cluster, programs
from tests.kube.crds import install
from tests.kube.operator import CLOUD, CLUSTER, Lab, Operator, Resources

CREATES = int(os.environ.get("CREATES", "60"))
TOPICS = int(os.environ.get("TOPICS", "998"))
CREATORS = 8
WAIT_S = 300.0

REAL = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: c%(n)s}
spec:
  provider: private
  region: plant
  zones: [hall-a]
  target: real
  real: {bucket: %(bucket)s, endpoint: "%(endpoint)s", credentialsFile: "%(credentials)s"}
"""
ONE = """\
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: m%(n)s}
spec: {cloud: c%(n)s, brokers: 1}
"""
TOPIC = """\
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: t%(n)s}
spec: {clusters: [main], partitions: 1}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="yunhe-bench-") as folder:
        cluster = Cluster(Path(folder), programs())
        cluster.start()
        try:
            with cluster.api_client() as api:
                install(api)
            figures = {"create": _create(cluster, Path(folder) / "create"), **_thousand(cluster, Path(folder) / "all")}
        finally:
            cluster.stop()
    json.dump({**figures, "load": os.getloadavg()[0]}, sys.stdout, indent=2)
    print()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _create(cluster: Cluster, folder: Path) -> dict[str, Any]:
    lab, operator, resources = _world(cluster, folder)
    try:
        lab.start(CLOUD)
        address = LabClouds(lab.state_dir.root, clock=SystemClock(), rng=SystemRng()).address("plant")
        assert address is not None
        found = address.bucket
        fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
        buckets = {n: StoreAddress(**{**fields, "bucket": f"yunhe-c{n}"}) for n in range(CREATES)}
        operator.start()
        asyncio.run(_buckets(list(buckets.values())))
        for n, bucket in buckets.items():
            more = {"n": n, "bucket": bucket.bucket, "endpoint": found.endpoint, "credentials": found.credentials_file}
            resources.create(REAL % more)
        _until(lambda: _count_ready(resources, "Cloud") == CREATES)
        _say(f"{CREATES} clouds are Ready; creates of clusters")
        time.sleep(5)  # what followed from them has ended: what is timed is one create
        return _spread(asyncio.run(_timed(resources, buckets)))
    finally:
        operator.end()
        lab.stop()


async def _buckets(addresses: list[StoreAddress]) -> None:
    for address in addresses:
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        await store.ensure_bucket()
        await store.close()


async def _timed(resources: Resources, buckets: dict[int, StoreAddress]) -> list[float]:
    took = []
    for n, address in buckets.items():
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        prefix = mailbox_prefix(f"c{n}-hall-a")
        await store.list(prefix)  # connected
        began = time.monotonic()
        await asyncio.to_thread(resources.create, ONE % {"n": n})
        async with asyncio.timeout(WAIT_S):
            while not await store.list(prefix, limit=1):  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0.002)
        took.append(time.monotonic() - began)
        await store.close()
        # One by one: many clusters that wait for agents would be looked at all the time.
        await asyncio.to_thread(resources.delete, "BrokerCluster", f"m{n}")
        async with asyncio.timeout(WAIT_S):
            while not await asyncio.to_thread(resources.gone, "BrokerCluster", f"m{n}"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    return took


def _thousand(cluster: Cluster, folder: Path) -> dict[str, Any]:
    lab, operator, resources = _world(cluster, folder)
    try:
        lab.start(f"{CLOUD}---\n{CLUSTER}", agents=True)
        operator.start()
        texts = [CLOUD, CLUSTER, *(TOPIC % {"n": n} for n in range(TOPICS))]
        began = time.monotonic()
        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(resources.create, texts))
        created = time.monotonic() - began
        _say(f"{len(texts)} resources created in {created:.1f} s")
        _until(lambda: _count_ready(resources, "Topic") == TOPICS and _count_ready(resources, "BrokerCluster") == 1)
        converged = time.monotonic() - began
        resident = _resident_mib(operator.running[-1].pid)
        operator.end()
        operator.start()
        resync = _until(lambda: _looked_s(operator.log()))
        after = _resident_mib(operator.running[-1].pid)
        return {
            "thousand": {"createdS": round(created, 1), "convergedS": round(converged, 1), "atMostS": 60},
            "resync": {"s": round(resync, 2), "atMostS": 5},
            "memory": {"mib": resident, "afterResyncMib": after, "atMostMib": 150},
        }
    finally:
        operator.end()
        lab.stop()


def _looked_s(log: str) -> float | None:
    """By the operator's own log: from leading to the end of its first turn."""
    led = None
    for line in log.splitlines():
        if " leads as " in line:
            led = _clock_s(line)
        elif "looked at all of " in line and led is not None:
            return _clock_s(line) - led
    return None


def _clock_s(line: str) -> float:
    hours, minutes, seconds = line.split(" ")[1].replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _world(cluster: Cluster, folder: Path) -> tuple[Lab, Operator, Resources]:
    folder.mkdir()
    namespace = f"b-{uuid4().hex[:8]}"
    with cluster.api_client() as api:
        client.CoreV1Api(api).create_namespace({"metadata": {"name": namespace}})
    lab = Lab(StateDir(folder / "state"))
    return lab, Operator(cluster, namespace, folder, lab.state_dir.root), Resources(Kube(cluster.kubeconfig), namespace)


def _count_ready(resources: Resources, kind: str) -> int:
    return sum(
        any(c["type"] == "Ready" and c["status"] == "True" for c in found.get("status", {}).get("conditions", ()))
        for found in resources.kube.listed(resources_path(resources.namespace, kind))
    )


def _until(condition: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.25)
    raise SystemExit("not within its time")


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _spread(took_s: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * one for one in took_s)
    return {
        "p50Ms": round(statistics.median(ordered), 1),
        "p99Ms": round(ordered[max(0, round(0.99 * len(ordered)) - 1)], 1),
        "maxMs": round(ordered[-1], 1),
        "atMostMs": 200,
        "count": len(ordered),
    }


if __name__ == "__main__":
    main()
