"""The operator's manifests: taken by the real API server, least in their rights, and the same by Helm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from controlplane.api.crds import custom_resource_definitions
from controlplane.cli.main import run
from controlplane.operator.chart import chart_files
from controlplane.operator.manifests import NAME, Install, plain
from tests.kube.cluster import Cluster
from tests.kube.operator import manifests_applied

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "yunhe"


def test_the_committed_chart_is_what_the_generator_writes() -> None:
    for path, text in chart_files().items():
        assert (CHART / path).read_text() == text, f"run python -m controlplane.operator.chart charts/yunhe ({path})"
    written = {str(p.relative_to(CHART)) for p in CHART.rglob("*") if p.is_file()}
    assert written == {*chart_files(), "Chart.yaml", "templates/NOTES.txt"}


@pytest.fixture
def applied(cluster: Cluster, api: client.ApiClient, namespace: str) -> Iterator[str]:
    """The manifests in a namespace of a real API server, and gone afterwards."""
    with manifests_applied(cluster, Install(namespace=namespace, engine_namespaces=("kube-public",))):
        yield namespace


def test_every_manifest_is_taken_by_the_api_server_and_rights_are_least(applied: str, api: client.ApiClient) -> None:
    reviews = client.AuthorizationV1Api(api)

    def may(verb: str, group: str, resource: str, where: str | None, name: str | None = None) -> bool:
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": where, "name": name}
        user = f"system:serviceaccount:{applied}:{NAME}"
        answer: Any = reviews.create_subject_access_review(
            {"spec": {"user": user, "resourceAttributes": {k: v for k, v in attributes.items() if v}}}
        )
        return bool(answer.status.allowed)

    assert may("patch", "yunhe.io", "topics", applied)
    assert may("update", "coordination.k8s.io", "leases", applied)
    assert may("patch", "apps", "statefulsets", applied)
    assert may("create", "", "pods/eviction", applied)
    assert may("patch", "admissionregistration.k8s.io", "validatingwebhookconfigurations", None, NAME)
    for where in (applied, "kube-public"):
        assert may("patch", "apps", "statefulsets", where) and may("delete", "", "secrets", where)
    refused = [
        ("delete", "", "persistentvolumeclaims", applied, None),
        ("update", "coordination.k8s.io", "leases", "kube-public", None),
        ("patch", "yunhe.io", "topics", "kube-public", None),
        ("create", "", "pods", "kube-public", None),
        ("patch", "apps", "statefulsets", "default", None),
        ("get", "", "secrets", "default", None),
        ("list", "", "secrets", None, None),
        ("create", "", "pods", applied, None),
        ("create", "", "pods/exec", applied, None),
        ("patch", "yunhe.io", "topics", "default", None),
        ("create", "yunhe.io", "topics", applied, None),
        ("patch", "admissionregistration.k8s.io", "validatingwebhookconfigurations", None, "another"),
        ("create", "rbac.authorization.k8s.io", "roles", applied, None),
        ("delete", "", "nodes", None, None),
    ]
    assert not [question for question in refused if may(*question)]


def test_the_pod_meets_the_restricted_standard(cluster: Cluster, api: client.ApiClient, namespace: str) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    client.CoreV1Api(api).patch_namespace(namespace, label)
    deployment = next(m for m in plain(Install(namespace=namespace)) if m["kind"] == "Deployment")
    pod = deployment["spec"]["template"]
    body = {**pod, "metadata": {"name": "operator", **pod["metadata"]}}
    # No controller-manager makes the namespace's account here, and admission of accounts asks for ours.
    client.CoreV1Api(api).create_namespaced_service_account(namespace, {"metadata": {"name": NAME}})
    client.CoreV1Api(api).create_namespaced_pod(namespace, body, dry_run="All")
    body["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        client.CoreV1Api(api).create_namespaced_pod(namespace, body, dry_run="All")


@pytest.fixture(scope="module")
def helm() -> str:
    built = subprocess.run([ROOT / "tools" / "helm" / "build.sh"], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"no helm here: {built.stderr.strip()}")
    return built.stdout.strip()


@pytest.mark.timeout(900)
def test_helm_lints_the_chart_and_renders_the_same_as_yunhe_manifests(helm: str) -> None:
    linted = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    for arguments, install in (
        ([], Install(namespace="there")),
        (
            ["--set", "webhook=false,replicas=3,nodeSelector.pool=a", "--set", "networkPolicy=false"],
            replace(
                Install(namespace="there"), webhook=False, network_policy=False, replicas=3, node_selector={"pool": "a"}
            ),
        ),
        (
            ["--set", "engineNamespaces={one,two}"],
            Install(namespace="there", engine_namespaces=("one", "two")),
        ),
    ):
        # Built as a module, helm does not know which Kubernetes it is for.
        command = [helm, "template", "one", str(CHART), "--namespace", "there", "--kube-version", "1.36.0", *arguments]
        rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout

        def by_name(documents: Any) -> dict[tuple[str, str, str | None], Any]:
            return {(d["kind"], d["metadata"]["name"], d["metadata"].get("namespace")): d for d in documents if d}

        assert by_name(yaml.safe_load_all(rendered)) == by_name(plain(install))
    wrong = subprocess.run(
        [helm, "template", "one", str(CHART), "--kube-version", "1.36.0", "--set", "replicas=0"],
        capture_output=True,
        check=False,
    )
    assert wrong.returncode != 0 and b"replicas" in wrong.stderr


def test_the_commands_print_what_kubectl_reads(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(["crds"]) == 0
    assert list(yaml.safe_load_all(capfdbinary.readouterr().out)) == custom_resource_definitions()
    assert run(["manifests", "-n", "there", "--image", "registry/yunhe:1", "-o", "json"]) == 0
    items = json.loads(capfdbinary.readouterr().out)["items"]
    assert items == plain(Install(namespace="there", image="registry/yunhe:1"))
    both = ["--engine-namespace", "one", "--engine-namespace", "there", "--engine-namespace", "one"]
    assert run(["manifests", "-n", "there", *both, "-o", "json"]) == 0
    items = json.loads(capfdbinary.readouterr().out)["items"]
    assert items == plain(Install(namespace="there", engine_namespaces=("one",)))
    assert [item["kind"] for item in items if item["metadata"].get("namespace") == "one"] == ["Role", "RoleBinding"]
    assert run(["manifests", "--engine-namespace", "One"]) == 1
    assert b"'One' is not a name of a namespace" in capfdbinary.readouterr().err
    assert run(["manifests", "-n", "Not a name"]) == 1
    assert b"is not a name of a namespace" in capfdbinary.readouterr().err
