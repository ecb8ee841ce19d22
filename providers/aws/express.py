"""Appends to a directory bucket, with as little work a request as can be: a WAL makes hundreds a second, and the SDK's
machinery for building and parsing a request takes longer than the append itself.

Sessions come from the SDK's client, signatures from its signer; only the request is put together here, over urllib3's
connections. A session lasts five minutes and is renewed early by one caller, while the others go on with the old one.
Sources: S3 API reference, PutObject (x-amz-write-offset-bytes) and CreateSession; user guide, regional and zonal
endpoints.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import crc32c

from providers.base.blocking import StoreSettings
from providers.base.clock import Clock
from providers.base.registry import StoreAddress

RENEW_MS = 90_000
"""A session is renewed when less than this of it is left."""
CHECKSUM = "x-amz-checksum-crc32c"


def zone_of(bucket: str) -> str:
    """The zone of a directory bucket, base-name--zone-id--x-s3 (S3 user guide, directory bucket naming rules)."""
    return bucket.removesuffix("--x-s3").rpartition("--")[2]


@dataclass(frozen=True, slots=True)
class _Session:
    signer: Any
    expires_ms: float


class ExpressAppends:
    """Appends to one bucket. Thread-safe; calls block."""

    def __init__(self, client: Any, address: StoreAddress, settings: StoreSettings, clock: Clock) -> None:
        import urllib3

        self._client = client
        self._address = address
        self._clock = clock
        zonal = f"https://{address.bucket}.s3express-{zone_of(address.bucket)}.{address.region}.amazonaws.com"
        self._base = f"{address.endpoint}/{address.bucket}" if address.endpoint else zonal
        timeout = urllib3.Timeout(connect=settings.connect_timeout_ms / 1000, read=settings.read_timeout_ms / 1000)
        self._pool: Any = urllib3.PoolManager(maxsize=settings.threads, block=False, retries=False, timeout=timeout)
        self._session: _Session | None = None
        self._renewing = threading.Lock()

    def append(self, key: str, offset: int, data: bytes) -> None:
        """Append at `offset`.

        Raises:
            botocore.exceptions.ClientError, urllib3.exceptions.HTTPError: as the SDK would.
        """
        from botocore.awsrequest import AWSRequest

        checksum = base64.b64encode(crc32c.crc32c(data).to_bytes(4, "big")).decode()
        headers = {"x-amz-write-offset-bytes": str(offset), CHECKSUM: checksum, "Content-Length": str(len(data))}
        url = f"{self._base}/{quote(key)}"
        request = AWSRequest(method="PUT", url=url, data=data, headers=headers)
        # What tells the signer that the body need not be hashed on TLS, where the checksum is enough.
        request.context["checksum"] = {"request_algorithm": {"in": "header", "name": CHECKSUM}}
        request.context["has_streaming_input"] = True
        self._signer().add_auth(request)
        answer = self._pool.request("PUT", url, body=data, headers=dict(request.headers.items()))
        if answer.status >= 300:
            raise self._failure(answer.status, answer.data)

    def _signer(self) -> Any:
        session = self._session
        left_ms = session.expires_ms - self._clock.wall_ms() if session is not None else 0.0
        if session is not None and left_ms > RENEW_MS:
            return session.signer
        if not self._renewing.acquire(blocking=left_ms <= 0):
            assert session is not None  # there is something left of it
            return session.signer
        try:
            if self._session is session:  # nobody else has renewed it while this waited
                self._session = self._new_session()
            assert self._session is not None
            return self._session.signer
        finally:
            self._renewing.release()

    def _new_session(self) -> _Session:
        from botocore.auth import S3ExpressAuth
        from botocore.credentials import Credentials

        given = self._client.create_session(Bucket=self._address.bucket)["Credentials"]
        credentials = Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
        # The identity cache is the client's, which asks it for other buckets' sessions; the signer does not use it.
        signer = S3ExpressAuth(credentials, "s3express", self._address.region, identity_cache=None)
        return _Session(signer, given["Expiration"].timestamp() * 1000)

    def _failure(self, status: int, body: bytes) -> Exception:
        from botocore.exceptions import ClientError

        try:
            root = ElementTree.fromstring(body)
            code, message = root.findtext("Code") or str(status), root.findtext("Message") or ""
        except ElementTree.ParseError:
            code, message = str(status), ""
        if code in ("ExpiredToken", "InvalidToken"):
            self._session = None
        said = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
        failure: Exception = ClientError(said, "PutObject")
        return failure

    def close(self) -> None:
        self._pool.clear()
