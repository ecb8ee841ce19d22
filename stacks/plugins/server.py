"""A plugin's process: `python -m stacks.plugins PACKAGE`. Translates the engine's calls into what `kinds.py` says.

A preview changes nothing, and leaves open what is not known yet. What comes as a secret goes back as one; the shelf,
which stands for the cloud, knows it in clear, as a cloud does.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulumi.runtime.proto import provider_pb2

from providers.base.errors import Invalid, NotFound, YunheError
from stacks.plugins.kinds import Kind
from stacks.plugins.site import Site, find_site
from stacks.wire import (
    UNKNOWN,
    Plain,
    Plugin,
    default_state_dir,
    has_unknown,
    nothing,
    plain_of,
    sentence,
    translated,
)

OF_NODES = re.compile(
    r"aws:(eks/|ec2/(internetGateway|natGateway|route):|iam/rolePolicyAttachment:)"
    r"|azure-native:(containerservice:|managedidentity:Federated)"
    r"|gcp:(container/|compute/router|projects/iAMMember:|serviceaccount/iAMMember:)"
    r"|alicloud:(cs/|ecs/ecsKeyPair:)"
)
"""Types that a cell has with `kubernetes` alone. Which of them the engine asks for first is open."""
SUFFIX_DIGITS = 7
"""Of a made-up name, as the official plugins write them."""


@dataclass(frozen=True, slots=True)
class Package:
    """An official SDK. `region`: the configuration key that says it, without the package's name."""

    name: str
    provider: str
    region: str
    distribution: str

    @property
    def version(self) -> str:
        """Of the installed SDK, for that is the one that asks for this plugin; where it is not installed, 0.0.0."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "0.0.0"

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """By type."""
        module = importlib.import_module(f"stacks.plugins.{self.provider}")
        return {kind.token: kind for kind in module.KINDS}


PACKAGES = {
    one.name: one
    for one in (
        Package("aws", "aws", "region", "pulumi-aws"),
        Package("azure-native", "azure", "location", "pulumi-azure-native"),
        Package("gcp", "gcp", "region", "pulumi-gcp"),
        Package("alicloud", "aliyun", "region", "pulumi-alicloud"),
    )
}


class LabPlugin(Plugin):
    """One package's plugin."""

    def __init__(self, engine: str, package: Package, state_dir: str | None = None) -> None:
        super().__init__(engine, package.name, package.version)
        self._of = package
        self._kinds = package.kinds
        self._state_dir = Path(state_dir or default_state_dir())
        self._region: str | None = None
        self._site: Site | None = None
        self._finding = threading.Lock()

    def Configure(self, request: Any, context: Any) -> Any:
        given = plain_of(request.args)
        region = given.get(self._of.region) or request.variables.get(f"{self._package}:config:{self._of.region}")
        self._region = str(region) if region and region != UNKNOWN else None
        return super().Configure(request, context)

    @property
    def site(self) -> Site:
        """Where it works, looked for once.

        Raises:
            Invalid: the lab has no such cloud.
        """
        with self._finding:
            if self._site is None:
                self._site = find_site(self._of.provider, self._state_dir, self._region)
            return self._site

    def _kind(self, urn: str) -> Kind:
        token = urn.split("::")[2].rpartition("$")[2]
        found = self._kinds.get(token)
        if found is None:
            raise self._unserved(token)
        return found

    def _unserved(self, what: str) -> Invalid:
        hint = f"it serves {', '.join(sorted(token.rpartition(':')[2] for token in self._kinds))}"
        if OF_NODES.match(what):
            hint = f"the lab has no Kubernetes service: rehearse cells without `kubernetes`; {hint}"
        return Invalid(f"the lab's plugin of {self._package} does not serve {what}", hint=hint)

    @translated
    def Invoke(self, request: Any, context: Any) -> Any:
        raise self._unserved(request.tok)

    @translated
    def Check(self, request: Any, context: Any) -> Any:
        """Fill in a name, and refuse what cannot be."""
        news, olds = plain_of(request.news), plain_of(request.olds)
        failures: list[tuple[str, str]] = []
        try:
            kind = self._kind(request.urn)
            _ = self.site
        except YunheError as error:
            failures.append(("", sentence(error)))
        else:
            if kind.named and not news.get(kind.named):
                news[kind.named] = olds.get(kind.named) or _made_up(kind, request)
            failures += [(name, f"{name} must be given") for name in kind.needs if news.get(name) in (None, "")]
            for name in sorted(kind.stuck):
                if olds and _changed(news, olds, name):
                    said = f"the lab cannot change {name} of {request.urn.rpartition('::')[2]} in place (a cloud can)"
                    failures.append((name, said))
        return provider_pb2.CheckResponse(
            inputs=self.properties(news),
            failures=[provider_pb2.CheckFailure(property=p, reason=r) for p, r in failures],
        )

    @translated
    def Diff(self, request: Any, context: Any) -> Any:
        kind = self._kind(request.urn)
        news, olds = plain_of(request.news), plain_of(request.old_inputs)
        ignored = set(request.ignoreChanges)
        changed = sorted(name for name in {*news, *olds} if name not in ignored and _changed(news, olds, name))
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=changed,
            replaces=[name for name in changed if name in kind.fixed],
            # Names are taken while the old one stands.
            deleteBeforeReplace=True,
        )

    @translated
    def Create(self, request: Any, context: Any) -> Any:
        kind, inputs = self._kind(request.urn), plain_of(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(
                properties=self.properties({**dict.fromkeys(kind.outputs, UNKNOWN), **inputs})
            )
        self._check_references(kind, inputs)
        site = self.site
        # All that can be refused is refused before anything is made.
        kind.completed(site, "", inputs)
        made = kind.backing.create(site, inputs) if kind.backing else None
        id_ = made or kind.identify(site, inputs)
        if kind.backing is None and site.shelf.get(kind.token, id_) is not None:
            raise Invalid(f"{id_} is there already", hint="choose another name, or import it")
        try:
            site.shelf.put(kind.token, id_, inputs)
        except YunheError as error:
            # It is there, and only its inputs could not be noted.
            self.refuse(context, id_, inputs, error)
        return provider_pb2.CreateResponse(id=id_, properties=self.properties(kind.completed(site, id_, inputs)))

    @translated
    def Read(self, request: Any, context: Any) -> Any:
        """What is there: for refresh, and for import by id alone."""
        kind, site = self._kind(request.urn), self.site
        kept = site.shelf.get(kind.token, request.id)
        inputs = kept if kept is not None else plain_of(request.inputs)
        if kind.backing is None:
            if kept is None:
                return provider_pb2.ReadResponse()
        else:
            live = kind.backing.read(site, request.id, inputs)
            if live is None:
                # It went behind our back; what is kept of it is of no use any more.
                site.shelf.remove(kind.token, request.id)
                return provider_pb2.ReadResponse()
            # What was left out stays left out; for an import all that the cloud says is taken.
            inputs = {**inputs, **{name: value for name, value in live.items() if name in inputs or not inputs}}
        before = plain_of(request.properties)
        properties = {**kind.completed(site, request.id, inputs), **_unmoved(kind, before), **inputs}
        return provider_pb2.ReadResponse(
            id=request.id, inputs=self.properties(inputs), properties=self.properties(properties)
        )

    @translated
    def Update(self, request: Any, context: Any) -> Any:
        kind, inputs = self._kind(request.urn), plain_of(request.news)
        before = plain_of(request.olds)
        if request.preview:
            return provider_pb2.UpdateResponse(properties=self.properties({**_unmoved(kind, before), **inputs}))
        self._check_references(kind, inputs)
        self.site.shelf.put(kind.token, request.id, inputs)
        properties = {**kind.completed(self.site, request.id, inputs), **_unmoved(kind, before), **inputs}
        return provider_pb2.UpdateResponse(properties=self.properties(properties))

    @translated
    def Delete(self, request: Any, context: Any) -> Any:
        kind, site = self._kind(request.urn), self.site
        if kind.backing is not None:
            inputs = site.shelf.get(kind.token, request.id) or plain_of(request.old_inputs)
            kind.backing.delete(site, request.id, inputs)
        site.shelf.remove(kind.token, request.id)
        return nothing()

    def _check_references(self, kind: Kind, inputs: Plain) -> None:
        """What a resource names must be there, as in a cloud: a program with its order wrong fails here too.

        Raises:
            NotFound: it is not.
        """
        for name, (token, field) in kind.refers.items():
            given = inputs.get(name)
            for value in given if isinstance(given, list) else [given] if given else []:
                every = self.site.shelf.all(token)
                if value not in (every if field is None else [one.get(field) for one in every.values()]):
                    raise NotFound(f"{name} {value}: there is no such {token.rpartition(':')[2]}")


def _made_up(kind: Kind, request: Any) -> str:
    """The same in preview and up: the engine gives a seed."""
    digest = hashlib.sha256(bytes(request.randomSeed) or request.urn.encode()).hexdigest()
    if kind.guid:
        return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
    return f"{request.urn.rpartition('::')[2]}-{digest[:SUFFIX_DIGITS]}"


def _unmoved(kind: Kind, before: Plain) -> Plain:
    """Outputs that were given at creation and stay."""
    return {name: value for name, value in before.items() if name in kind.outputs and name not in ("tagsAll",)}


def _changed(news: Plain, olds: Plain, name: str) -> bool:
    new, old = news.get(name), olds.get(name)
    return has_unknown(new) or (new != old and not (new in (None, [], {}) and old in (None, [], {})))
