"""YAML files to `Specs`, or one `Invalid` that lists everything wrong with them, each at `file:line`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from controlplane.api.check import problems_across
from controlplane.api.complaints import did_you_mean, problems_of
from controlplane.api.kinds import API_VERSION, KINDS, KINDS_TO_COME, Resource, type_of_kind
from controlplane.api.source import Document, Problem, documents, read_text
from controlplane.api.specs import Key, Specs, key_of
from providers.base.errors import Invalid

PROBLEMS_SHOWN_MAX = 20


def load(paths: Iterable[str | Path], *, known: Specs | None = None) -> Specs:
    """Read, validate and cross-check all documents of all files.

    `known`: objects already applied; references may point at them, and the result does not contain them.

    Raises:
        Invalid: with one line for each problem, at most twenty. `fields["errors"]` has them as data.
    """
    return load_texts([(str(path), read_text(Path(path))) for path in paths], known=known)


def load_texts(texts: Iterable[tuple[str, str]], *, known: Specs | None = None) -> Specs:
    """The same for (file name, text) pairs: standard input, a request's body."""
    names: list[str] = []
    found: list[Document] = []
    problems: list[Problem] = []
    for file, text in texts:
        names.append(file)
        found += documents(text, file)
    if not found:
        raise Invalid(f"{', '.join(names) or 'the input'} holds no objects", hint=f"add one of: {', '.join(KINDS)}")
    resources: dict[Key, Resource] = {}
    origins: dict[Key, Document] = {}
    for document in found:
        resource, wrong = _resource(document)
        problems += wrong
        if resource is None:
            continue
        key = key_of(resource)
        if key in resources:
            first = origins[key]
            what = f"a second {key[0]} named {key[1]}; the first is at {first.file}:{first.line}"
            line = document.line_of(("metadata", "name"))
            problems.append(Problem(document.file, line, "metadata.name", what, "rename or remove one"))
            continue
        resources[key], origins[key] = resource, document
    specs = Specs.of(resources.values(), origins)
    if not problems:
        # Only whole input is cross-checked: a reference to an object that failed above is no second error.
        whole = specs.merged_over(known) if known is not None else specs
        problems += problems_across(whole)
    if problems:
        raise refusal(problems)
    return specs


def refusal(problems: Iterable[Problem]) -> Invalid:
    """One error of all problems, in the order of files and lines. A single problem's hint becomes the error's own."""
    ordered = sorted(problems, key=lambda p: (p.file, p.line))
    errors = [{"file": p.file, "line": p.line, "path": p.path, "message": p.what, "hint": p.hint} for p in ordered]
    if len(ordered) == 1:
        only = ordered[0]
        return Invalid(only.sentence(), hint=only.hint, errors=errors)
    shown = [f"{p.sentence()} ({p.hint})" if p.hint else p.sentence() for p in ordered[:PROBLEMS_SHOWN_MAX]]
    if len(ordered) > PROBLEMS_SHOWN_MAX:
        shown.append(f"… and {len(ordered) - PROBLEMS_SHOWN_MAX} more")
    return Invalid("\n".join(shown), errors=errors[:PROBLEMS_SHOWN_MAX])


def _resource(document: Document) -> tuple[Resource | None, list[Problem]]:
    value = document.value
    if not isinstance(value, dict):
        what = "a document must hold fields: apiVersion, kind, metadata, spec"
        return None, [*document.problems, Problem(document.file, document.line, "", what)]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in type_of_kind:
        return None, [*document.problems, _kind_problem(document, value)]
    if value.get("apiVersion") != API_VERSION and "apiVersion" in value:
        line = document.line_of(("apiVersion",))
        what = f"{value['apiVersion']!r} is not {API_VERSION}"
        return None, [*document.problems, Problem(document.file, line, "apiVersion", what, f"write {API_VERSION}")]
    try:
        resource = type_of_kind[kind].model_validate(value)
    except ValidationError as error:
        return None, [*document.problems, *problems_of(error, type_of_kind[kind], document)]
    return (None if document.problems else resource), document.problems


def _kind_problem(document: Document, value: Mapping[str, Any]) -> Problem:
    line = document.line_of(("kind",))
    allowed = ", ".join(KINDS)
    if "kind" not in value:
        return Problem(document.file, line, "kind", "is required", f"one of: {allowed}")
    kind = value["kind"]
    if kind in KINDS_TO_COME:
        return Problem(document.file, line, "kind", f"{kind} is not here yet; today: {allowed}", "see README.md")
    return Problem(document.file, line, "kind", f"{kind!r} is not one of {allowed}", did_you_mean(kind, KINDS))


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one document of any kind."""
    models = list(type_of_kind.values())
    refs, definitions = models_json_schema([(model, "validation") for model in models], by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Yunhe objects, {API_VERSION}",
        "oneOf": [refs[(model, "validation")] for model in models],
        **definitions,
    }
