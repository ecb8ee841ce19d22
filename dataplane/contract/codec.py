"""JSON form of the contract's dataclasses: sorted keys, enums by value, tuples as lists. Unknown fields are refused,
not skipped. A field that came later and says nothing unless it is used is left out while it is None (`LEFT_OUT`), so
that what does not use it has the bytes that it had, and older readers take it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from typing import Any, TypeVar, cast

from providers.base.errors import Invalid

T = TypeVar("T")
LEFT_OUT = types.MappingProxyType({"left_out": "while None"})
"""Metadata of a dataclass's field, whose default is None."""


def to_json(value: object) -> bytes:
    """Encode a contract dataclass as UTF-8 JSON."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":")).encode()


def to_plain(value: object) -> Any:
    """The dataclass as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(item)
            for f in dataclasses.fields(value)
            if (item := getattr(value, f.name)) is not None or "left_out" not in f.metadata
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], data: bytes) -> T:
    """Decode what `to_json` made.

    Raises:
        Invalid: not JSON, a missing, unknown or ill-typed field.
    """
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise Invalid(f"not a {kind.__name__}: {error}") from error
    return from_plain(kind, plain)


def from_plain(kind: type[T], plain: Any) -> T:
    """Build the dataclass from dicts, lists and scalars.

    Raises:
        Invalid: a missing, unknown or ill-typed field.
    """
    return cast(T, _build(kind, plain, kind.__name__))


def _build(kind: Any, plain: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if plain is None and type(None) in typing.get_args(kind):
            return None
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        if len(inner) == 1:
            return _build(inner[0], plain, path)
        # Scalars alone: the value says which of them it is.
        _expect(type(plain) in inner, path, f"one of {', '.join(arg.__name__ for arg in inner)}")
        return plain
    if origin is tuple:
        _expect(isinstance(plain, list), path, "a list")
        return tuple(_build(typing.get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(plain))
    if origin is dict:
        _expect(isinstance(plain, dict), path, "an object")
        return {key: _build(typing.get_args(kind)[1], item, f"{path}.{key}") for key, item in plain.items()}
    if dataclasses.is_dataclass(kind):
        _expect(isinstance(plain, dict), path, "an object")
        hints = _hints(cast(Any, kind))
        fields = {f.name: f for f in dataclasses.fields(kind)}
        unknown = sorted(set(plain) - set(fields))
        _expect(not unknown, path, f"without unknown fields ({', '.join(unknown)})")
        missing = [
            n
            for n, f in fields.items()
            if n not in plain and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        _expect(not missing, path, f"complete (missing {', '.join(missing)})")
        return cast(Any, kind)(**{name: _build(hints[name], value, f"{path}.{name}") for name, value in plain.items()})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(plain)
        except ValueError as error:
            raise Invalid(f"{path}: {plain!r} is not one of {', '.join(str(m.value) for m in kind)}") from error
    if kind is float:
        _expect(isinstance(plain, (int, float)) and not isinstance(plain, bool), path, "a number")
        return float(plain)
    if kind in (int, str, bool):
        _expect(type(plain) is kind, path, f"of type {kind.__name__}")
        return plain
    raise Invalid(f"{path}: no JSON form for {kind!r}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields: finding them costs more than all else of a small object."""
    return typing.get_type_hints(kind)


def _expect(condition: bool, path: str, what: str) -> None:
    if not condition:
        raise Invalid(f"{path} must be {what}")
