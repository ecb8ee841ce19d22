"""How a broker's listener is secured, as plain data without a secret: protocols, and references to where keys and
passwords are (files, or `env:NAME`; see `providers/base/credentials.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ListenerProtocol(StrEnum):
    """Kafka's names of what a listener speaks."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def tls(self) -> bool:
        return self in (ListenerProtocol.SSL, ListenerProtocol.SASL_SSL)

    @property
    def sasl(self) -> bool:
        return self in (ListenerProtocol.SASL_PLAINTEXT, ListenerProtocol.SASL_SSL)


class ClientAuth(StrEnum):
    """Whether a client has to show a certificate of its own."""

    NONE = "none"
    REQUESTED = "requested"
    REQUIRED = "required"


class Mechanism(StrEnum):
    """The SASL mechanisms that are served. PLAIN hands the password over, and so needs TLS under it."""

    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"
    PLAIN = "PLAIN"


@dataclass(frozen=True, slots=True)
class TlsSpec:
    """PEM files on the broker's host. They are read again when they change, without a restart."""

    certificate_file: str
    """The server's certificate, and those between it and the root."""
    key_file: str
    """Its key, unencrypted, mode 0600."""
    client_ca_file: str | None = None
    """Who may sign clients' certificates."""
    client_auth: ClientAuth = ClientAuth.NONE


@dataclass(frozen=True, slots=True)
class SecuritySpec:
    """A cluster's security. As it stands here: none."""

    protocol: ListenerProtocol = ListenerProtocol.PLAINTEXT
    tls: TlsSpec | None = None
    mechanisms: tuple[Mechanism, ...] = ()
    users: str | None = None
    """Reference to a JSON object of user → password: who can log in before anybody has made users. Only their salted
    keys enter the ledger, when the ledger has none of that user yet."""
    reauthenticate_ms: int = 0
    """How long a login counts (KIP-368); 0: as long as the connection."""
    peer_secret: str | None = None
    """Reference to a JSON object with `secret`: brokers that know it talk to each other. None: whoever reaches the
    port."""
    authorize: bool = False
    """Whether ACLs decide what a client may do; without any, nobody but the super users may do anything."""
    super_users: tuple[str, ...] = ()
    """Principals, as in `User:admin`, whom no ACL concerns."""
