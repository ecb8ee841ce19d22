"""`engine: embedded` on Kubernetes: our own agents, a StatefulSet of one pod a zone; the pod's agent starts the brokers
and databases that its assignment names, as on any machine.

An agent needs no API server and no operator to go on, nor to take over from another zone's: its assignment is in the
bucket, and its journal on its volume.
"""

from __future__ import annotations

import json

from controlplane.api.kinds import Cloud
from controlplane.api.kubernetes import Kubernetes
from controlplane.plan.kubernetes import (
    CONTAINER_SECURITY,
    PART,
    ZONE,
    Manifest,
    Rendered,
    claim,
    digest,
    disruption_budget,
    from_secret,
    headless,
    identity_labels,
    in_order,
    in_zone,
    kubernetes_of,
    label,
    manifest,
    pod_common,
    resources,
    slug,
    spread,
    stateful_set,
)
from controlplane.plan.placement import agent_name
from dataplane.contract.codec import to_plain
from providers.base.errors import Invalid
from providers.base.hosts import is_loopback
from providers.base.registry import StoreAddress

STATE = "/var/lib/yunhe"
CONFIG = "/etc/yunhe"
READY = f"{STATE}/serving"
"""The agent's own word that all it was told to run serves (`ready_file` of its configuration)."""
STOP_S = 15
"""How long a broker may take to hand its partitions over (`dataplane.agent.restarts.STOP_MS`)."""
LINGER_S = 2
"""Between a pod's end being known and its brokers being asked to hand over: time for services to leave it out."""
GRACE_S = LINGER_S + STOP_S + 30
"""Hand-over is bound by STOP_S; the rest is for the agent's own end on a busy node."""
CREDENTIALS = "YUNHE_BUCKET_CREDENTIALS"
ANY_PORT = 1
"""A headless service needs a port; the brokers' own are in their metadata."""


def agent_host(cloud: str, zone: str, kubernetes: Kubernetes) -> str:
    """The name by which the pod of a zone's agent, and its brokers with it, is reached inside the cluster."""
    name = set_name(cloud, zone)
    return f"{name}-0.{name}.{kubernetes.namespace}.svc"


def broker_host(cloud: str, zone: str, kubernetes: Kubernetes | None, stated: str) -> str:
    """Where brokers of a zone listen and are reached: in pods by the pod's name, unless the spec states another host
    than the loopback that it has by default."""
    return agent_host(cloud, zone, kubernetes) if kubernetes is not None and is_loopback(stated) else stated


def set_name(cloud: str, zone: str) -> str:
    """The zone's StatefulSet."""
    return f"{cloud}-{slug(zone)}"


def render_agents(cloud: Cloud, zones: tuple[str, ...]) -> Rendered:
    """The agents of the cloud's `zones`.

    Raises:
        Invalid: the cloud has no Kubernetes, or no image of the agents is named.
    """
    name, spec = cloud.metadata.name, cloud.spec
    kubernetes = kubernetes_of(name, spec, f"the cell {name}")
    if kubernetes.image is None:
        raise Invalid(
            f"Cloud {name}: the image of Yunhe's agents is not named",
            hint="set kubernetes.image to one that has Python and this package",
        )
    where = (kubernetes.namespace, f"Cloud.{name}")
    found: list[Manifest] = [disruption_budget(f"{name}-agents", where, {PART: "agent"})]
    for zone in zones:
        found += _agent(cloud, zone, kubernetes, where, kubernetes.image)
    return Rendered("Cloud", name, name, where[0], in_order(found))


def _agent(cloud: Cloud, zone: str, kubernetes: Kubernetes, where: tuple[str, str], image: str) -> list[Manifest]:
    name, spec, real = cloud.metadata.name, cloud.spec, cloud.spec.real
    assert real is not None, "target real, by the spec's validator"
    credentials = f"env:{CREDENTIALS}" if kubernetes.credentials_secret else real.credentials_file
    bucket = StoreAddress(spec.provider, real.bucket, spec.region, real.endpoint, credentials)
    config = {
        "cell": name,
        "agent": agent_name(name, zone),
        "zone": zone,
        "bucket": to_plain(bucket),
        "stop_with_agent": True,
        "ready_file": READY,
    }
    made = set_name(name, zone)
    labels = {PART: "agent", ZONE: label(zone)}
    # Its bucket's address says where all data is; what signs in there is in another Secret, by reference.
    secret = manifest(
        "v1",
        "Secret",
        made,
        where,
        {},
        labels=labels,
        type="Opaque",
        stringData={"agent.json": json.dumps(config, sort_keys=True)},
    )
    environment: list[Manifest] = [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}]
    if kubernetes.credentials_secret is not None:
        environment.append(from_secret(CREDENTIALS, kubernetes.credentials_secret, "credentials.json"))
    container: Manifest = {
        "name": "agent",
        "image": image,
        "command": ["python", "-P", "-m", "dataplane.agent"],
        "args": ["--state-dir", STATE, "--config", f"{CONFIG}/agent.json"],
        "env": environment,
        "lifecycle": {"preStop": {"sleep": {"seconds": LINGER_S}}},
        "readinessProbe": {"exec": {"command": ["test", "-f", READY]}, "periodSeconds": 5, "failureThreshold": 2},
        "resources": resources(kubernetes),
        "securityContext": {**CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "state", "mountPath": STATE},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    apart = {"yunhe.io/of": where[1], PART: "agent"}
    pod = {
        **pod_common(kubernetes),
        "terminationGracePeriodSeconds": GRACE_S,
        "affinity": in_zone(spec, zone, apart),
        "topologySpreadConstraints": spread(apart),
        "containers": [container],
        "volumes": [
            {"name": "config", "secret": {"secretName": made}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
    }
    return [
        secret,
        headless(made, where, labels, {"agent": ANY_PORT}),
        stateful_set(
            made,
            where,
            kubernetes=kubernetes,
            labels=labels,
            service=made,
            replicas=1,
            pod=pod,
            claims=[claim("state", kubernetes, zone, kubernetes.volume_size)],
            settings={"config": digest(config)},
            pod_labels=identity_labels(spec),
        ),
    ]
