"""Who may use the Postgres wire: SCRAM-SHA-256, which every client has had since Postgres 10.

No password ever travels: neither in the clear nor as MD5 is one asked for. Of a password the server keeps salted keys,
which can check a client's proof and cannot make one. Who asks for a user that is not there goes through the same
exchange and is refused at its end.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from dataplane import scram
from dataplane.contract.security import Mechanism
from dataplane.tsdb.protocols import postgres_messages as messages
from providers.base.clock import Rng
from providers.base.errors import Invalid

MECHANISM = Mechanism.SCRAM_SHA_256
ITERATIONS = scram.ITERATIONS_MIN


class Users:
    """Names and what their passwords are checked by."""

    def __init__(self, passwords: Mapping[str, str], rng: Rng) -> None:
        """Some milliseconds of work a user. Raises Invalid: a user without a password."""
        if empty := [name for name, password in passwords.items() if not password]:
            raise Invalid(f"user {empty[0]!r} has no password")
        self._secret = rng.token().encode()
        self._known = {name: _credential(password, rng) for name, password in passwords.items()}

    def find(self, user: str) -> scram.Credential:
        """A user's; of one that is not there, one that no password fits."""
        return self._known.get(user) or scram.decoy(MECHANISM, user, self._secret)


def _credential(password: str, rng: Rng) -> scram.Credential:
    salt = bytes.fromhex(rng.token())
    # Clients prepare passwords beyond ASCII so (SASLprep); of what that also drops no password is made.
    prepared = unicodedata.normalize("NFKC", password)
    return scram.credential(MECHANISM, scram.salted(MECHANISM, prepared, salt, ITERATIONS), salt, ITERATIONS)


class Login:
    """One client's way through the exchange, without I/O: `offer`, then `step` for each of its messages."""

    def __init__(self, users: Users, user: str, rng: Rng) -> None:
        self._scram = scram.ScramServer(MECHANISM, users.find, rng.token(), user=user)
        self._begun = False

    @property
    def offer(self) -> bytes:
        """What is sent first."""
        return messages.authentication_sasl([MECHANISM.value])

    @property
    def done(self) -> bool:
        return self._scram.done

    def step(self, body: bytes) -> bytes:
        """The answer to a PasswordMessage's body.

        Raises:
            scram.Refused: the login fails. Violation: that is no such message.
        """
        if self._begun:
            data: bytes | None = body
        else:
            self._begun = True
            fields = messages.Body(body)
            if (mechanism := fields.text()) != MECHANISM.value:
                raise scram.Refused(f"mechanism {mechanism[:40]!r} is not offered")
            data = fields.value()
            fields.end()
        answer = self._scram.step(data or b"")
        if self._scram.done:
            return messages.authentication_sasl_final(answer)
        return messages.authentication_sasl_continue(answer)
