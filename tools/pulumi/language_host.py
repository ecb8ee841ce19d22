"""A stand-in for `pulumi-language-python`, whose Go module is not served: enough of it for `pulumi up` in tests.

It starts the SDK's own `pulumi-language-python-exec`, which lies beside it, as the real host does.
Users have the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2 as messages
from pulumi.runtime.proto import language_pb2_grpc as services
from pulumi.runtime.proto import plugin_pb2

EXEC = Path(__file__).with_name("pulumi-language-python-exec")
MESSAGE_BYTES_MAX = 400 << 20
SHOWN_ALREADY = 32
"""The program ended after it had told the engine why."""


class Host(services.LanguageRuntimeServicer):
    """What a CLI of this version calls on the way of up, preview, refresh and destroy."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._running: set[subprocess.Popen[bytes]] = set()

    def Handshake(self, request: Any, context: Any) -> Any:
        return messages.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="0.0.1")

    def GetRequiredPlugins(self, request: Any, context: Any) -> Any:
        return messages.GetRequiredPluginsResponse()

    def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        return messages.GetRequiredPackagesResponse()

    def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        return messages.GetProgramDependenciesResponse()

    def About(self, request: Any, context: Any) -> Any:
        return messages.AboutResponse(executable=sys.executable, version=sys.version.split()[0])

    def InstallDependencies(self, request: Any, context: Any) -> Any:
        yield messages.InstallDependenciesResponse()

    def Cancel(self, request: Any, context: Any) -> Any:
        for process in list(self._running):
            process.terminate()
        return empty_pb2.Empty()

    def Run(self, request: Any, context: Any) -> Any:
        options = {
            "monitor": request.monitor_address,
            "engine": self._engine,
            "project": request.project,
            "stack": request.stack,
            "pwd": request.pwd,
            "dry_run": str(request.dryRun).lower(),
            "parallel": str(request.parallel),
            "organization": request.organization,
            "root_directory": request.info.root_directory,
        }
        argv = [sys.executable, "-u", str(EXEC)]
        for name, value in options.items():
            argv += [f"--{name}", value] if value else []
        where = Path(request.info.program_directory or request.pwd)
        argv += [str(where / (request.info.entry_point or ".")), *request.args]
        environment = {
            **os.environ,
            "PULUMI_CONFIG": _json(dict(request.config)),
            "PULUMI_CONFIG_SECRET_KEYS": _json(list(request.configSecretKeys)),
        }
        process = subprocess.Popen(argv, env=environment, cwd=request.pwd or None, stdout=sys.stderr)
        self._running.add(process)
        code = process.wait()
        self._running.discard(process)
        if code == SHOWN_ALREADY:
            return messages.RunResponse(bail=True)
        return messages.RunResponse(error=f"the program ended with code {code}" if code else "")


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=4), options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    )
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    services.add_LanguageRuntimeServicer_to_server(Host(arguments[0] if arguments else ""), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
