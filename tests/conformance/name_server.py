"""A real name server, BIND's `named`, for the tests of private DNS: an ordinary process on loopback with a folder and a
configuration of the test's own. Where it is not installed, those tests are skipped."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from providers.base.blocking import StoreSettings
from providers.base.clock import SystemClock, SystemRng
from providers.base.dns import Dns
from providers.base.ports import free_port
from providers.base.registry import AccountAddress
from providers.private.dns import open_dns
from tests.conformance.control import DOMAIN, SHORT

NAMED = shutil.which("named", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
START_S_MAX = 20.0
KEY = base64.b64encode(b"a key of the test, thirty-two by").decode()


@dataclass(frozen=True)
class NameServerKind:
    """Stands in the DNS suite beside the clouds' kinds."""

    provider: str = "private"
    compares_atomically: bool = True
    throttled: tuple[int, str] = (0, "")

    @property
    def changes_dns(self) -> NoReturn:
        pytest.skip("a name server has no fault rules")

    def __str__(self) -> str:
        return self.provider


class NameServer:
    """`named` with one primary zone that the key may update and transfer."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "named"
        self.root.mkdir(parents=True)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.credentials = self._write_key("key.json", KEY)
        self.wrong_credentials = self._write_key("wrong.json", base64.b64encode(b"another").decode())
        (self.root / "zone.db").write_text(
            f"$TTL 60\n@ IN SOA ns.other.test. admin.{DOMAIN}. 1 3600 600 86400 60\n@ IN NS ns.other.test.\n"
        )

    def _write_key(self, name: str, key: str) -> Path:
        path = self.root / name
        path.write_text(json.dumps({"key_name": "yunhe", "key": key}))
        return path

    def start(self) -> None:
        """Start, on the same port as before if there was one, and return when it answers."""
        assert NAMED is not None
        self.port = self.port or free_port("127.0.0.1", SystemRng())  # `named` takes no port 0
        (self.root / "named.conf").write_text(
            f"""
            options {{
              directory "{self.root}"; listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
              pid-file none; session-keyfile none; recursion no; notify no; dnssec-validation no;
            }};
            controls {{ }};
            key "yunhe" {{ algorithm hmac-sha256; secret "{KEY}"; }};
            zone "{DOMAIN}" {{
              type primary; file "zone.db"; allow-transfer {{ key "yunhe"; }};
              update-policy {{ grant yunhe zonesub A AAAA CNAME TXT SRV; }};
            }};
            """
        )
        with (self.root / "log").open("ab") as log:
            argv = [NAMED, "-f", "-g", "-n", "1", "-c", str(self.root / "named.conf")]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            assert self.process.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline, "named did not get ready"
            time.sleep(0.02)

    def _answers(self) -> bool:
        import dns.exception
        import dns.message
        import dns.query

        try:
            dns.query.tcp(dns.message.make_query(DOMAIN, "SOA"), "127.0.0.1", port=self.port, timeout=1)
        except (OSError, EOFError, dns.exception.DNSException):
            return False
        return True

    def address(self, credentials: Path | None = None, port: int | None = None) -> AccountAddress:
        endpoint = f"dns://127.0.0.1:{port or self.port}"
        return AccountAddress(
            "private", "site", endpoint=endpoint, credentials_file=str(credentials or self.credentials)
        )

    def open_dns(
        self,
        credentials: Path | None = None,
        zone: str = DOMAIN,
        *,
        port: int | None = None,
        settings: StoreSettings = SHORT,
    ) -> Dns:
        address = self.address(credentials, port)
        return open_dns(address, zone, clock=SystemClock(), rng=SystemRng(), settings=settings)

    def set_faults(self, *rules: dict[str, Any]) -> None:
        pytest.skip("a name server has no fault rules")

    def kill(self) -> None:
        """kill -9: no handler runs."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_name_server(tmp_path: Path) -> NameServer:
    """A running one, its files under `tmp_path`."""
    server = NameServer(tmp_path)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server
