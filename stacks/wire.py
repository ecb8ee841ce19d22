"""How a provider plugin speaks with Pulumi's engine: properties as plain values, errors as sentences, and the calls
that every plugin answers alike. `provider.py` and `plugins/` say what their resources are.
"""

from __future__ import annotations

import functools
import json
import os
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

from providers.base.errors import YunheError

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What the engine sends for a value that is not known before `up`."""
WORKERS = 16
GRACE_S = 5.0
"""What calls have to end when the engine does."""
LOG_TIMEOUT_S = 5.0
Plain = dict[str, Any]


def translated(method: Callable[..., Any]) -> Callable[..., Any]:
    """An expected error becomes its sentence and its hint; a traceback is never a user's answer."""

    @functools.wraps(method)
    def call(self: Plugin, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except YunheError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, sentence(error))

    return call


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    """One an engine. Keeps no state but whether the user has cancelled."""

    def __init__(self, engine: str, package: str, version: str) -> None:
        self._engine = engine
        self._package = package
        self._version = version
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
        return plugin_pb2.PluginInfo(version=self._version)

    def GetSchema(self, request: Any, context: Any) -> Any:
        schema = json.dumps({"name": self._package, "version": self._version})
        return provider_pb2.GetSchemaResponse(schema=schema)

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

    def log(self, urn: str, message: str, *, passing: bool = False, warning: bool = False) -> None:
        """Say something of a resource, or with "" of none. `passing`: shown only while it is worked on."""
        severity = engine_pb2.WARNING if warning else engine_pb2.INFO
        with grpc.insecure_channel(self._engine) as channel:
            engine = engine_pb2_grpc.EngineStub(channel)
            said = engine_pb2.LogRequest(severity=severity, message=message, urn=urn, ephemeral=passing)
            engine.Log(said, timeout=LOG_TIMEOUT_S)


def nothing() -> Any:
    """The answer of a call that has none."""
    return empty_pb2.Empty()


def default_state_dir() -> str:
    """Where the command line would look."""
    return str(Path(os.environ.get("YUNHE_STATE_DIR") or ".yunhe").expanduser().absolute())


def sentence(error: YunheError) -> str:
    """An error on one line, with its hint."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def refused(context: Any, id_: str, inputs: Plain, error: YunheError) -> None:
    """Tell the engine that a resource exists and is not ready: it has to know, to go on or to remove it. Ends the
    call."""
    failed = provider_pb2.ErrorResourceInitFailed(
        id=id_, properties=struct_of(inputs), reasons=[sentence(error)], inputs=struct_of(inputs)
    )
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=sentence(error))
    status.details.add().Pack(failed)
    context.set_trailing_metadata((("grpc-status-details-bin", bytes(status.SerializeToString())),))
    context.abort(grpc.StatusCode.UNKNOWN, sentence(error))


def plain_of(struct: struct_pb2.Struct) -> Plain:
    """Properties as plain values. Every number arrives as a float; whole ones are integers again."""
    return dict(_whole(json_format.MessageToDict(struct)))


def struct_of(plain: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain values as properties."""
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


def has_unknown(value: Any) -> bool:
    """Whether something in it is not known before `up`."""
    if isinstance(value, dict):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(has_unknown(item) for item in value)
    return bool(value == UNKNOWN)


def engine_address() -> str:
    """What the engine gave on the command line."""
    return next((argument for argument in reversed(sys.argv[1:]) if ":" in argument), "")


def serve(plugin: Plugin) -> None:
    """Serve on a free port of loopback, and print it: that is how the engine finds it."""
    server = grpc.server(ThreadPoolExecutor(max_workers=WORKERS))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(plugin, server)

    def end(*_: object) -> None:
        # The engine's way of ending a plugin. Calls that wait end by themselves.
        plugin.cancel()
        server.stop(GRACE_S)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()
