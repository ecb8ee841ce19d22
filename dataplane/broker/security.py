"""What secures a broker's listener, put together from the cluster's `SecuritySpec` and the cell's ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kio.schema.errors import ErrorCode

from dataplane import scram
from dataplane.broker.authorize import Access, Authorizer, Session
from dataplane.broker.engine import KafkaError
from dataplane.broker.peer_secrets import read_peer_secrets
from dataplane.broker.quotas import Quotas
from dataplane.broker.sasl import Login, Sasl
from dataplane.certificates import Tls
from dataplane.contract.security import Mechanism, SecuritySpec
from dataplane.ledger.entry import Command
from dataplane.ledger.security import scram_changed
from dataplane.ledger.security_state import ScramKeys, SecurityState
from providers.base.clock import Clock, Rng
from providers.base.credentials import Secrets, read_credentials
from providers.base.errors import Invalid, Unavailable

log = logging.getLogger(__name__)

FIRST_ITERATIONS = 8_192
"""Of the users that the spec names; between Kafka's bounds."""

Decide = Callable[[SecurityState], Sequence[Command] | None]


class Store(Protocol):
    """Where ACLs, users and quotas are: the cell's ledger."""

    @property
    def state(self) -> SecurityState: ...

    async def change(self, decide: Decide) -> None:
        """Append what `decide` makes of the newest state; nothing when it makes nothing.

        Raises:
            KafkaError: REQUEST_TIMED_OUT (the ledger is out of reach), INVALID_REQUEST (refused by it).
        """
        ...


class NoStore:
    """`Store` of a server without a cell: nobody, nothing, for good."""

    state = SecurityState()

    async def change(self, decide: Decide) -> None:
        raise KafkaError(ErrorCode.security_disabled.value, "this server keeps no users, ACLs or quotas")


class Security:
    """See the module. A broker whose spec says nothing of security has one, too: quotas are kept on any listener."""

    def __init__(self, spec: SecuritySpec, store: Store, *, clock: Clock, rng: Rng) -> None:
        """
        Raises:
            Invalid: the spec contradicts itself, or its certificate or the brokers' secret cannot be used.
        """
        check(spec)
        self.store = store
        self.quotas = Quotas(lambda: store.state)
        self.authorizer = Authorizer(lambda: store.state, spec.super_users) if spec.authorize else None
        self.tls = Tls(spec.tls, clock) if spec.tls is not None and spec.protocol.tls else None
        self._rng = rng
        self._users = spec.users
        self._sasl: Sasl | None = None
        if spec.protocol.sasl:
            # Brokers that share a secret invent the same salt for a user that is not there.
            shared = read_peer_secrets(spec.peer_secret)
            secret = shared[0] if shared else rng.token().encode()
            keys = lambda: store.state.scram  # noqa: E731 -- a name would say no more
            self._sasl = Sasl(spec.mechanisms, spec.reauthenticate_ms, keys, clock=clock, rng=rng, secret=secret)

    def login(self, host: str) -> Login | None:
        """What a new connection has to go through; None: nothing."""
        return Login(self._sasl, host) if self._sasl is not None else None

    def access(self, session: Session) -> Access | None:
        """What a session may do; None: everything."""
        return Access(self.authorizer, session) if self.authorizer is not None else None

    async def make_first_users(self) -> None:
        """Enter the spec's users into the ledger, those that it does not have. Where it has some, a file that cannot be
        read keeps no broker from starting.

        Raises:
            Invalid: what the spec names holds no users, and the ledger has none either.
            Unavailable: the ledger did not take them.
        """
        if self._users is None:
            return
        try:
            passwords = read_users(self._users)
        except Invalid as error:
            if not self.store.state.scram:
                raise
            log.warning("first-users-not-read", extra={"error": str(error)})
            return
        missing = {user: password for user, password in passwords.items() if user not in self.store.state.scram}
        if not missing:
            return
        made = await asyncio.to_thread(self._keys_of, missing)

        def decide(state: SecurityState) -> list[Command] | None:
            new = [one for one in made if one[0] not in state.scram]
            return [scram_changed(new, [])] if new else None

        try:
            await self.store.change(decide)
        except KafkaError as error:
            raise Unavailable(f"the first users could not be entered: {error.message}") from error
        log.info("first-users-made", extra={"users": sorted(missing)})

    def _keys_of(self, passwords: Mapping[str, str]) -> list[tuple[str, str, ScramKeys]]:
        made = []
        for user, password in passwords.items():
            for mechanism in (Mechanism.SCRAM_SHA_256, Mechanism.SCRAM_SHA_512):
                salt = bytes.fromhex(self._rng.token())
                salted = scram.salted(mechanism, password, salt, FIRST_ITERATIONS)
                made.append((user, mechanism.value, keys_of(mechanism, salted, salt, FIRST_ITERATIONS)))
        return made


def read_users(reference: str) -> Secrets:
    """Users and their passwords.

    Raises:
        Invalid: there are none. The message does not say what there is.
    """
    found = read_credentials(reference)
    if not found or not all(user and password and isinstance(password, str) for user, password in found.items()):
        raise Invalid(f"{reference} is not a JSON object of users and their passwords")
    return found


def keys_of(mechanism: Mechanism, salted_password: bytes, salt: bytes, iterations: int) -> ScramKeys:
    """What the ledger keeps of a salted password."""
    made = scram.credential(mechanism, salted_password, salt, iterations)
    return ScramKeys(salt.hex(), iterations, made.stored_key.hex(), made.server_key.hex())


def check(spec: SecuritySpec) -> None:
    """
    Raises:
        Invalid: the spec would secure less than it says.
    """
    if spec.protocol.tls and spec.tls is None:
        raise Invalid(f"a listener of {spec.protocol.value} needs a certificate and its key")
    if spec.protocol.sasl and not spec.mechanisms:
        raise Invalid(f"a listener of {spec.protocol.value} needs a mechanism")
    if Mechanism.PLAIN in spec.mechanisms and not spec.protocol.tls:
        raise Invalid("PLAIN hands passwords over, and needs TLS under it")
