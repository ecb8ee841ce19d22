"""A server's certificate: what its files make, and that they are read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from dataplane.contract.security import ClientAuth, TlsSpec
from providers.base.clock import Clock
from providers.base.errors import Invalid

log = logging.getLogger(__name__)

RELOAD_INTERVAL_MS = 5_000
"""How often the certificate's files are looked at."""


def load(spec: TlsSpec) -> ssl.SSLContext:
    """What the files make.

    Raises:
        Invalid: a file cannot be read, or is not what it should be, or key and certificate are of two minds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _use(spec.certificate_file, lambda: context.load_cert_chain(spec.certificate_file, spec.key_file, lambda: b""))
    if spec.client_auth is not ClientAuth.NONE:
        ca_file = spec.client_ca_file
        if ca_file is None:
            raise Invalid("clients are asked for certificates, and nobody is named who signs them")
        _use(ca_file, lambda: context.load_verify_locations(ca_file))
        required = spec.client_auth is ClientAuth.REQUIRED
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _use(file: str, what: Callable[[], None]) -> None:
    try:
        what()
    except (OSError, ValueError) as error:  # SSLError is an OSError
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise Invalid(f"TLS with {file} cannot be had: {why}", hint="PEM; an unencrypted key that fits") from error


def _expires_s(spec: TlsSpec) -> float | None:
    try:
        chain = x509.load_pem_x509_certificates(Path(spec.certificate_file).read_bytes())
    except (OSError, ValueError):
        return None
    return min((one.not_valid_after_utc.timestamp() for one in chain), default=None)


class Tls:
    """The context that new connections get; another one after a change."""

    def __init__(self, spec: TlsSpec, clock: Clock) -> None:
        """
        Raises:
            Invalid: as `load`.
        """
        self._spec = spec
        self._clock = clock
        self._seen = self._look()
        self.context = load(spec)
        self.expires_s: float | None = _expires_s(spec)
        """When the first certificate of the chain that is served expires, in seconds since 1970; None: that cannot be
        told."""

    async def keep_fresh(self, interval_ms: float = RELOAD_INTERVAL_MS) -> None:
        """Load the files again whenever they have changed. What cannot be used is logged, and the old stays."""
        while True:
            await self._clock.sleep_ms(interval_ms)
            seen = self._look()
            if seen == self._seen:
                continue
            try:
                self._renew()
                self.expires_s = _expires_s(self._spec)
                log.info("certificate-reloaded", extra={"file": self._spec.certificate_file})
            except Invalid as error:  # half of a change, most often: the rest of it is seen next time
                log.warning("certificate-not-reloaded", extra={"error": str(error)})
            self._seen = seen

    def _renew(self) -> None:
        self.context = load(self._spec)

    def _look(self) -> tuple[object, ...]:
        seen: list[object] = []
        for file in (self._spec.certificate_file, self._spec.key_file, self._spec.client_ca_file):
            try:
                found = Path(file).stat() if file is not None else None
                seen.append(found and (found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                seen.append(None)
        return tuple(seen)


class TlsInPlace(Tls):
    """One context that lives as long as its server, for servers that are handed it once. Clients' certificates are not
    asked for: who may sign them could not be taken back."""

    def _renew(self) -> None:
        load(self._spec)  # half of a change must not reach the context
        self.context.load_cert_chain(self._spec.certificate_file, self._spec.key_file, lambda: b"")
