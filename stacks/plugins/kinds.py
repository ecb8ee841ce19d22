"""What a resource type of an official SDK is to the lab: which inputs it has, which of them replace it when they
change, what the cloud adds, and what stands behind it. Ids and outputs are written as templates over the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stacks.plugins.shelf import Plain
from stacks.plugins.site import Site

Output = str | Callable[[Site, str, Plain], Any]
"""A template, or a function of the site, the id and the inputs."""


class Backing(Protocol):
    """The real thing in the lab behind a resource. Methods block, and may raise what the providers' adapters do."""

    def create(self, site: Site, inputs: Plain) -> str | None:
        """Make it. The id, where the lab's cloud gives one.

        Raises:
            Conflict: it is there already, made by somebody else.
        """
        ...

    def read(self, site: Site, id_: str, inputs: Plain) -> Plain | None:
        """Its inputs as they are in the lab, as far as it says; None: it is gone."""
        ...

    def delete(self, site: Site, id_: str, inputs: Plain) -> None:
        """Remove it; one that is gone is passed over."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type. Without `backing` it is kept on the plugins' shelf and nowhere else.

    Templates know the inputs, `{id}`, `{region}`, `{account}`, and `{fresh}` (17 hex digits, others each time) and
    `{guid}`.
    """

    token: str
    id: str
    """A template."""
    outputs: Mapping[str, Output] = field(default_factory=dict)
    """What the cloud adds to the inputs. A preview of a create does not know it yet."""
    needs: tuple[str, ...] = ()
    """Inputs that must be given."""
    named: str | None = None
    """An input that is made up from the resource's name where it is left out."""
    guid: bool = False
    """Whether what is made up is a GUID."""
    fixed: frozenset[str] = frozenset()
    """Inputs that the cloud cannot change in place: the resource is replaced."""
    stuck: frozenset[str] = frozenset()
    """Inputs that the cloud changes in place and the lab cannot: refused."""
    refers: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """Inputs that name another resource: its type, and by which of its inputs; None: by its id."""
    backing: Backing | None = None

    def identify(self, site: Site, inputs: Plain) -> str:
        """A new resource's id."""
        return _filled(self.id, site, "", inputs)

    def completed(self, site: Site, id_: str, inputs: Plain) -> Plain:
        """All properties: the inputs, and what the cloud adds.

        Raises:
            Invalid: an input does not fit the site.
        """
        added = {
            name: _filled(output, site, id_, inputs) if isinstance(output, str) else output(site, id_, inputs)
            for name, output in self.outputs.items()
        }
        return {**added, **inputs}


def _filled(template: str, site: Site, id_: str, inputs: Plain) -> str:
    token = site.rng.token()
    guid = "-".join((token[:8], token[8:12], token[12:16], token[16:20], token[20:]))
    return template.format(
        **{**inputs, "id": id_, "region": site.region, "account": site.account, "fresh": token[:17], "guid": guid}
    )


def same(name: str, otherwise: Any = None) -> Output:
    """An output that repeats an input."""
    return lambda site, id_, inputs: inputs.get(name, otherwise)
