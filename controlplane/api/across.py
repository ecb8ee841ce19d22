"""How a problem between objects is said: where it was written, what is wrong, what was perhaps meant."""

from __future__ import annotations

from controlplane.api.complaints import did_you_mean
from controlplane.api.source import Document, Problem, dotted
from controlplane.api.specs import Specs


def unknown(specs: Specs, kind: str, name: str, path: tuple[str | int, ...], wanted: str, given: str) -> Problem:
    """A reference to an object that is not there."""
    known = list(
        {"Cloud": specs.clouds, "BrokerCluster": specs.clusters, "Database": specs.databases, "Topic": specs.topics}[
            wanted
        ]
    )
    otherwise = f"known: {', '.join(known)}" if known else f"add a document of kind {wanted} named {given}"
    return at(specs, kind, name, path, f"no {wanted} is named {given}", did_you_mean(given, known, otherwise))


def at(specs: Specs, kind: str, name: str, path: tuple[str | int, ...], what: str, hint: str | None = None) -> Problem:
    """A problem of an object's field; its line is known where the object came from a file."""
    document = specs.documents.get((kind, name)) or Document(f"{kind} {name}", 0)
    return Problem(document.file, document.line_of(path), dotted(path), what, hint)
