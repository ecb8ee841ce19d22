"""`pulumi-resource-yunhe`: the provider plugin that the Pulumi engine starts. It translates gRPC calls into
`stacks.control` and nothing more.

A plugin of its own and not a dynamic provider: those cannot import, cannot be cancelled, and say nothing about a create
in a preview (docs/decisions/0024-pulumi-applies-plans.md).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pulumi.runtime.proto import provider_pb2

from controlplane.api.specs import Key
from controlplane.cli.plans import recorded_here
from controlplane.server.files import StateDir
from providers.base.errors import Invalid, YunheError
from stacks import control
from stacks.control import Bundle
from stacks.wire import (
    Plain,
    Plugin,
    default_state_dir,
    engine_address,
    has_unknown,
    nothing,
    plain_of,
    sentence,
    serve,
    translated,
)

VERSION = "0.1.0"
ERRORS_SHOWN_MAX = 20


class Provider(Plugin):
    """Yunhe's own resources. Keeps no state but whether the user has cancelled."""

    def __init__(self, engine: str) -> None:
        super().__init__(engine, "yunhe", VERSION)

    @translated
    def Check(self, request: Any, context: Any) -> Any:
        """Validate as the command line does, and show the plan."""
        news, olds = plain_of(request.news), plain_of(request.olds)
        news = {name: value for name, value in news.items() if name not in ("plan", "actions")}
        failures: list[tuple[str, str]] = []
        if not has_unknown(news):
            try:
                bundle = bundle_of(news)
                if olds and not has_unknown(olds) and olds.get("stateDir") != news.get("stateDir"):
                    raise Invalid(
                        f"stateDir cannot change from {olds.get('stateDir')} to {news.get('stateDir')}",
                        hint="make another stack for it",
                    )
                shown = control.plan(bundle, _removed(bundle, olds))
                if shown.at_risk and not bundle.accept_data_loss:
                    raise control.refused_loss(shown)
                news |= {"plan": shown.hash, "actions": shown.digest}
                if not shown.empty:
                    self.log(request.urn, f"plan {shown.hash[:8]}\n{shown.text}")
            except YunheError as error:
                failures = [(name, self.masked(said)) for name, said in _failures(error)]
        return provider_pb2.CheckResponse(
            inputs=self.properties(news),
            failures=[provider_pb2.CheckFailure(property=p, reason=r) for p, r in failures],
        )

    @translated
    def Diff(self, request: Any, context: Any) -> Any:
        """Changed when the plan has actions, when the inputs say something else, or when what should run does not."""
        news, olds = plain_of(request.news), plain_of(request.old_inputs)
        changed = has_unknown(news)
        if not changed:
            bundle = bundle_of(news)
            known = recorded_here(bundle.state_dir).as_specs()
            changed = (
                not control.plan(bundle, _removed(bundle, olds), alone=True).empty
                or not control.same(bundle.objects, olds.get("objects", []), known)
                or olds.get("acceptDataLoss") != news.get("acceptDataLoss")
                or not control.runs(bundle)
            )
        kind = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=kind, diffs=["objects"] if changed else [])

    @translated
    def Create(self, request: Any, context: Any) -> Any:
        news = plain_of(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        id_ = _id(bundle_of(news))
        outputs = self._bring_about(id_, news, {}, request.urn, context)
        return provider_pb2.CreateResponse(id=id_, properties=self.properties(outputs))

    @translated
    def Update(self, request: Any, context: Any) -> Any:
        if request.preview:
            return provider_pb2.UpdateResponse(properties=request.news)
        outputs = self._bring_about(
            request.id, plain_of(request.news), plain_of(request.old_inputs), request.urn, context
        )
        return provider_pb2.UpdateResponse(properties=self.properties(outputs))

    def _bring_about(self, id_: str, news: Plain, olds: Plain, urn: str, context: Any) -> Plain:
        bundle = bundle_of(news)
        approved = (str(news.get("plan", "")), str(news.get("actions", ""))) if "plan" in news else None
        before = recorded_here(bundle.state_dir).revision
        try:
            control.apply(
                bundle,
                _removed(bundle, olds),
                approved=approved,
                say=functools.partial(self.log, urn, passing=True),
                cancelled=self._cancelled.is_set,
            )
        except YunheError as error:
            if recorded_here(bundle.state_dir).revision == before:
                raise
            # It was accepted, so that the objects exist: the engine has to know of them to go on, or to remove them.
            self.refuse(context, id_, news, error)
        return _outputs(news, bundle)

    @translated
    def Read(self, request: Any, context: Any) -> Any:
        """What is there: for refresh with the inputs of before, for import by `Kind/name` alone."""
        olds = plain_of(request.inputs)
        state_dir = StateDir(Path(str(olds.get("stateDir") or default_state_dir())))
        keys = bundle_of(olds).keys if olds.get("objects") else control.keys_of(request.id)
        found, _ = control.read(state_dir, keys)
        if not found:
            return provider_pb2.ReadResponse()
        inputs = {"stateDir": str(state_dir.root), "acceptDataLoss": False, **olds}
        known = recorded_here(state_dir).as_specs()
        if not olds.get("objects") or not control.same(found, olds["objects"], known):
            inputs["objects"] = found
        bundle = bundle_of(inputs)
        return provider_pb2.ReadResponse(
            id=request.id, inputs=self.properties(inputs), properties=self.properties(_outputs(inputs, bundle))
        )

    @translated
    def Delete(self, request: Any, context: Any) -> Any:
        bundle = bundle_of(plain_of(request.properties))
        say = functools.partial(self.log, request.urn, passing=True)
        control.remove(bundle, say=say, cancelled=self._cancelled.is_set)
        return nothing()


def bundle_of(inputs: Mapping[str, Any]) -> Bundle:
    """A resource's inputs by type.

    Raises:
        Invalid: no objects, or not objects.
    """
    objects = inputs.get("objects")
    if not isinstance(objects, list) or not objects or not all(isinstance(one, dict) for one in objects):
        raise Invalid("objects must be a list of one object or more", hint="each with kind, metadata and spec")
    return Bundle(
        StateDir(Path(str(inputs.get("stateDir") or default_state_dir()))),
        tuple(objects),
        tuple(inputs.get("requires") or ()),
        bool(inputs.get("acceptDataLoss")),
        float(inputs.get("timeoutS") or control.TIMEOUT_S),
    )


def _removed(bundle: Bundle, olds: Mapping[str, Any]) -> set[Key]:
    """Objects of the resource as it was that it does not have any more."""
    if not olds.get("objects") or has_unknown(olds):
        return set()
    return set(bundle_of(olds).keys) - set(bundle.keys)


def _outputs(inputs: Mapping[str, Any], bundle: Bundle) -> Plain:
    _, states = control.read(bundle.state_dir, bundle.keys)
    return {**inputs, "states": states, "bootstrapServers": control.endpoints(bundle.state_dir)}


def _id(bundle: Bundle) -> str:
    return ",".join("/".join(key) for key in bundle.keys)


def _failures(error: YunheError) -> list[tuple[str, str]]:
    """One a problem, each with the sentence that the command line shows."""
    problems = error.fields.get("errors") or []
    if len(problems) < 2:
        return [("objects", sentence(error))]
    shown = []
    for one in problems[:ERRORS_SHOWN_MAX]:
        what = ": ".join(str(part) for part in (one["file"], one["path"], one["message"]) if part)
        shown.append(("objects", f"{what} ({one['hint']})" if one.get("hint") else what))
    return shown


def main() -> None:
    """The plugin's process."""
    serve(Provider(engine_address()))


if __name__ == "__main__":
    main()
