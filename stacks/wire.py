"""How a provider plugin speaks with Pulumi's engine: properties as plain values, errors as sentences, and the calls
that every plugin answers alike. `provider.py` and `plugins/` say what their resources are.
"""

from __future__ import annotations

import functools
import json
import os
import re
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
SIGNATURE, SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"
"""How a value is marked as secret on this wire: an object with this key and value, and the value itself in `value`."""
MASK = "[secret]"
WORKERS = 16
GRACE_S = 5.0
"""What calls have to end when the engine does."""
LOG_TIMEOUT_S = 5.0
LOOK_S = 1.0
"""How often a plugin looks whether its engine lives."""
Plain = dict[str, Any]
Secrets = frozenset[tuple[type, Any]]
"""Leaves of secret values, each with its type."""


def translated(method: Callable[..., Any]) -> Callable[..., Any]:
    """An expected error becomes its sentence and its hint; a traceback is never a user's answer."""

    @functools.wraps(method)
    def call(self: Plugin, request: Any, context: Any) -> Any:
        self.secrets = _secrets_of(request)
        try:
            return method(self, request, context)
        except YunheError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.masked(sentence(error)))

    return call


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    """One an engine. Keeps no state but whether the user has cancelled, and of each call what is secret in it."""

    def __init__(self, engine: str, package: str, version: str) -> None:
        self._engine = engine
        self._package = package
        self._version = version
        self._cancelled = threading.Event()
        self._call = threading.local()

    @property
    def secrets(self) -> Secrets:
        """Values that came as secrets with the call that this thread answers."""
        found: Secrets = getattr(self._call, "secrets", frozenset())
        return found

    @secrets.setter
    def secrets(self, found: Secrets) -> None:
        self._call.secrets = found

    def masked(self, text: str) -> str:
        """A text for people, without secrets. Longest first, for one may be part of another."""
        for value in sorted({str(value) for _, value in self.secrets}, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", MASK, text)
        return text

    def properties(self, plain: Mapping[str, Any]) -> struct_pb2.Struct:
        """Plain values as properties; what came as a secret goes as one."""
        struct = struct_pb2.Struct()
        struct.update(_marked(dict(plain), self.secrets))
        return struct

    def cancel(self) -> None:
        """Calls that wait give up; what they began goes on."""
        self._cancelled.set()

    def Handshake(self, request: Any, context: Any) -> Any:
        self._engine = request.engine_address or self._engine
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

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
        # Secrets are accepted marked: else they could not be kept out of what is said.
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Any:
        self.cancel()
        return empty_pb2.Empty()

    def log(self, urn: str, message: str, *, passing: bool = False, warning: bool = False) -> None:
        """Say something of a resource, or with "" of none. `passing`: shown only while it is worked on."""
        severity = engine_pb2.WARNING if warning else engine_pb2.INFO
        with grpc.insecure_channel(self._engine) as channel:
            engine = engine_pb2_grpc.EngineStub(channel)
            said = engine_pb2.LogRequest(severity=severity, message=self.masked(message), urn=urn, ephemeral=passing)
            engine.Log(said, timeout=LOG_TIMEOUT_S)

    def refuse(self, context: Any, id_: str, inputs: Plain, error: YunheError) -> None:
        """Tell the engine that a resource exists and is not ready: it has to know, to go on or to remove it. Ends the
        call."""
        said = self.masked(sentence(error))
        made = self.properties(inputs)
        failed = provider_pb2.ErrorResourceInitFailed(id=id_, properties=made, reasons=[said], inputs=made)
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=said)
        status.details.add().Pack(failed)
        context.set_trailing_metadata((("grpc-status-details-bin", bytes(status.SerializeToString())),))
        context.abort(grpc.StatusCode.UNKNOWN, said)


def nothing() -> Any:
    """The answer of a call that has none."""
    return empty_pb2.Empty()


def default_state_dir() -> str:
    """Where the command line would look."""
    return str(Path(os.environ.get("YUNHE_STATE_DIR") or ".yunhe").expanduser().absolute())


def sentence(error: YunheError) -> str:
    """An error on one line, with its hint."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def plain_of(struct: struct_pb2.Struct) -> Plain:
    """Properties as plain values, secret or not. Every number arrives as a float; whole ones are integers again."""
    return dict(_whole(json_format.MessageToDict(struct)))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET:
            return _whole(value.get("value"))
        return {name: _whole(item) for name, item in value.items() if not str(name).startswith("__")}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _secrets_of(request: Any) -> Secrets:
    """All that is marked, in all properties of a request."""
    found: set[tuple[type, Any]] = set()
    for field, value in request.ListFields():
        if field.message_type is not None and field.message_type.full_name == struct_pb2.Struct.DESCRIPTOR.full_name:
            _gather(json_format.MessageToDict(value), False, found)
    return frozenset(found)


def _gather(value: Any, secret: bool, found: set[tuple[type, Any]]) -> None:
    """Leaves: a secret object is secret in each of its parts."""
    if isinstance(value, dict):
        secret = secret or value.get(SIGNATURE) == SECRET
        for name, item in value.items():
            if name != SIGNATURE:
                _gather(item, secret, found)
    elif isinstance(value, list):
        for item in value:
            _gather(item, secret, found)
    elif secret and value not in (None, "", UNKNOWN) and not isinstance(value, bool):
        whole = _whole(value)
        found.add((type(whole), whole))


def _marked(value: Any, secrets: Secrets) -> Any:
    if isinstance(value, dict):
        return {name: _marked(item, secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, secrets) for item in value]
    return {SIGNATURE: SECRET, "value": value} if (type(value), value) in secrets else value


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
    parent = os.getppid()
    server.start()
    print(port, flush=True)
    while server.wait_for_termination(LOOK_S):  # True: the time is over
        if os.getppid() != parent:
            end()  # the engine was killed, and nobody else would end its plugins
