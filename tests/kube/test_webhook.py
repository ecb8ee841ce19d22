"""The real API server asks the webhook, and its users hear the CLI's sentences."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import ssl
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from controlplane.api.crds import (
    GROUP,
    VERSION,
    plural_of,
    to_custom_object,
)
from controlplane.api.kinds import API_VERSION
from controlplane.api.load import load, load_texts
from controlplane.operator.admission import Custom, judge
from controlplane.operator.admitting import Admitting
from controlplane.operator.certificates import Certificate, self_signed
from controlplane.operator.webhook import PATH, Webhook
from controlplane.store.kube_api import Kube
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid
from providers.base.ports import free_port
from tests.kube.cluster import Cluster, eventually
from tests.kube.crds import install

EXAMPLES = Path(__file__).parents[2] / "examples"


class Door:
    """A namespace whose objects the webhook judges, and a client of the real API server."""

    def __init__(self, api: client.ApiClient, namespace: str, configuration: str) -> None:
        self.api, self.namespace, self.configuration = api, namespace, configuration
        self.objects = client.CustomObjectsApi(api)

    def send(self, kind: str, name: str, spec: Any) -> tuple[str | None, list[str]]:
        """Create or replace; why it was refused, and the warnings."""
        where = (GROUP, VERSION, self.namespace, plural_of(kind))
        body: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
        try:
            there: Any = self.objects.get_namespaced_custom_object(*where, name)
            body["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
            _, _, headers = self.objects.replace_namespaced_custom_object_with_http_info(*where, name, body)
        except client.ApiException as missing:
            if missing.status != 404:
                return json.loads(missing.body)["message"], []
            try:
                _, _, headers = self.objects.create_namespaced_custom_object_with_http_info(*where, body)
            except client.ApiException as error:
                return json.loads(error.body)["message"], []
        return None, [value for key, value in headers.items() if key.lower() == "warning"]

    def delete(self, kind: str, name: str) -> list[str]:
        where = (GROUP, VERSION, self.namespace, plural_of(kind), name)
        _, _, headers = self.objects.delete_namespaced_custom_object_with_http_info(*where)
        return [value for key, value in headers.items() if key.lower() == "warning"]


@pytest.fixture
def door(cluster: Cluster, api: client.ApiClient, namespace: str) -> Iterator[Door]:
    """The webhook on loopback with a certificate of its own, and its configuration for this namespace alone."""
    install(api)
    port = free_port("127.0.0.1", SystemRng())
    name = f"yunhe-{namespace}"
    configuration = {
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "validate.yunhe.io",
                "clientConfig": {"url": f"https://localhost:{port}{PATH}"},
                "rules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE", "DELETE"],
                        "resources": ["*"],
                    }
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 5,
            }
        ],
    }
    admission = client.AdmissionregistrationV1Api(api)
    admission.create_validating_webhook_configuration(configuration)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    kube, clock = Kube(cluster.kubeconfig), SystemClock()
    replicas = [Admitting(kube, namespace, clock, configuration=name, names=("localhost",)) for _ in range(2)]
    for replica, at in zip(replicas, (port, 0), strict=True):
        # The second one takes the first one's certificate, and changes nothing.
        asyncio.run_coroutine_threadsafe(replica.start("127.0.0.1", at), loop).result(10)
    opened = Door(api, namespace, name)

    def asked() -> bool:
        refused, _ = opened.send("Topic", "is-it-asked", {"clusters": ["nowhere"], "partitions": 1})
        if refused is None:
            opened.delete("Topic", "is-it-asked")
        return refused is not None and "no BrokerCluster is named nowhere" in refused

    eventually(asked, "the webhook is asked", 20)
    yield opened
    admission.delete_validating_webhook_configuration(name)
    for replica in replicas:
        asyncio.run_coroutine_threadsafe(replica.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    kube.close()


def said_by_cli(*documents: dict[str, Any]) -> str:
    """What `yunhe plan` says of these documents, without the place."""
    text = yaml.safe_dump_all([{"apiVersion": "yunhe.io/v1alpha1", **document} for document in documents])
    with pytest.raises(Invalid) as refused:
        load_texts([("spec", text)])
    [error] = refused.value.fields["errors"]
    return str(error["message"])


CLOUD = {"provider": "private", "region": "p", "zones": ["a", "b"]}


def test_every_example_is_admitted_object_by_object(door: Door) -> None:
    for resource in load([EXAMPLES / "vehicle.yaml"]):
        if resource.kind != "Database" or resource.metadata.name.startswith("fleet"):
            assert door.send(resource.kind, resource.metadata.name, to_custom_object(resource)["spec"])[0] is None
    for resource in load([EXAMPLES / "vehicle.yaml"]).databases.values():
        assert door.send("Database", resource.metadata.name, to_custom_object(resource)["spec"])[0] is None


def test_what_only_several_objects_show_is_refused_with_the_clis_sentence(door: Door) -> None:
    assert door.send("Cloud", "p", CLOUD)[0] is None
    refused, _ = door.send("BrokerCluster", "b", {"cloud": "p", "brokersPerZone": {"c": 1}})
    sentence = said_by_cli(
        {"kind": "Cloud", "metadata": {"name": "p"}, "spec": CLOUD},
        {"kind": "BrokerCluster", "metadata": {"name": "b"}, "spec": {"cloud": "p", "brokersPerZone": {"c": 1}}},
    )
    assert refused is not None and sentence in refused and "zones of p: a, b" in refused
    assert door.send("BrokerCluster", "b", {"cloud": "p", "brokers": 2})[0] is None
    refused, _ = door.send("BrokerCluster", "second", {"cloud": "p", "brokers": 1})
    assert refused is not None and "cloud p already has the cluster b" in refused


def test_a_change_that_would_leave_data_behind_is_refused_and_a_risky_one_is_warned_of(door: Door) -> None:
    assert door.send("Cloud", "p", CLOUD)[0] is None
    assert door.send("BrokerCluster", "b", {"cloud": "p", "brokers": 2}) == (None, [])
    assert door.send("Topic", "t", {"clusters": ["b"], "partitions": 2, "configs": {"retention.ms": 1000}})[0] is None
    refused, _ = door.send("Cloud", "p", {**CLOUD, "region": "q"})
    assert refused is not None and "cannot change from p to q while b has its data there" in refused
    refused, warned = door.send("Topic", "t", {"clusters": ["b"], "partitions": 2, "configs": {"retention.ms": 10}})
    assert refused is None and "at risk: records beyond the new retention" in str(warned)
    refused, warned = door.send("BrokerCluster", "b", {"cloud": "p", "brokers": 1})
    assert refused is None and "delete Broker b/b-2: up to" in str(warned)
    assert "all records of 2 partitions" in str(door.delete("Topic", "t"))
    door.delete("Cloud", "p")  # in any order, as kubectl deletes a file's objects


def test_without_the_webhook_the_failure_policy_refuses(door: Door) -> None:
    admission = client.AdmissionregistrationV1Api(door.api)
    path = "/webhooks/0/clientConfig/caBundle"
    stranger = base64.b64encode(self_signed(("localhost",), SystemClock()).certificate).decode()
    admission.patch_validating_webhook_configuration(
        door.configuration, [{"op": "replace", "path": path, "value": stranger}]
    )
    counter = iter(range(1000))

    def refused() -> bool:
        why, _ = door.send("Cloud", f"p-{next(counter)}", CLOUD)
        return why is not None and "failed calling webhook" in why

    eventually(refused, "a stranger's certificate is not trusted", 20)


def test_metadata_alone_is_never_refused() -> None:
    wrong = {"kind": "Topic", "apiVersion": API_VERSION, "metadata": {"name": "t"}, "spec": {"clusters": ["x"]}}
    relabelled = copy.deepcopy(wrong) | {"metadata": {"name": "t", "finalizers": []}}
    assert judge("UPDATE", relabelled, wrong, [wrong]).refused is None
    assert judge("UPDATE", {**wrong, "spec": {"clusters": ["y"]}}, wrong, [wrong]).refused is not None


def test_what_was_wrong_before_is_not_the_fault_of_the_next_change() -> None:
    astray = {"clusters": ["nowhere"], "partitions": 1}
    there = {"kind": "Topic", "apiVersion": API_VERSION, "metadata": {"name": "t"}, "spec": astray}
    cloud = {"kind": "Cloud", "apiVersion": API_VERSION, "metadata": {"name": "p"}, "spec": CLOUD}
    assert judge("CREATE", cloud, None, [there]).refused is None


def test_a_body_that_is_no_review_gets_400_and_a_slow_store_504(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    from controlplane.operator import webhook as module

    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.05)

    async def never(_: str) -> Sequence[Custom]:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> list[int]:
        certificate: Certificate = self_signed(("localhost",), SystemClock())
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.load_into(tls)
        served = Webhook(never)
        port = await served.start("127.0.0.1", 0, tls)
        trusted = ssl.create_default_context(cadata=certificate.certificate.decode())
        url = f"https://localhost:{port}{PATH}"
        review = {"apiVersion": "admission.k8s.io/v1", "request": {"uid": str(uuid.uuid4()), "operation": "CREATE"}}
        try:
            async with aiohttp.ClientSession() as session:
                codes = []
                for body in (b"{", b"[]", b'{"apiVersion": "admission.k8s.io/v1"}', json.dumps(review).encode()):
                    async with session.post(url, data=body, ssl=trusted) as answer:
                        codes.append(answer.status)
                return codes
        finally:
            await served.stop()

    assert asyncio.run(run()) == [400, 400, 400, 504]
