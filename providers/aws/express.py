"""Who signs requests to a bucket: the SDK's credentials, or the five-minute sessions of a directory bucket.

A session is renewed early by one caller, while the others go on with the old one. Sources: S3 API reference,
CreateSession.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from providers.base.clock import Clock
from providers.base.registry import StoreAddress

RENEW_MS = 90_000
"""A session is renewed when less than this of it is left."""


class ChainSigner:
    """Signs with the credentials that `chain`, the SDK's, gives at the moment; it renews them by itself."""

    def __init__(self, chain: Any, region: str) -> None:
        self._chain = chain
        self._region = region
        self._last: tuple[Any, Any] | None = None
        """Credentials and the signer that goes with them."""

    def __call__(self) -> Any:
        from botocore.auth import S3SigV4Auth

        credentials = self._chain.get_frozen_credentials() if self._chain is not None else None
        last = self._last
        if last is None or last[0] != credentials:
            last = self._last = (credentials, S3SigV4Auth(credentials, "s3", self._region))
        return last[1]


@dataclass(frozen=True, slots=True)
class _Session:
    signer: Any
    expires_ms: float


class SessionSigner:
    """Signs for one directory bucket. Thread-safe; blocks while the first session is made."""

    def __init__(self, client: Any, address: StoreAddress, clock: Clock) -> None:
        self._client = client
        self._address = address
        self._clock = clock
        self._session: _Session | None = None
        self._renewing = threading.Lock()

    def __call__(self) -> Any:
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

    def forget(self) -> None:
        """The session was refused: the next request makes a new one."""
        self._session = None

    def _new_session(self) -> _Session:
        from botocore.auth import S3ExpressAuth
        from botocore.credentials import Credentials

        given = self._client.create_session(Bucket=self._address.bucket)["Credentials"]
        credentials = Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
        # The identity cache is the client's, which asks it for other buckets' sessions; the signer does not use it.
        signer = S3ExpressAuth(credentials, "s3express", self._address.region, identity_cache=None)
        return _Session(signer, given["Expiration"].timestamp() * 1000)
