"""From a pydantic kind to the structural OpenAPI v3 schema of a CustomResourceDefinition. Pure.

Structural means: no references, one type a field, unknown fields pruned. What a field's own validator refuses is said
by the schema here; what compares fields is said in CEL (`crds_rules.py`). A validator that neither knows is an error,
so that no rule of the specs is left out in silence.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from controlplane.api.crds_rules import ANSWERED, RULES, Rule, size_rule
from controlplane.api.quantities import NAME_CHARS_MAX, NAME_PATTERN
from providers.base.errors import Internal

Schema = dict[str, Any]

TEXT_CHARS_MAX = 1024
"""Of free text. CEL's cost is reckoned beforehand from what a text may hold at most."""
TABLES_MAX = 250
"""Of one database. An object has at most 1.5 MiB in etcd, and the rules' cost is reckoned for full lists of lists."""
ZONES_NAMED_MAX = 8
"""Keys of a map by zone: no cloud has more zones, so more cannot be meant."""
_NAMED_ONCE = ("DatabaseSpec.tables", "Table.columns")
"""Lists in which each name stands once."""
_BYTES_PATTERN = r"^[0-9]{1,15}[ \t\n\r\f\v]?([KMGT]iB|)$"
_DURATION_PATTERN = r"^[0-9]{1,9}(ms|s|m|h|d)$"
_DURATION_CHARS_MAX = 11
_PORT = "([0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"


def object_schema(model: type[BaseModel]) -> Schema:
    """The schema of `model` as an object.

    Raises:
        Internal: a validator or a type that custom resources have no words for yet.
    """
    answered = {name for name in ANSWERED if name.startswith(f"{model.__name__}.")}
    for name in model.__pydantic_decorators__.model_validators:
        if f"{model.__name__}.{name}" not in answered:
            raise Internal(f"no CEL rule stands for the validator {model.__name__}.{name}: see crds_rules.py")
    properties: dict[str, Any] = {}
    required = []
    for name, field in model.model_fields.items():
        alias = field.alias or name
        inner = _of(field.annotation, field.metadata, f"{model.__name__}.{name}")
        if field.description:
            inner = {"description": inspect.cleandoc(field.description), **inner}
        if field.is_required():
            required.append(alias)
        elif (default := _default(field)) is not None:
            inner["default"] = default
        if f"{model.__name__}.{name}" in _NAMED_ONCE:
            inner |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        if f"{model.__name__}.{name}" == "DatabaseSpec.tables":
            inner["maxItems"] = TABLES_MAX
        if inner.get("pattern") == _BYTES_PATTERN:
            _add_rules(inner, [size_rule(alias, inner["minimum"], inner["maximum"])])
        properties[alias] = inner
    schema: Schema = {"type": "object", "properties": properties}
    if model.__doc__:
        schema = {"description": inspect.cleandoc(model.__doc__), **schema}
    if required:
        schema["required"] = required
    _add_rules(schema, RULES.get(model.__name__, ()))
    return schema


def _add_rules(schema: Schema, rules: Iterable[Rule]) -> None:
    listed = [rule.plain() for rule in rules]
    if listed:
        schema["x-kubernetes-validations"] = listed


def _default(field: FieldInfo) -> Any:
    """The default as JSON, whole, for rules are tried on it; None: there is none."""
    value = field.get_default(call_default_factory=False)
    if value is None or value is PydanticUndefined:
        return None
    return to_jsonable_python(value, by_alias=True, exclude_none=True)


def _of(annotation: Any, metadata: Iterable[Any], where: str) -> Schema:
    """The schema of a field's type, with what is annotated to it."""
    notes = list(metadata)
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *inner = typing.get_args(annotation)
        notes = [*inner, *notes]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        # A field that may be left out. A null is dropped by the API server before anything else.
        members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(members) != 1:
            raise Internal(f"{where} has several types, and a structural schema has one")
        return _of(members[0], notes, where)
    schema = _bare(annotation, origin, where)
    for note in notes:
        _apply(schema, note, where)
    return schema


def _bare(annotation: Any, origin: Any, where: str) -> Schema:
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return {"type": "integer" if isinstance(arguments[0], int) else "string", "enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], (), where)}
    if origin is dict:
        return {
            "type": "object",
            "additionalProperties": _of(arguments[1], (), where),
            "maxProperties": ZONES_NAMED_MAX,
        }
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return object_schema(annotation)
    if annotation is str:
        return {"type": "string", "maxLength": TEXT_CHARS_MAX}
    if annotation is bool:
        return {"type": "boolean"}
    if annotation is int:
        return {"type": "integer", "format": "int64"}
    raise Internal(f"{where} has a type that custom resources have no words for: {annotation!r}")


def _apply(schema: Schema, note: Any, where: str) -> None:
    """Narrow `schema` by one annotation."""
    array = schema.get("type") == "array"
    match note:
        case FieldInfo():
            for inner in note.metadata:
                _apply(schema, inner, where)
        case Ge():
            schema["minimum"] = note.ge
        case Le():
            schema["maximum"] = note.le
        case MinLen():
            schema["minItems" if array else "minLength"] = note.min_length
        case MaxLen():
            schema["maxItems" if array else "maxLength"] = note.max_length
        case BeforeValidator() | AfterValidator():
            function = note.func
            name = f"{function.__module__.rpartition('.')[2]}.{getattr(function, '__name__', '?')}"
            if name not in _VALIDATORS:
                raise Internal(f"no schema stands for the validator {name} of {where}: see crds_schema.py")
            _VALIDATORS[name](schema)
        case _ if isinstance(getattr(note, "pattern", None), str):
            schema["pattern"] = note.pattern


def _int_or_text(schema: Schema, **more: Any) -> None:
    schema.pop("type", None)
    schema.pop("format", None)
    schema.pop("maxLength", None)
    schema.update({"x-kubernetes-int-or-string": True, **more})


def _duration(schema: Schema) -> None:
    _int_or_text(schema, pattern=_DURATION_PATTERN, maxLength=_DURATION_CHARS_MAX, minimum=0, maximum=0)


def _bytes(schema: Schema) -> None:
    _int_or_text(schema, pattern=_BYTES_PATTERN, maxLength=19)


def _once(schema: Schema) -> None:
    # A set's items have one type; zones may be numbers or text, and RULES compares them as text.
    if not schema["items"].get("x-kubernetes-int-or-string"):
        schema["x-kubernetes-list-type"] = "set"


def _called(schema: Schema) -> None:
    schema.update(pattern='^[^\\x00-\\x1f"`/\\\\]+$', maxLength=200)
    schema["not"] = {"pattern": "^__"}


def _type(schema: Schema) -> None:
    schema["enum"] = [*schema["enum"], *(f"timestamp_{unit}" for unit in ("s", "ms", "us", "ns"))]


def _nothing(_: Schema) -> None:
    """It changes a value, or words a refusal, that the schema has already."""


_VALIDATORS: Mapping[str, Callable[[Schema], None]] = {
    "quantities._name": lambda s: s.update(pattern=NAME_PATTERN, minLength=1, maxLength=NAME_CHARS_MAX),
    "quantities._zone": _int_or_text,
    "quantities.parse_bytes": _bytes,
    "quantities.parse_duration": _duration,
    "quantities._one_or_many": _nothing,
    "model.each_once": _once,
    "kinds._engine": _nothing,
    "kinds._folder": lambda s: s.update(pattern=r"^/[^\x00]*[^/\x00][^\x00]*$"),
    "databases._wal_mode": _nothing,
    "databases._off": _nothing,
    "databases._type": _type,
    "databases._called": _called,
    "kubernetes._quantity": lambda s: _int_or_text(s, pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$", minimum=0),
    "kubernetes._image": lambda s: s.update(pattern=r"^(?i:[a-z0-9][-a-z0-9._:/]*(@sha256:[0-9a-f]{64})?)$"),
    "kubernetes._endpoint": lambda s: s.update(pattern=f"^[A-Za-z0-9][-A-Za-z0-9._]*:{_PORT}$"),
    "kubernetes._class": lambda s: s.update(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
    "listeners._reference": lambda s: s.update(
        pattern="^[^{}\"'\\n]+$", **{"not": {"pattern": "^-----"}}, minLength=1, maxLength=TEXT_CHARS_MAX
    ),
    "listeners._principal": lambda s: s.update(pattern="^User:[\\s\\S]"),
}
"""What each field's validator refuses, in the schema's words."""
