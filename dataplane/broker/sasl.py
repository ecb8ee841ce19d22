"""Logging in: what a connection of a SASL listener says before anything else, and again when its login has run out.

    ApiVersions* ──► SaslHandshake v1 (mechanism) ──► SaslAuthenticate … ──► logged in
                     SaslHandshake v0 (mechanism) ──► bare tokens …      ──► logged in

Anything else, in any other order, ends the connection.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kio.schema.errors import ErrorCode

from dataplane import scram
from dataplane.broker import wire
from dataplane.broker.wire import Request
from dataplane.broker.wire_primitives import Malformed
from dataplane.contract.security import Mechanism
from dataplane.ledger.security_state import ScramKeys
from dataplane.scram import Credential, Refused, ScramServer
from providers.base.clock import Clock, Rng

log = logging.getLogger(__name__)

HANDSHAKE, AUTHENTICATE = 17, 36
FRAME_BYTES_MAX = 8 << 10
"""Of what a connection sends before it has logged in: less than its first receive buffer, so that nothing is allocated
for it."""
FRAMES_MAX = 16
"""Requests of one login; a SCRAM client needs five."""
FAILED_DELAY_MS = 200
"""A failed login is told so late, that passwords are not tried by the thousand. Kafka's own default is 100."""
PLAIN_AT_ONCE = 4
"""Passwords of PLAIN checked at a time: each costs milliseconds of a thread."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a frame of a login led to. `close`: the connection ends once the answer is sent."""

    answer: bytes | None
    close: bool = False
    passed: bool = False


class Keys(Protocol):
    """Users' salted keys as the ledger has them now: user → mechanism → keys."""

    def __call__(self) -> Mapping[str, Mapping[str, ScramKeys]]: ...


class Sasl:
    """What the logins of a broker share."""

    def __init__(
        self, mechanisms: Sequence[Mechanism], lifetime_ms: int, keys: Keys, *, clock: Clock, rng: Rng, secret: bytes
    ) -> None:
        self.mechanisms = tuple(mechanisms)
        self.lifetime_ms = lifetime_ms
        self.clock = clock
        self._keys = keys
        self._rng = rng
        self._secret = secret
        self._plain = asyncio.Semaphore(PLAIN_AT_ONCE)

    def scram(self, mechanism: Mechanism) -> ScramServer:
        return ScramServer(mechanism, lambda user: self._find(user, mechanism), self._rng.token())

    def _find(self, user: str, mechanism: Mechanism) -> Credential:
        kept = self._keys().get(user, {}).get(mechanism.value)
        return _credential(kept) if kept is not None else scram.decoy(mechanism, user, self._secret)

    async def check_plain(self, token: bytes) -> str:
        """The user whose name and password the token is (RFC 4616).

        Raises:
            Refused: they do not belong together.
        """
        try:
            authzid, user, password = token.decode().split("\0")
        except ValueError:
            raise Refused("not a PLAIN token") from None
        if not user or not password or authzid not in ("", user):
            raise Refused("no user, no password, or acting for somebody else")
        # The same keys as SCRAM's: there is no list of passwords to compare with.
        has = self._keys().get(user, {})
        mechanism = Mechanism.SCRAM_SHA_512 if Mechanism.SCRAM_SHA_512.value in has else Mechanism.SCRAM_SHA_256
        known = self._find(user, mechanism)
        async with self._plain:
            if not await asyncio.to_thread(scram.password_fits, mechanism, password, known):
                raise Refused("wrong password, or no such user")
        return user


class Login:
    """One connection's logins: the first, and those that renew it."""

    def __init__(self, sasl: Sasl, host: str) -> None:
        self._sasl = sasl
        self._host = host
        self._mechanism: Mechanism | None = None
        self._used: Mechanism | None = None
        self._scram: ScramServer | None = None
        self._bare = False
        self._frames = 0
        self.user: str | None = None

    @property
    def lifetime_ms(self) -> int:
        """How long it counts; 0: for good."""
        return self._sasl.lifetime_ms

    async def take(self, frame: bytes) -> Outcome:
        """Handle the next frame.

        Raises:
            Malformed: nothing that belongs here; the connection is to be closed.
        """
        self._frames += 1
        if self._frames > FRAMES_MAX:
            raise Malformed("too many requests without a login")
        if self._bare:
            return await self._take_bare(frame)
        request = wire.decode(frame)
        if request.api_key == wire.API_VERSIONS:
            known = request.body is not None
            return Outcome(wire.encode(request, wire.api_versions()) if known else wire.encode_unsupported(request))
        if request.body is None or request.api_key not in (HANDSHAKE, AUTHENTICATE):
            raise Malformed(f"api {request.api_key} before a login")
        return self._shake(request) if request.api_key == HANDSHAKE else await self._authenticate(request)

    def _shake(self, request: Request) -> Outcome:
        offered = [m.value for m in self._sasl.mechanisms]
        asked = str(request.body.mechanism)
        error = ErrorCode.none
        if asked not in offered:
            error = ErrorCode.unsupported_sasl_mechanism
        elif self._mechanism is not None or self._used not in (None, Mechanism(asked)):
            error = ErrorCode.illegal_sasl_state
        if error is not ErrorCode.none:
            return Outcome(wire.encode(request, {"error_code": error, "mechanisms": offered}), close=True)
        self._mechanism = Mechanism(asked)
        self._scram = None if self._mechanism is Mechanism.PLAIN else self._sasl.scram(self._mechanism)
        self._bare = request.version == 0
        return Outcome(wire.encode(request, {"error_code": error, "mechanisms": offered}))

    async def _authenticate(self, request: Request) -> Outcome:
        if self._mechanism is None:
            return Outcome(_answer(request, ErrorCode.illegal_sasl_state, "SaslHandshake comes first"), close=True)
        try:
            token, done = await self._step(bytes(request.body.auth_bytes))
        except Refused as refused:
            await self._refuse(refused)
            text = "authentication failed: wrong user or password"
            return Outcome(_answer(request, ErrorCode.sasl_authentication_failed, text), close=True)
        lifetime_ms = self._sasl.lifetime_ms if done else 0
        return Outcome(_answer(request, ErrorCode.none, None, token, lifetime_ms), passed=done)

    async def _take_bare(self, token: bytes) -> Outcome:
        try:
            answer, done = await self._step(token)
        except Refused as refused:
            await self._refuse(refused)
            return Outcome(None, close=True)
        self._bare = not done
        return Outcome(len(answer).to_bytes(4, "big") + answer, passed=done)

    async def _step(self, token: bytes) -> tuple[bytes, bool]:
        """The answer to a token, and whether that was the last one.

        Raises:
            Refused: the login fails.
        """
        if self._scram is None:
            user, answer = await self._sasl.check_plain(token), b""
        else:
            answer = self._scram.step(token)
            if not self._scram.done:
                return answer, False
            user = self._scram.user
        if self.user not in (None, user):
            raise Refused("another user than at first")
        self.user, self._used = user, self._mechanism
        self._mechanism = self._scram = None
        self._frames = 0
        return answer, True

    async def _refuse(self, refused: Refused) -> None:
        log.warning("login-failed", extra={"peer": self._host, "mechanism": self._mechanism, "reason": str(refused)})
        await self._sasl.clock.sleep_ms(FAILED_DELAY_MS)


def illegal_state(request: Request) -> bytes:
    """The answer to a login on a listener that has none."""
    if request.api_key == HANDSHAKE:
        return wire.encode(request, {"error_code": ErrorCode.illegal_sasl_state, "mechanisms": ()})
    return _answer(request, ErrorCode.illegal_sasl_state, "this listener has no SASL")


def _answer(
    request: Request, error: ErrorCode, message: str | None, token: bytes = b"", lifetime_ms: float = 0
) -> bytes:
    fields: dict[str, Any] = {
        "error_code": error,
        "error_message": message,
        "auth_bytes": token,
        "session_lifetime": datetime.timedelta(milliseconds=lifetime_ms),
    }
    return wire.encode(request, fields)


def _credential(kept: ScramKeys) -> Credential:
    return Credential(
        bytes.fromhex(kept.salt), kept.iterations, bytes.fromhex(kept.stored_key), bytes.fromhex(kept.server_key)
    )
