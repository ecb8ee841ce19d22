"""The real API server accepts and refuses what the CLI's validator does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client
from pydantic import ValidationError

from controlplane.api.crds import (
    GROUP,
    VERSION,
    from_custom_object,
    plural_of,
)
from controlplane.api.kinds import API_VERSION, KINDS, Resource, type_of_kind
from tests.kube.crds import install
from tests.kube.custom_values import WHOLE, mutated, mutations

Send = Callable[..., tuple[dict[str, Any] | None, str]]


@pytest.fixture(scope="module")
def defined(cluster: Any) -> client.ApiClient:
    """The API server with our definitions, served."""
    api = cluster.api_client()
    install(api)
    return api


def custom(kind: str, spec: Any, name: str = "one") -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def send(defined: client.ApiClient) -> Send:
    """A dry run of creating an object: what it would be, or why not."""
    api = client.CustomObjectsApi(defined)

    def create(kind: str, spec: Any, *, name: str = "one", dry: bool = True) -> tuple[dict[str, Any] | None, str]:
        options = {"dry_run": "All"} if dry else {}
        try:
            made = api.create_namespaced_custom_object(
                GROUP,
                VERSION,
                "default",
                plural_of(kind),
                custom(kind, spec, name),
                field_validation="Strict",
                **options,
            )
        except client.ApiException as error:
            assert error.status in (400, 422), error
            return None, json.loads(error.body)["message"]
        return made, ""

    return create


def validated(kind: str, plain: dict[str, Any]) -> tuple[Resource | None, str]:
    try:
        return type_of_kind[kind].model_validate(plain), ""
    except ValidationError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_value_is_judged_alike_by_the_api_server_and_the_cli(kind: str, send: Send) -> None:
    unlike = []
    for whole in WHOLE[kind]:
        for path, value in [("-", None), *mutations(kind)]:
            spec = copy.deepcopy(whole)
            if path != "-":
                mutated(spec, path, copy.deepcopy(value))
            unlike += judged(kind, spec, send)
    assert not unlike, "\n".join(unlike[:40])


@pytest.mark.parametrize("kind", KINDS)
def test_values_together_are_judged_alike_by_the_api_server_and_the_cli(kind: str, send: Send) -> None:
    choice = st.lists(st.sampled_from(list(mutations(kind))), min_size=2, max_size=4)

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(WHOLE[kind]), choice)
    def alike(whole: dict[str, Any], changes: list[tuple[str, Any]]) -> None:
        spec = copy.deepcopy(whole)
        for path, value in changes:
            mutated(spec, path, copy.deepcopy(value))
        assert not judged(kind, spec, send)

    alike()


def judged(kind: str, spec: dict[str, Any], send: Send) -> list[str]:
    """How the two verdicts differ: nothing, or one sentence."""
    resource, why_not = validated(kind, from_custom_object(custom(kind, spec)))
    made, refusal = send(kind, spec)
    if (resource is None) is not (made is None):
        if _is_null_for_a_default(why_not):
            return []
        return [f"{spec}: the CLI {why_not or 'accepts'}; the API server {refusal or 'accepts'}"]
    if made is not None and resource is not None:
        again, _ = validated(kind, from_custom_object(made))
        if again != resource:
            return [f"{spec}: with the API server's defaults it is {again}, and {resource} without"]
    return []


def _is_null_for_a_default(why_not: str) -> bool:
    return why_not.count("input_value=None") > 0 and why_not.startswith("1 validation error")


@pytest.mark.parametrize("name", ["a" * 41, "a.b"])
def test_a_name_that_the_cli_refuses_is_refused(name: str, send: Send) -> None:
    made, refusal = send("Topic", WHOLE["Topic"][0], name=name)
    assert made is None and "metadata.name" in refusal


@pytest.mark.parametrize(
    ("kind", "before", "changes", "refusal"),
    [
        ("BrokerCluster", 0, {"cloud": "d"}, "cannot move to another cloud"),
        ("BrokerCluster", 0, {"listeners.peerSecret": "/other"}, "peerSecret of a running cluster cannot change"),
        ("BrokerCluster", 0, {"brokers": 3}, None),
        ("Topic", 0, {"partitions": 3}, "partitions cannot be taken away"),
        ("Topic", 0, {"partitions": 3, "clusters": ["another"]}, None),
        ("Topic", 0, {"partitions": 5}, None),
        ("Database", 0, {"cloud": "d"}, "cannot move to another cloud"),
        ("Database", 0, {"memory": "60MiB"}, None),
    ],
)
def test_changes_that_the_planner_refuses_are_refused(
    kind: str, before: int, changes: dict[str, Any], refusal: str | None, send: Send, defined: client.ApiClient
) -> None:
    name = f"changing-{kind.lower()}-{abs(hash(str(changes))) % 10**8}"
    there, why = send(kind, WHOLE[kind][before], name=name, dry=False)
    assert there is not None, why
    spec = copy.deepcopy(there["spec"])
    for path, value in changes.items():
        mutated(spec, path, value)
    api = client.CustomObjectsApi(defined)
    try:
        api.replace_namespaced_custom_object(GROUP, VERSION, "default", plural_of(kind), name, {**there, "spec": spec})
        assert refusal is None
    except client.ApiException as error:
        assert refusal is not None and refusal in json.loads(error.body)["message"], error.body


def test_brokers_are_scaled_by_the_scale_subresource_and_status_is_written_apart(
    send: Send, defined: client.ApiClient
) -> None:
    made, why = send("BrokerCluster", WHOLE["BrokerCluster"][0], name="scaled", dry=False)
    assert made is not None, why
    api = client.CustomObjectsApi(defined)
    where = (GROUP, VERSION, "default", "brokerclusters", "scaled")
    scale = api.get_namespaced_custom_object_scale(*where)
    assert scale["spec"]["replicas"] == 2
    api.replace_namespaced_custom_object_scale(*where, {**scale, "spec": {"replicas": 5}})
    changed = api.get_namespaced_custom_object(*where)
    assert changed["spec"]["brokers"] == 5 and changed["metadata"]["generation"] == 2
    status = {"state": "Ready", "observedGeneration": 2, "brokers": [{"name": "b-1"}], "replicas": 5}
    api.patch_namespaced_custom_object_status(*where, {"status": status, "spec": {"brokers": 9}})
    kept = api.get_namespaced_custom_object(*where)
    assert kept["status"] == status and kept["spec"]["brokers"] == 5 and kept["metadata"]["generation"] == 2
    assert api.get_namespaced_custom_object_scale(*where)["status"]["replicas"] == 5
