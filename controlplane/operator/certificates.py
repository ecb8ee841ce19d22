"""The webhook's certificate: made by the operator itself, kept in a Secret that its replicas share, and put into the
webhook's configuration as what the API server shall trust.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kubernetes import client

from providers.base.clock import Clock
from providers.base.errors import Unavailable

VALID_DAYS = 365
RENEW_BEFORE_DAYS = 60
CLOCK_SKEW = timedelta(hours=1)
TRIES_MAX = 5


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM texts; `key` is a secret, and is never shown."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Certificate(…)"

    def fresh(self, clock: Clock) -> bool:
        """Whether it is valid for a good while yet; false for what is no certificate."""
        try:
            until = x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc
        except ValueError:
            return False
        return until - _now(clock) > timedelta(days=RENEW_BEFORE_DAYS)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Serve with it from now on; open connections keep what they had."""
        with tempfile.TemporaryDirectory(prefix="yunhe-webhook-") as folder:
            path = Path(folder) / "pair.pem"
            path.touch(mode=0o600)
            path.write_bytes(self.key + self.certificate)
            context.load_cert_chain(path)


def self_signed(names: tuple[str, ...], clock: Clock) -> Certificate:
    """A certificate for `names` that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = _now(clock)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(built.public_bytes(serialization.Encoding.PEM), private)


def shared_certificate(
    core: client.CoreV1Api, namespace: str, secret: str, names: tuple[str, ...], clock: Clock
) -> Certificate:
    """The Secret's certificate, made anew when it is missing or nearly over. Of two replicas that make one at once, the
    second takes the first one's. Blocks.

    Raises:
        Unavailable: the Secret changed under every try.
    """
    for _ in range(TRIES_MAX):
        found = _read(core, namespace, secret)
        if found is not None:
            data = found.data or {}
            there = Certificate(*(base64.b64decode(data.get(name, "")) for name in ("tls.crt", "tls.key")))
            if there.fresh(clock):
                return there
        made = self_signed(names, clock)
        body = client.V1Secret(
            metadata=client.V1ObjectMeta(name=secret, namespace=namespace),
            type="kubernetes.io/tls",
            data={
                "tls.crt": base64.b64encode(made.certificate).decode(),
                "tls.key": base64.b64encode(made.key).decode(),
            },
        )
        try:
            if found is None:
                core.create_namespaced_secret(namespace, body)
            else:
                body.metadata = found.metadata  # its version, so that nobody's newer one is overwritten
                core.replace_namespaced_secret(secret, namespace, body)
            return made
        except client.ApiException as error:
            if error.status != 409:
                raise
    raise Unavailable(f"Secret {namespace}/{secret} changed under every try", hint="it is tried again")


def trust(api: client.ApiClient, configuration: str, certificate: Certificate) -> None:
    """Tell the API server whom to trust, for each webhook of `configuration`. Blocks."""
    admission = client.AdmissionregistrationV1Api(api)
    bundle = base64.b64encode(certificate.certificate).decode()
    there: Any = admission.read_validating_webhook_configuration(configuration)
    changes = [
        {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle}
        for index, webhook in enumerate(there.webhooks or [])
        if webhook.client_config.ca_bundle != bundle
    ]
    if changes:
        # The version is tested, so that an index never meets another list.
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": there.metadata.resource_version}
        admission.patch_validating_webhook_configuration(configuration, [version, *changes])


def _read(core: client.CoreV1Api, namespace: str, name: str) -> Any:
    try:
        return core.read_namespaced_secret(name, namespace)
    except client.ApiException as error:
        if error.status == 404:
            return None
        raise


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.wall_ms() / 1000, UTC)
