"""Yunhe's own Pulumi resources. `from stacks import resources as yunhe`, then `yunhe.Spec`, `yunhe.Cloud`,
`yunhe.BrokerCluster`, `yunhe.Topic`, `yunhe.Database`.

`Spec` applies many objects as one plan. The others apply one object each; those that an object refers to are given as
resources, so that Pulumi keeps the order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
from pulumi import Input, Output, ResourceOptions

from controlplane.api.kinds import API_VERSION
from controlplane.api.load import load_texts
from controlplane.api.source import read_text
from controlplane.api.specs import to_plain


class _Objects(pulumi.CustomResource):
    """Objects that are applied together."""

    documents: list[dict[str, Any]]
    """The objects, those of resources that these refer to included."""

    def __init__(
        self,
        token: str,
        name: str,
        objects: list[dict[str, Any]],
        needs: Iterable[_Objects],
        *,
        accept_data_loss: bool,
        state_dir: str | None,
        timeout_s: float,
        opts: ResourceOptions | None,
    ) -> None:
        needs = tuple(needs)
        required = [one for resource in needs for one in resource.documents]
        self.documents = [*objects, *required]
        chosen = state_dir or pulumi.Config("yunhe").get("stateDir") or os.environ.get("YUNHE_STATE_DIR") or ".yunhe"
        inputs: dict[str, Any] = {
            "stateDir": str(Path(chosen).expanduser().absolute()),
            "objects": objects,
            "requires": required,
            "acceptDataLoss": accept_data_loss,
            "timeoutS": timeout_s,
            "states": None,
            "bootstrapServers": None,
        }
        after = ResourceOptions(depends_on=list(needs))
        super().__init__(f"yunhe:index:{token}", name, inputs, ResourceOptions.merge(after, opts))

    @property
    def states(self) -> Output[dict[str, str]]:
        """State by Kind/name, when last looked at."""
        return self._output("states")

    @property
    def bootstrap_servers(self) -> Output[dict[str, str]]:
        """Kafka bootstrap servers by cloud."""
        return self._output("bootstrapServers")

    def _output(self, name: str) -> Output[dict[str, str]]:
        # Pulumi keeps outputs under the engine's names; a property of the same name would hide `states`.
        found: Output[dict[str, str]] = self.__dict__[name]
        return found


class Spec(_Objects):
    """Objects as in YAML files, applied as one plan: the one that `yunhe plan` makes of the same files."""

    def __init__(
        self,
        name: str,
        *,
        files: Sequence[str | Path] = (),
        objects: Sequence[Mapping[str, Any]] = (),
        accept_data_loss: bool = False,
        state_dir: str | None = None,
        timeout_s: float = 120.0,
        opts: ResourceOptions | None = None,
    ) -> None:
        """`files`: YAML files; `objects`: more of them, as values.

        Raises:
            Invalid: a file cannot be read or is no spec.
        """
        given = [dict(one) for one in objects]
        if files:
            given += [to_plain(one) for one in load_texts([(str(p), read_text(Path(p))) for p in files])]
        super().__init__(
            "Spec",
            name,
            given,
            (),
            accept_data_loss=accept_data_loss,
            state_dir=state_dir,
            timeout_s=timeout_s,
            opts=opts,
        )


class _One(_Objects):
    """One object, named as the resource is."""

    KIND = ""
    object_name: str

    def __init__(
        self,
        name: str,
        spec: Mapping[str, Input[Any]],
        needs: Iterable[_Objects] = (),
        *,
        accept_data_loss: bool = False,
        state_dir: str | None = None,
        timeout_s: float = 120.0,
        opts: ResourceOptions | None = None,
    ) -> None:
        """`spec`: the object's spec as in YAML. `needs`: resources that it refers to, besides those named."""
        self.object_name = name
        one = {"apiVersion": API_VERSION, "kind": self.KIND, "metadata": {"name": name}, "spec": dict(spec)}
        super().__init__(
            self.KIND,
            name,
            [one],
            needs,
            accept_data_loss=accept_data_loss,
            state_dir=state_dir,
            timeout_s=timeout_s,
            opts=opts,
        )


class Cloud(_One):
    """A provider's region with its zones."""

    KIND = "Cloud"


class BrokerCluster(_One):
    """Brokers in one cloud: `BrokerCluster("b", {"brokers": 2}, cloud)`."""

    KIND = "BrokerCluster"

    def __init__(self, name: str, spec: Mapping[str, Input[Any]], cloud: Cloud | str, **options: Any) -> None:
        where, needs = _named(cloud)
        super().__init__(name, {"cloud": where, **spec}, needs, **options)


class Topic(_One):
    """A topic on clusters: `Topic("orders", {"partitions": 4}, [cluster])`."""

    KIND = "Topic"

    def __init__(
        self, name: str, spec: Mapping[str, Input[Any]], clusters: Sequence[BrokerCluster | str], **options: Any
    ) -> None:
        pairs = [_named(cluster) for cluster in clusters]
        needs = [one for _, some in pairs for one in some]
        super().__init__(name, {"clusters": [where for where, _ in pairs], **spec}, needs, **options)


class Database(_One):
    """A time-series database in one cloud."""

    KIND = "Database"

    def __init__(self, name: str, spec: Mapping[str, Input[Any]], cloud: Cloud | str, **options: Any) -> None:
        where, needs = _named(cloud)
        super().__init__(name, {"cloud": where, **spec}, [*needs, *options.pop("needs", ())], **options)


def _named(resource: _One | str) -> tuple[str, tuple[_One, ...]]:
    return (resource, ()) if isinstance(resource, str) else (resource.object_name, (resource,))
