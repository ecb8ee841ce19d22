"""Specs: a checked set of objects, with the place in a file where each was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.api.databases import Database
from controlplane.api.kinds import BrokerCluster, Cloud, Resource, Topic, type_of_kind
from controlplane.api.source import Document, dotted

Key = tuple[str, str]
"""(kind, name)."""


@dataclass(frozen=True, slots=True)
class Specs:
    """Objects by name. `documents` has those that came from a file; objects from the store have none."""

    clouds: Mapping[str, Cloud] = field(default_factory=dict)
    clusters: Mapping[str, BrokerCluster] = field(default_factory=dict)
    topics: Mapping[str, Topic] = field(default_factory=dict)
    databases: Mapping[str, Database] = field(default_factory=dict)
    documents: Mapping[Key, Document] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(resources: Iterable[Resource], documents: Mapping[Key, Document] | None = None) -> Specs:
        """Collect objects, sorted by name. Of two with one key the later stands; `load` has refused such input."""
        clouds: dict[str, Cloud] = {}
        clusters: dict[str, BrokerCluster] = {}
        topics: dict[str, Topic] = {}
        databases: dict[str, Database] = {}
        for resource in sorted(resources, key=lambda r: r.metadata.name):
            match resource:
                case Cloud():
                    clouds[resource.metadata.name] = resource
                case BrokerCluster():
                    clusters[resource.metadata.name] = resource
                case Topic():
                    topics[resource.metadata.name] = resource
                case Database():
                    databases[resource.metadata.name] = resource
        return Specs(clouds, clusters, topics, databases, dict(documents or {}))

    def __iter__(self) -> Iterator[Resource]:
        yield from self.clouds.values()
        yield from self.clusters.values()
        yield from self.topics.values()
        yield from self.databases.values()

    def __len__(self) -> int:
        return len(self.clouds) + len(self.clusters) + len(self.topics) + len(self.databases)

    def merged_over(self, base: Specs) -> Specs:
        """These objects, and those of `base` that are not among them."""
        mine = {key_of(resource) for resource in self}
        rest = [resource for resource in base if key_of(resource) not in mine]
        return Specs.of([*rest, *self], self.documents)

    def plain(self) -> dict[Key, dict[str, Any]]:
        """Each object as JSON-ready dicts, defaults written out: what the store keeps and plans compare."""
        return {key_of(resource): to_plain(resource) for resource in self}

    def where(self, kind: str, name: str, *path: str | int) -> str:
        """Where a field was written, to begin an error with: `file:line: spec.wal.mode`, or `BrokerCluster b:
        spec.wal.mode` when it came from no file."""
        document = self.documents.get((kind, name))
        place = f"{document.file}:{document.line_of(path)}" if document else f"{kind} {name}"
        return f"{place}: {dotted(path)}" if path else place


def key_of(resource: Resource) -> Key:
    return resource.kind, resource.metadata.name


def to_plain(resource: Resource) -> dict[str, Any]:
    """The object as JSON-ready dicts; `from_plain` reads it back to an equal object."""
    return resource.model_dump(mode="json", by_alias=True, exclude_none=True)


def from_plain(plain: Mapping[str, Any]) -> Resource:
    """An object that `to_plain` made and the store kept.

    Raises:
        pydantic.ValidationError: not such an object. User input goes through `load`, whose errors have places.
    """
    return type_of_kind[str(plain.get("kind"))].model_validate(dict(plain))
