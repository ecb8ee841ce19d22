"""What all parts of a kind have in common: frozen, camelCase in YAML, unknown fields refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from controlplane.api.quantities import Name, Refused


class Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=False, use_attribute_docstrings=True
    )


class Metadata(Model):
    """What an object is called."""

    name: Name
    """Unique among objects of its kind."""


def each_once(items: tuple[str, ...]) -> tuple[str, ...]:
    """A list in which nothing stands twice."""
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise Refused(f"{twice[0]!r} stands there twice")
    return items
