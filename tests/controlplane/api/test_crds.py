"""Definitions are generated whole or not at all; what the API server makes of them is judged in tests/kube."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import model_validator

from controlplane.api.crds import custom_resource_definitions, from_custom_object, to_custom_object
from controlplane.api.crds_schema import object_schema
from controlplane.api.kinds import KINDS
from controlplane.api.load import load_texts
from controlplane.api.model import Model
from providers.base.errors import Internal


def test_a_rule_that_has_no_cel_stops_the_generator() -> None:
    class New(Model):
        a: int = 1

        @model_validator(mode="after")
        def _is_odd(self) -> New:
            return self

    with pytest.raises(Internal, match=r"New\._is_odd"):
        object_schema(New)


def test_every_kind_is_structural() -> None:
    def walk(schema: dict[str, Any], where: str) -> None:
        typed = "type" in schema or schema.get("x-kubernetes-int-or-string") is True
        assert typed and "$ref" not in schema and "anyOf" not in schema, where
        for name, inner in schema.get("properties", {}).items():
            walk(inner, f"{where}.{name}")
        for name in ("items", "additionalProperties"):
            if name in schema:
                walk(schema[name], f"{where}[]")

    definitions = custom_resource_definitions()
    assert [d["spec"]["names"]["kind"] for d in definitions] == list(KINDS)
    for definition in definitions:
        [version] = definition["spec"]["versions"]
        walk(version["schema"]["openAPIV3Schema"], definition["metadata"]["name"])


def test_an_object_is_the_same_after_it_was_a_custom_one() -> None:
    head = "apiVersion: yunhe.io/v1alpha1, kind: Cloud, metadata: {name: p}"
    text = f"{{{head}, spec: {{provider: private, region: r, zones: [1]}}}}"
    [cloud] = load_texts([("spec", text)])
    custom = to_custom_object(cloud, "there")
    assert custom["apiVersion"] == "yunhe.io/v1alpha1" and custom["metadata"] == {"name": "p", "namespace": "there"}
    assert type(cloud).model_validate(from_custom_object(custom)) == cloud
