"""pydantic's errors as sentences with a line, the allowed values and a hint."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from controlplane.api.quantities import Refused
from controlplane.api.source import Document, PathKey, Problem, dotted

_LIKE_A_SECRET = re.compile(r"secret|password|passwd|token|access.?key|account.?key|credential", re.IGNORECASE)


def did_you_mean(word: object, allowed: Iterable[str], otherwise: str | None = None) -> str | None:
    """A hint with the nearest of `allowed`, or `otherwise`."""
    choices = list(allowed)
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.7)
    return f"did you mean {lower[near[0]]}?" if near else otherwise


def problems_of(error: ValidationError, kind: type[BaseModel], document: Document) -> list[Problem]:
    """One Problem for each error of `error`, in the order of their lines."""
    return [_problem(item, kind, document) for item in error.errors(include_url=False)]


def _problem(item: Any, kind: type[BaseModel], document: Document) -> Problem:
    path: PathKey = tuple(part for part in item["loc"] if part != "[key]")
    type_, value, context = item["type"], item.get("input"), item.get("ctx", {})
    on_key = type_ in ("extra_forbidden", "missing")
    what, hint = _words(type_, value, context, path, kind, item["msg"])
    return Problem(document.file, document.line_of(path, key=on_key), dotted(path), what, hint)


def _words(
    type_: str, value: Any, context: dict[str, Any], path: PathKey, kind: type[BaseModel], message: str
) -> tuple[str, str | None]:
    shown = _shown(value)
    match type_:
        case "missing":
            return "is required", None
        case "extra_forbidden":
            allowed = _fields(kind, path[:-1])
            if _LIKE_A_SECRET.search(str(path[-1])):
                return (
                    "unknown field",
                    "secrets never stand in a spec: put them into a file and name it in real.credentialsFile",
                )
            return f"unknown field; allowed: {', '.join(allowed)}", did_you_mean(path[-1], allowed)
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            return f"{shown} is not {_one_of(allowed)}", did_you_mean(value, allowed)
        case "value_error":
            cause = context["error"]
            return str(cause), cause.hint if isinstance(cause, Refused) else None
        case "string_type":
            hint = f'quote it: "{value}"' if isinstance(value, (int, float, bool)) else None
            return f"must be text, not {shown}", hint
        case "int_type" | "int_parsing" | "int_from_float":
            return f"must be a whole number, not {shown}", "remove the quotes" if str(value).lstrip(
                "-"
            ).isdigit() else None
        case "bool_type":
            return f"must be true or false, not {shown}", None
        case "tuple_type":
            return f"must be a list, not {shown}", "write it as [a, b]"
        case "dict_type" | "model_type":
            return f"must hold fields, not {shown}", None
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {shown}", None
        case "less_than_equal":
            return f"must be at most {context['le']}, not {shown}", None
        case "too_short":
            return f"needs at least {context['min_length']}", None
        case "too_long":
            return f"may have at most {context['max_length']}", None
        case "string_too_short":
            return f"needs at least {context['min_length']} characters", None
        case "string_too_long":
            return f"may have at most {context['max_length']} characters", None
    return message, None


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping of fields"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _one_of(allowed: list[str]) -> str:
    return f"{allowed[0]}" if len(allowed) == 1 else f"one of {', '.join(allowed)}"


def _fields(kind: type[BaseModel], path: PathKey) -> list[str]:
    """The field names, as YAML writes them, of the model at `path`."""
    model = kind
    for part in path:
        for name, field in model.model_fields.items():
            if part == (field.alias or name):
                inner = _model_in(field.annotation)
                if inner is not None:
                    model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((model for arg in typing.get_args(annotation) if (model := _model_in(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
