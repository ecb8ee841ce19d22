"""Requests to one bucket's objects with as little work a request as can be: a WAL makes hundreds a second, and the
SDK's machinery for building and parsing a request takes longer than the request itself.

Credentials come from the SDK's chain (S3 Express: its sessions), signatures from its signer; only the request is put
together here, over urllib3's connections. What is rare (listings, copies, uploads' beginnings and ends) goes through
the SDK's client instead.
Sources: S3 API reference, PutObject, GetObject, HeadObject, UploadPart; user guide, virtual hosting of buckets,
regional and zonal endpoints, checking object integrity.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import crc32c

from providers.base.blocking import StoreSettings, read_all
from providers.base.errors import Corrupt
from providers.base.hosts import is_loopback
from providers.base.registry import StoreAddress

CHECKSUM = "x-amz-checksum-crc32c"
TYPE = "x-amz-checksum-type"

_SUMS: Mapping[str, Callable[[bytes], bytes]] = {
    CHECKSUM: lambda data: crc32c.crc32c(data).to_bytes(4, "big"),
    "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
    "x-amz-checksum-sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
}
"""What an answer's checksum may be. S3's others (crc64nvme, xxhash) are those of objects that others wrote."""

Signer = Callable[[], Any]
"""Gives the SDK's signer for the credentials of this moment."""


def zone_of(bucket: str) -> str:
    """The zone of a directory bucket, base-name--zone-id--x-s3 (S3 user guide, directory bucket naming rules)."""
    return bucket.removesuffix("--x-s3").rpartition("--")[2]


def checksum_of(data: bytes) -> str:
    """crc32c in base64, as S3's headers have it."""
    return base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer; header names are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class LeanRequests:
    """Requests to the objects of one bucket. Thread-safe; calls block."""

    def __init__(self, client: Any, address: StoreAddress, settings: StoreSettings, signer: Signer) -> None:
        import urllib3

        self._signer = signer
        self._base = _base(client, address)
        where = urlsplit(self._base)
        self._path = where.path
        self._host = where.netloc
        # Over loopback nobody can change a body on its way; the checksum finds whatever else may happen to it.
        signs = where.scheme != "https" and not is_loopback(where.hostname or "")
        self._config = None if signs else SimpleNamespace(s3={"payload_signing_enabled": False})
        self._pool = _connections(urllib3, self._base, address, settings)

    def send(
        self, method: str, key: str, headers: Mapping[str, str], body: bytes = b"", query: str = "", operation: str = ""
    ) -> Answer:
        """Send one request and read its answer.

        Raises:
            botocore.exceptions.ClientError, urllib3.exceptions.HTTPError: as the SDK would, `operation` being its name
                of this one.
        """
        from botocore.awsrequest import AWSRequest

        target = f"/{quote(key)}{'?' + query if query else ''}"
        request = AWSRequest(method=method, url=self._base + target, data=body, headers={"Host": self._host, **headers})
        # What tells the signer that the body need not be hashed on TLS, where the checksum is enough.
        request.context["checksum"] = {"request_algorithm": {"in": "header", "name": CHECKSUM}}
        request.context["has_streaming_input"] = True
        request.context["client_config"] = self._config
        self._signer().add_auth(request)
        answer = self._pool.urlopen(
            method,
            self._path + target,
            body=body or None,
            headers={**request.headers, "Content-Length": str(len(body))} if method != "GET" else {**request.headers},
            preload_content=False,
            decode_content=False,
            retries=False,
            redirect=False,
        )
        try:
            data = read_all(answer.read)
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        if answer.status >= 300:
            raise _failure(operation, answer.status, answer.headers, data)
        return Answer(answer.status, answer.headers, data)

    def put(self, key: str, data: bytes, headers: Mapping[str, str], query: str = "", operation: str = "") -> Answer:
        """PUT `data` with its checksum, which S3 compares before it answers."""
        return self.send("PUT", key, {CHECKSUM: checksum_of(data), **headers}, data, query, operation)

    def get(self, key: str, headers: Mapping[str, str]) -> Answer:
        """GET, its checksum compared if the answer has one of all its bytes.

        Raises:
            Corrupt: they do not match.
        """
        answer = self.send("GET", key, {"x-amz-checksum-mode": "ENABLED", **headers}, operation="GetObject")
        if answer.status == 200:
            check(key, answer.headers, answer.data)
        return answer

    def head(self, key: str) -> Mapping[str, str]:
        """The headers of HEAD, the stored checksum among them."""
        return self.send("HEAD", key, {"x-amz-checksum-mode": "ENABLED"}, operation="HeadObject").headers

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()


def check(key: str, headers: Mapping[str, str], data: bytes) -> None:
    """Compare an object's bytes with the checksum in its answer. A multipart upload's checksum of checksums (`…-3`)
    says nothing about the bytes as they come.

    Raises:
        Corrupt: they do not match.
    """
    for name, compute in _SUMS.items():
        stored = headers.get(name)
        if stored is not None and "-" not in stored and base64.b64decode(stored) != compute(data):
            raise Corrupt(f"{key}: the bytes that came do not match their checksum", key=key)


def _base(client: Any, address: StoreAddress) -> str:
    """The URL that keys are under."""
    bucket = address.bucket
    if address.endpoint:
        return f"{address.endpoint.rstrip('/')}/{bucket}"
    if bucket.endswith("--x-s3"):
        return f"https://{bucket}.s3express-{zone_of(bucket)}.{address.region}.amazonaws.com"
    # The SDK's own choice of the region's endpoint: partition, FIPS, dual stack, AWS_ENDPOINT_URL.
    regional = urlsplit(client.meta.endpoint_url)
    host = regional.netloc
    if ".amazonaws.com" in host and "." not in bucket:
        return f"{regional.scheme}://{bucket}.{host}"
    return f"{regional.scheme}://{host}{regional.path.rstrip('/')}/{bucket}"


def _connections(urllib3: Any, base: str, address: StoreAddress, settings: StoreSettings) -> Any:
    """Kept connections to the bucket's host: through the environment's proxy where the SDK would go through it."""
    import os
    from urllib.request import getproxies, proxy_bypass

    from botocore.httpsession import get_cert_path

    where = urlsplit(base)
    timeout = urllib3.Timeout(connect=settings.connect_timeout_ms / 1000, read=settings.read_timeout_ms / 1000)
    options: dict[str, Any] = {"maxsize": settings.threads, "block": False, "retries": False, "timeout": timeout}
    if where.scheme == "https":
        options["ca_certs"] = os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True)
    proxy = None if address.endpoint else getproxies().get(where.scheme)
    if proxy and where.scheme == "https" and not proxy_bypass(where.hostname or ""):
        manager = urllib3.ProxyManager(proxy, **options)
    else:
        manager = urllib3.PoolManager(**options)
    return manager.connection_from_url(f"{where.scheme}://{where.netloc}")


def _failure(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
    from botocore.exceptions import ClientError

    error = {"Code": str(status), "Message": ""}
    try:
        root = ElementTree.fromstring(body)
        error.update((child.tag.rpartition("}")[2], child.text or "") for child in root)
    except ElementTree.ParseError:
        pass  # HEAD, and proxies, answer without a document
    said = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": dict(headers.items())}}
    failure: Exception = ClientError(said, operation)
    return failure
