"""The HTTP client that the OSS SDK is given: urllib3 without what `requests` adds.

`requests`, the SDK's own choice, reads the environment for proxies and merges settings with every request, which costs
more than the rest of a 4 KiB put together. Here a pool of connections is asked directly; proxies of the environment are
looked up once, and not at all for a given endpoint. The SDK takes any object with `send`, `open` and `close`
(alibabacloud-oss-v2 1.4, `Config.http_client`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Timeout

from providers.base.blocking import StoreSettings, read_all

ONE_SEND_BYTES_MAX = 64 << 10
"""Bodies up to here are copied behind their headers; for longer ones a copy costs more than a system call."""


class _OneSend:
    """Sends a small body with its headers: one system call, one packet, one wake-up of the far side. http.client
    sends them apart. Mixed into urllib3's connections."""

    _holds = False
    _held = b""

    def endheaders(self, *arguments: Any, **more: Any) -> None:
        self._holds = True
        try:
            super().endheaders(*arguments, **more)  # type: ignore[misc]
        finally:
            self._holds = False

    def send(self, data: Any) -> None:
        if self._holds:
            self._held += data
        elif self._held:
            held, self._held = self._held, b""
            if isinstance(data, bytes) and len(data) <= ONE_SEND_BYTES_MAX:
                super().send(held + data)  # type: ignore[misc]
            else:
                super().send(held)  # type: ignore[misc]
                super().send(data)  # type: ignore[misc]
        else:
            super().send(data)  # type: ignore[misc]

    def getresponse(self, *arguments: Any, **more: Any) -> Any:
        if self._held:
            self.send(b"")
        return super().getresponse(*arguments, **more)  # type: ignore[misc]

    def close(self) -> None:
        self._held = b""
        super().close()  # type: ignore[misc]


class _Plain(_OneSend, HTTPConnection):
    pass


class _Secure(_OneSend, HTTPSConnection):
    pass


class Answer:
    """A response as the SDK's handlers read it: whole."""

    def __init__(self, request: Any, response: urllib3.BaseHTTPResponse, data: bytes) -> None:
        self.request = request
        self.status_code = response.status
        self.headers: Mapping[str, str] = response.headers
        self.reason = response.reason or ""
        self.content = data
        self.is_closed = True
        self.is_stream_consumed = True

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> bytes:
        return self.content

    def close(self) -> None:
        pass

    def iter_bytes(self, **_: Any) -> Iterator[bytes]:
        yield self.content


class PooledHttp:
    """Connections to one endpoint, `settings.threads` of them."""

    def __init__(self, settings: StoreSettings, *, proxies: bool) -> None:
        self._timeout = Timeout(connect=settings.connect_timeout_ms / 1000, read=settings.read_timeout_ms / 1000)
        self._kept: dict[str, Any] = {"maxsize": settings.threads, "block": True, "ca_certs": certifi.where()}
        self._environment = getproxies() if proxies else {}
        self._manager = urllib3.PoolManager(**self._kept)
        self._pools: dict[str, Any] = {}

    def send(self, request: Any, **_: Any) -> Answer:
        """
        Raises:
            urllib3.exceptions.HTTPError: no answer.
        """
        url: str = request.url
        slash = url.find("/", 8)
        base, target = (url, "/") if slash < 0 else (url[:slash], url[slash:])
        pool = self._pools.get(base)
        if pool is None:
            pool = self._pools[base] = self._pool(base)
        response = pool.urlopen(
            request.method,
            url if pool.proxy is not None and pool.scheme == "http" else target,
            body=request.body or None,
            headers={name: value for name, value in request.headers.items() if value is not None},
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout,
            preload_content=False,
        )
        try:
            data = read_all(response.read)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Answer(request, response, data)

    def _pool(self, base: str) -> Any:
        parts = urlsplit(base)
        host = parts.hostname or ""
        proxy = self._environment.get(parts.scheme)
        manager: urllib3.PoolManager = self._manager
        if proxy and not proxy_bypass(host):
            manager = urllib3.ProxyManager(proxy, **self._kept)
        pool = manager.connection_from_host(host, parts.port, parts.scheme)
        pool.ConnectionCls = _Secure if parts.scheme == "https" else _Plain
        return pool

    def open(self) -> None:
        """Nothing to do: connections are made when they are needed."""

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
