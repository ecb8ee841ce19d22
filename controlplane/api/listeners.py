"""How clients reach a cluster's brokers, who they must be, and how brokers know each other.

Keys and passwords are named by where they are on each broker's host: a path, `file:PATH`, or `env:NAME`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr, model_validator

from controlplane.api.model import Model, each_once
from controlplane.api.quantities import Duration, Refused, duration_ms
from dataplane.contract.security import ClientAuth, ListenerProtocol, Mechanism, SecuritySpec, TlsSpec


def _reference(value: Any) -> Any:
    if isinstance(value, str) and (not value or any(c in value for c in "{}\"'\n") or value.startswith("-----")):
        raise Refused(
            "this is no reference", "write where the secret is: a path, file:PATH, or env:NAME; never the secret itself"
        )
    return value


Reference = Annotated[StrictStr, BeforeValidator(_reference)]
"""Where a secret is."""


def _principal(value: str) -> str:
    kind, _, name = value.partition(":")
    if kind != "User" or not name:
        raise Refused(f"{value!r} is not a principal", "write it as User:name, or User:CN=name for a certificate")
    return value


class Tls(Model):
    """PEM files on each broker's host; they are read again when they change, without a restart."""

    certificate_file: StrictStr
    """The server's certificate, and those between it and the root."""
    key_file: StrictStr
    """Its key, unencrypted, readable for the agent's user alone."""
    client_ca_file: StrictStr | None = None
    """Certificates of those who may sign clients' certificates."""
    client_auth: Literal["none", "requested", "required"] = "none"
    """Whether clients show a certificate, whose subject is then their principal."""

    @model_validator(mode="after")
    def _has_an_authority(self) -> Tls:
        if self.client_auth != "none" and self.client_ca_file is None:
            raise Refused(
                f"clientAuth {self.client_auth} needs the field clientCaFile", "name who signs clients' certificates"
            )
        return self


class Sasl(Model):
    """Logging in with a user and a password."""

    mechanisms: Annotated[
        tuple[Literal["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"], ...], Field(min_length=1), AfterValidator(each_once)
    ] = ("SCRAM-SHA-256", "SCRAM-SHA-512")
    """PLAIN hands the password over, and is only for SASL_SSL."""
    users: Reference
    """Where a JSON object of user and password is: who is there before any other user was made by a Kafka client.
    Their salted keys enter the cell's ledger when it does not have them; a changed password is changed by a client."""
    reauthenticate: Duration | None = None
    """How long a login counts. Left out: as long as the connection."""


class Listeners(Model):
    """Where brokers listen, and what they want of whoever comes."""

    host: StrictStr = "127.0.0.1"
    """Address to bind and to advertise. Ports are picked free by the agents, once."""
    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """As Kafka calls them."""
    tls: Tls | None = None
    """For SSL and SASL_SSL."""
    sasl: Sasl | None = None
    """For SASL_PLAINTEXT and SASL_SSL."""
    peer_secret: Reference | None = None
    """Where a JSON object with `secret`, 16 characters or more, is: what the cluster's brokers know each other by.
    Needed unless the protocol is PLAINTEXT, and there from a cluster's beginning: brokers that have it and brokers that
    do not are strangers."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Listeners:
        protocol = ListenerProtocol(self.protocol)
        for name, wanted, there in (("tls", protocol.tls, self.tls), ("sasl", protocol.sasl, self.sasl)):
            if wanted and there is None:
                raise Refused(f"protocol {self.protocol} needs the field {name}", f"add `{name}: {{…}}`")
            if there is not None and not wanted:
                raise Refused(f"{name} is set although protocol is {self.protocol}", f"remove the field {name}")
        if self.sasl is not None and "PLAIN" in self.sasl.mechanisms and not protocol.tls:
            raise Refused("PLAIN hands passwords over in the clear", "set `protocol: SASL_SSL`, or leave PLAIN out")
        if protocol is not ListenerProtocol.PLAINTEXT and self.peer_secret is None:
            raise Refused(
                f"protocol {self.protocol} needs the field peerSecret",
                "else whoever reaches a broker's other port can speak as a broker",
            )
        return self


class Authorization(Model):
    """ACLs are kept to: what no ACL permits is denied."""

    super_users: Annotated[
        tuple[Annotated[StrictStr, AfterValidator(_principal)], ...], Field(min_length=1), AfterValidator(each_once)
    ]
    """Principals whom no ACL concerns; the first ACLs are theirs to make."""


def check_authorization(listeners: Listeners, authorization: Authorization | None) -> None:
    """
    Raises:
        Refused: ACLs where nobody says who he is.
    """
    nameless = listeners.protocol == "PLAINTEXT" or (
        listeners.protocol == "SSL" and (listeners.tls is None or listeners.tls.client_auth == "none")
    )
    if authorization is not None and nameless:
        raise Refused(
            "authorization needs clients that say who they are",
            "choose a SASL protocol, or SSL with `clientAuth: required`",
        )


def security_of(listeners: Listeners, authorization: Authorization | None) -> SecuritySpec:
    """What the brokers are told of it."""
    tls, sasl = listeners.tls, listeners.sasl
    return SecuritySpec(
        protocol=ListenerProtocol(listeners.protocol),
        tls=None
        if tls is None
        else TlsSpec(tls.certificate_file, tls.key_file, tls.client_ca_file, ClientAuth(tls.client_auth)),
        mechanisms=() if sasl is None else tuple(Mechanism(name) for name in sasl.mechanisms),
        users=None if sasl is None else sasl.users,
        reauthenticate_ms=0 if sasl is None or sasl.reauthenticate is None else duration_ms(sasl.reauthenticate),
        peer_secret=listeners.peer_secret,
        authorize=authorization is not None,
        super_users=() if authorization is None else authorization.super_users,
    )
