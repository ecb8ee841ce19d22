"""What an operator is made of in a cluster, as a list of manifests: for plain YAML and for the Helm chart. Pure.

The chart's values are the fields of `Install`; in its templates each stands as the expression that Helm fills in, so
both come from here, and a test holds the committed chart equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.api.crds import GROUP, plural_of
from controlplane.api.kinds import KINDS

Manifest = dict[str, Any]

WEBHOOK_PORT = 9443
HEALTH_PORT = 8080
USER_ID = 65532
NAME = "yunhe-operator"
ENGINES_NAME = "yunhe-operator-engines"
LABELS = {"app.kubernetes.io/name": "yunhe", "app.kubernetes.io/component": "operator"}
NAMESPACE = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
"""A regular expression of a namespace's name, which has 63 characters at most."""
BROKERS_PRIORITY = 1_000_000
BATCH_PRIORITY = 1_000


@dataclass(frozen=True, slots=True)
class Install:
    """What may be chosen of an installation; the chart's values have the same names. `Any`: or a Helm expression."""

    namespace: str = "yunhe-system"
    engine_namespaces: tuple[str, ...] = ()
    """Other namespaces in which engines are made (`kubernetes.namespace` of a Cloud). They must exist."""
    image: str = "yunhe:0.1.0"
    """No registry carries one yet; it is built from the wheel."""
    replicas: Any = 2
    resources: Any = field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "160Mi"},
            "limits": {"memory": "512Mi"},
        }
    )
    node_selector: Any = field(default_factory=dict)
    tolerations: Any = field(default_factory=list)
    failure_policy: str = "Fail"
    """Fail: no change of a custom resource while no replica answers. Ignore: changes pass, and are judged later."""
    webhook: Any = True
    network_policy: bool = True
    priority_classes: bool = True


def manifests(install: Install) -> Iterator[tuple[str | None, Manifest]]:
    """(the switch that it hangs on, or None; the manifest), in the order in which they are applied."""
    yield None, _object("v1", "ServiceAccount", install)
    yield None, _role(install)
    yield None, _binding("Role", install, install.namespace)
    yield None, _cluster_role(install)
    yield None, _binding("ClusterRole", install, None)
    for namespace in install.engine_namespaces:
        there = replace(install, namespace=namespace)
        yield "engineNamespaces", _object(_RBAC, "Role", there, ENGINES_NAME, rules=_engine_rules())
        yield "engineNamespaces", _binding("Role", install, namespace, ENGINES_NAME)
    yield from (("priorityClasses", manifest) for manifest in _priorities())
    yield None, _service(install)
    yield None, _deployment(install)
    yield None, _disruption_budget(install)
    yield "networkPolicy", _network_policy(install)
    yield "webhook", _webhook(install)


def plain(install: Install) -> list[Manifest]:
    """The manifests that `install` asks for."""
    there = {
        None: True,
        "engineNamespaces": True,
        "webhook": install.webhook,
        "networkPolicy": install.network_policy,
        "priorityClasses": install.priority_classes,
    }
    return [manifest for switch, manifest in manifests(install) if there[switch]]


def _object(version: str, kind: str, install: Install | None, name: str = NAME, **rest: Any) -> Manifest:
    """`install` None: of the whole cluster."""
    metadata: dict[str, Any] = {"name": name, "labels": dict(LABELS)}
    if install is not None:
        metadata["namespace"] = install.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def _rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return rule | ({"resourceNames": names} if names else {})


_READ = ["get", "list", "watch"]
_WRITE = [*_READ, "create", "update", "patch", "delete"]
_RBAC = "rbac.authorization.k8s.io/v1"


def _role(install: Install) -> Manifest:
    """In its own namespace: the custom resources, what it records of them, and what engines are made of."""
    plurals = [plural_of(kind) for kind in KINDS]
    rules = [
        _rule(GROUP, plurals, [*_READ, "update", "patch"]),
        _rule(GROUP, [f"{plural}/status" for plural in plurals], ["get", "update", "patch"]),
        _rule(GROUP, [f"{plural}/finalizers" for plural in plurals], ["update"]),
        *_engine_rules(),
        _rule("", ["events"], ["create", "patch"]),
        _rule("events.k8s.io", ["events"], ["create", "patch"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "list", "watch", "create", "update", "patch"]),
    ]
    return _object(_RBAC, "Role", install, rules=rules)


def _engine_rules() -> list[dict[str, Any]]:
    """What `operator/engine_objects.py` does. It removes no claim, and makes no pod."""
    return [
        _rule("", ["configmaps", "secrets", "services"], _WRITE),
        _rule("", ["persistentvolumeclaims"], _READ),
        _rule("", ["pods"], [*_READ, "delete"]),
        _rule("", ["pods/eviction"], ["create"]),
        _rule("apps", ["statefulsets"], _WRITE),
        _rule("policy", ["poddisruptionbudgets"], _WRITE),
        _rule("kafka.strimzi.io", ["kafkas", "kafkanodepools"], _WRITE),
        _rule("greptime.io", ["greptimedbclusters", "greptimedbstandalones"], _WRITE),
    ]


def _cluster_role(_: Install) -> Manifest:
    """Of the whole cluster it reads where pods and volumes are, and writes one thing: its webhook's certificate."""
    rules = [
        _rule("", ["nodes", "persistentvolumes"], _READ),
        _rule("storage.k8s.io", ["volumeattachments", "storageclasses"], _READ),
        _rule("admissionregistration.k8s.io", ["validatingwebhookconfigurations"], ["get", "patch"], [NAME]),
    ]
    return _object(_RBAC, "ClusterRole", None, rules=rules)


def _binding(kind: str, install: Install, where: str | None, name: str = NAME) -> Manifest:
    """Of the operator's account to the role `name`. `where`: the binding's namespace; None: of the whole cluster."""
    return _object(
        _RBAC,
        f"{kind}Binding",
        replace(install, namespace=where) if where is not None else None,
        name,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": install.namespace}],
    )


def _priorities() -> Iterator[Manifest]:
    """Brokers and batch work share nodes: brokers push batch pods out, and batch pods push nobody."""
    for name, value, policy, text in (
        ("yunhe-brokers", BROKERS_PRIORITY, "PreemptLowerPriority", "Brokers and databases: batch pods make room."),
        ("yunhe-batch", BATCH_PRIORITY, "Never", "Batch work beside brokers: it waits for room."),
    ):
        yield _object(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            None,
            name,
            value=value,
            preemptionPolicy=policy,
            globalDefault=False,
            description=text,
        )


def _service(install: Install) -> Manifest:
    spec = {"selector": dict(LABELS), "ports": [{"name": "webhook", "port": 443, "targetPort": "webhook"}]}
    return _object("v1", "Service", install, spec=spec)


def _deployment(install: Install) -> Manifest:
    probe = {"httpGet": {"path": "/healthz", "port": "health"}}
    container = {
        "name": "operator",
        "image": install.image,
        "command": ["python", "-m", "controlplane.operator"],
        "args": ["--namespace", install.namespace, f"--webhook={_said(install.webhook)}"],
        "env": [{"name": "YUNHE_STATE_DIR", "value": "/var/lib/yunhe"}],
        "ports": [
            {"name": "webhook", "containerPort": WEBHOOK_PORT},
            {"name": "health", "containerPort": HEALTH_PORT},
        ],
        "livenessProbe": {**probe, "initialDelaySeconds": 10, "periodSeconds": 10, "failureThreshold": 3},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "resources": install.resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/yunhe"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": install.node_selector,
        "tolerations": install.tolerations,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(LABELS)},
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [container],
        "volumes": [
            {"name": "state", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    spec = {
        "replicas": install.replicas,
        "selector": {"matchLabels": dict(LABELS)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}},
        "template": {"metadata": {"labels": dict(LABELS)}, "spec": pod},
    }
    return _object("apps/v1", "Deployment", install, spec=spec)


def _said(switch: Any) -> str:
    """A switch, or a Helm expression, as the command line says it."""
    return str(switch).lower() if isinstance(switch, bool) else str(switch)


def _disruption_budget(install: Install) -> Manifest:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": dict(LABELS)}}
    return _object("policy/v1", "PodDisruptionBudget", install, spec=spec)


def _network_policy(install: Install) -> Manifest:
    """In: the webhook and the probes, whose senders have no labels. Out: DNS, and HTTPS to API server and buckets."""
    ports = [{"protocol": "TCP", "port": port} for port in (WEBHOOK_PORT, HEALTH_PORT)]
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    spec = {
        "podSelector": {"matchLabels": dict(LABELS)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": ports}],
        "egress": [{"ports": names}, {"ports": [{"protocol": "TCP", "port": port} for port in (443, 6443)]}],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", install, spec=spec)


def _webhook(install: Install) -> Manifest:
    hook = {
        "name": f"validate.{GROUP}",
        "clientConfig": {"service": {"name": NAME, "namespace": install.namespace, "path": "/validate", "port": 443}},
        "rules": [
            {
                "apiGroups": [GROUP],
                "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE", "DELETE"],
                "resources": [plural_of(kind) for kind in KINDS],
                "scope": "Namespaced",
            }
        ],
        # The operator looks after one namespace, and has no say in another's.
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": install.namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "matchPolicy": "Equivalent",
        "failurePolicy": install.failure_policy,
        "timeoutSeconds": 5,
    }
    return _object("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", None, webhooks=[hook])
