"""`pulumi-resource-yunhe`: the provider plugin that the Pulumi engine starts. It translates gRPC calls into
`stacks.control` and nothing more.

A plugin of its own and not a dynamic provider: those cannot import, cannot be cancelled, and say nothing about a create
in a preview (docs/decisions/0024-pulumi-applies-plans.md).
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from google.rpc import status_pb2
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, plugin_pb2, provider_pb2, provider_pb2_grpc

from controlplane.api.specs import Key
from controlplane.cli.plans import recorded_here
from controlplane.server.files import StateDir
from providers.base.errors import Invalid, YunheError
from stacks import control
from stacks.control import Bundle

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What the engine sends for a value that is not known before `up`."""
VERSION = "0.1.0"
WORKERS = 16
GRACE_S = 5.0
"""What calls have to end when the engine does."""
ERRORS_SHOWN_MAX = 20
Plain = dict[str, Any]


def _translated(method: Callable[..., Any]) -> Callable[..., Any]:
    """An expected error becomes its sentence and its hint; a traceback is never a user's answer."""

    @functools.wraps(method)
    def call(self: Provider, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except YunheError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, _sentence(error))

    return call


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """One an engine. Keeps no state but whether the user has cancelled."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Calls that wait give up; what they began goes on."""
        self._cancelled.set()

    def Handshake(self, request: Any, context: Any) -> Any:
        self._engine = request.engine_address or self._engine
        return provider_pb2.ProviderHandshakeResponse()

    def Attach(self, request: Any, context: Any) -> Any:
        self._engine = request.address
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:
        return provider_pb2.GetSchemaResponse(schema='{"name": "yunhe", "version": "%s"}' % VERSION)  # noqa: UP031

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        # Secrets are not accepted: the engine then hands values over, and keeps what came of secret ones secret.
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Any:
        self.cancel()
        return empty_pb2.Empty()

    @_translated
    def Check(self, request: Any, context: Any) -> Any:
        """Validate as the command line does, and show the plan."""
        news, olds = plain_of(request.news), plain_of(request.olds)
        news = {name: value for name, value in news.items() if name not in ("plan", "actions")}
        failures: list[tuple[str, str]] = []
        if not _has_unknown(news):
            try:
                bundle = bundle_of(news)
                if olds and not _has_unknown(olds) and olds.get("stateDir") != news.get("stateDir"):
                    raise Invalid(
                        f"stateDir cannot change from {olds.get('stateDir')} to {news.get('stateDir')}",
                        hint="make another stack for it",
                    )
                shown = control.plan(bundle, _removed(bundle, olds))
                if shown.at_risk and not bundle.accept_data_loss:
                    raise control.refused_loss(shown)
                news |= {"plan": shown.hash, "actions": shown.digest}
                if not shown.empty:
                    self._log(request.urn, f"plan {shown.hash[:8]}\n{shown.text}")
            except YunheError as error:
                failures = _failures(error)
        return provider_pb2.CheckResponse(
            inputs=struct_of(news), failures=[provider_pb2.CheckFailure(property=p, reason=r) for p, r in failures]
        )

    @_translated
    def Diff(self, request: Any, context: Any) -> Any:
        """Changed when the plan has actions, when the inputs say something else, or when what should run does not."""
        news, olds = plain_of(request.news), plain_of(request.old_inputs)
        changed = _has_unknown(news)
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

    @_translated
    def Create(self, request: Any, context: Any) -> Any:
        news = plain_of(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        id_ = _id(bundle_of(news))
        outputs = self._bring_about(id_, news, {}, request.urn, context)
        return provider_pb2.CreateResponse(id=id_, properties=struct_of(outputs))

    @_translated
    def Update(self, request: Any, context: Any) -> Any:
        if request.preview:
            return provider_pb2.UpdateResponse(properties=request.news)
        outputs = self._bring_about(
            request.id, plain_of(request.news), plain_of(request.old_inputs), request.urn, context
        )
        return provider_pb2.UpdateResponse(properties=struct_of(outputs))

    def _bring_about(self, id_: str, news: Plain, olds: Plain, urn: str, context: Any) -> Plain:
        bundle = bundle_of(news)
        approved = (str(news.get("plan", "")), str(news.get("actions", ""))) if "plan" in news else None
        before = recorded_here(bundle.state_dir).revision
        try:
            control.apply(
                bundle,
                _removed(bundle, olds),
                approved=approved,
                say=functools.partial(self._log, urn, passing=True),
                cancelled=self._cancelled.is_set,
            )
        except YunheError as error:
            if recorded_here(bundle.state_dir).revision == before:
                raise
            # It was accepted, so that the objects exist: the engine has to know of them to go on, or to remove them.
            detail = errors_detail(id_, news, olds, error)
            context.set_trailing_metadata((("grpc-status-details-bin", detail),))
            context.abort(grpc.StatusCode.UNKNOWN, _sentence(error))
        return _outputs(news, bundle)

    @_translated
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
            id=request.id, inputs=struct_of(inputs), properties=struct_of(_outputs(inputs, bundle))
        )

    @_translated
    def Delete(self, request: Any, context: Any) -> Any:
        bundle = bundle_of(plain_of(request.properties))
        say = functools.partial(self._log, request.urn, passing=True)
        control.remove(bundle, say=say, cancelled=self._cancelled.is_set)
        return empty_pb2.Empty()

    def _log(self, urn: str, message: str, *, passing: bool = False) -> None:
        with grpc.insecure_channel(self._engine) as channel:
            engine = engine_pb2_grpc.EngineStub(channel)
            engine.Log(
                engine_pb2.LogRequest(severity=engine_pb2.INFO, message=message, urn=urn, ephemeral=passing), timeout=5
            )


def default_state_dir() -> str:
    """Where the command line would look."""
    import os

    return str(Path(os.environ.get("YUNHE_STATE_DIR") or ".yunhe").expanduser().absolute())


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
    if not olds.get("objects") or _has_unknown(olds):
        return set()
    return set(bundle_of(olds).keys) - set(bundle.keys)


def _outputs(inputs: Mapping[str, Any], bundle: Bundle) -> Plain:
    _, states = control.read(bundle.state_dir, bundle.keys)
    return {**inputs, "states": states, "bootstrapServers": control.endpoints(bundle.state_dir)}


def _id(bundle: Bundle) -> str:
    return ",".join("/".join(key) for key in bundle.keys)


def _sentence(error: YunheError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _failures(error: YunheError) -> list[tuple[str, str]]:
    """One a problem, each with the sentence that the command line shows."""
    problems = error.fields.get("errors") or []
    if len(problems) < 2:
        return [("objects", _sentence(error))]
    shown = []
    for one in problems[:ERRORS_SHOWN_MAX]:
        what = ": ".join(str(part) for part in (one["file"], one["path"], one["message"]) if part)
        shown.append(("objects", f"{what} ({one['hint']})" if one.get("hint") else what))
    return shown


def errors_detail(id_: str, news: Plain, olds: Plain, error: YunheError) -> bytes:
    """The engine's way of being told that a resource exists and is not ready."""
    failed = provider_pb2.ErrorResourceInitFailed(
        id=id_, properties=struct_of(news), reasons=[_sentence(error)], inputs=struct_of(news)
    )
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=_sentence(error))
    status.details.add().Pack(failed)
    return bytes(status.SerializeToString())


def plain_of(struct: struct_pb2.Struct) -> Plain:
    """Properties as plain values. Every number arrives as a float; whole ones are integers again."""
    return dict(_whole(json_format.MessageToDict(struct)))


def struct_of(plain: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(dict(plain))
    return struct


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items() if not str(name).startswith("__")}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _has_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_unknown(item) for item in value)
    return bool(value == UNKNOWN)


def main() -> None:
    """Serve on a free port of loopback, and print it: that is how the engine finds it."""
    server = grpc.server(ThreadPoolExecutor(max_workers=WORKERS))
    engine = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    provider = Provider(engine)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)

    def end(*_: object) -> None:
        # The engine's way of ending a plugin. Calls that wait end by themselves.
        provider.cancel()
        server.stop(GRACE_S)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
