"""Who is at the other end of a connection: what it has to say before it is known, what it may do, how fast it may be.

Of a connection that is logged in and below its quotas nothing here is asked but two attributes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dataplane.broker import sasl, wire
from dataplane.broker.authorize import ANONYMOUS, Access, Session
from dataplane.broker.limits import Limits
from dataplane.broker.quotas import CONSUMER, MUTATIONS, PRODUCER, REQUESTS
from dataplane.broker.sasl import Login
from dataplane.broker.security import Security
from dataplane.broker.tls import principal_of
from dataplane.broker.wire_fetch import FetchAnswer
from providers.base.clock import Clock


class Caller:
    """One connection's. `resume` is called when the connection may go on, `abort` to end it; `waiting` holds those of a
    listener that have not logged in yet."""

    __slots__ = (
        "_abort",
        "_clock",
        "_login",
        "_login_timer",
        "_loop",
        "_muted",
        "_resume",
        "_security",
        "_waiting",
        "access",
        "blocked",
        "closing",
        "gate",
        "session",
    )

    def __init__(
        self,
        security: Security,
        clock: Clock,
        waiting: set[Caller],
        *,
        resume: Callable[[], None],
        abort: Callable[[], None],
    ) -> None:
        self._security = security
        self._clock = clock
        self._waiting = waiting
        self._resume = resume
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._login: Login | None = None
        self._login_timer: asyncio.TimerHandle | None = None
        self._muted: asyncio.TimerHandle | None = None
        self.gate: Login | None = None
        """While it is there, nothing but a login is taken."""
        self.blocked = False
        """The connection's next request has to wait."""
        self.closing = False
        """The connection ends as soon as what is answered has been sent."""
        self.session = Session()
        self.access: Access | None = None
        """What it may do; None: everything."""

    def connected(self, transport: asyncio.BaseTransport, login_timeout_ms: float, waiting_max: int) -> bool:
        """The connection is there. False: it must not be, too many have not logged in."""
        peer = transport.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        self._identify(Session(principal_of(transport) or ANONYMOUS, host))
        self._login = self.gate = self._security.login(host)
        if self._login is None:
            return True
        if len(self._waiting) >= waiting_max:
            return False
        self._waiting.add(self)
        self._login_timer = self._loop.call_later(login_timeout_ms / 1000, self._abort)
        return True

    def gone(self) -> None:
        """The connection is not there any more."""
        self._waiting.discard(self)
        for timer in (self._login_timer, self._muted):
            if timer is not None:
                timer.cancel()

    def _identify(self, session: Session) -> None:
        self.session = session
        self.access = self._security.access(session)

    # ── login ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def login_for(self, api_key: int) -> Login | None:
        """The login that a request is a step of, None for any other request."""
        if self.gate is not None:
            return self.gate
        return self._login if api_key in (sasl.HANDSHAKE, sasl.AUTHENTICATE) else None

    async def log_in(self, login: Login, frame: bytes) -> bytes | None:
        """Take the next step of a login, the first one or one that renews it; what is to be answered.

        Raises:
            Malformed: as `Login.take`.
        """
        outcome = await login.take(frame)
        if outcome.passed:
            self.gate = None
            self._waiting.discard(self)
            self._identify(Session(f"User:{login.user}", self.session.host))
            if self._login_timer is not None:
                self._login_timer.cancel()
            if login.lifetime_ms:
                self._login_timer = self._loop.call_later(login.lifetime_ms / 1000, self._expire)
        self.closing = outcome.close
        self.blocked = self.closing or self._muted is not None
        return outcome.answer

    def _expire(self) -> None:
        self.gate = self._login

    # ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def counted(self) -> bool:
        """Anybody has a quota, so that what this client asks for has to be counted."""
        return self._security.quotas.active

    def charge_produce(self, frame: memoryview) -> int:
        """Count a request's bytes; for how many milliseconds the client is told to wait.

        Raises:
            Malformed: it has no client id.
        """
        return self._charge(PRODUCER, wire.client_id_of(frame), len(frame))

    def charge_fetch(self, client_id: str, answer: FetchAnswer, limits: Limits | None) -> None:
        """Count an answer's bytes, and the request's time, and put into it how long the client is told to wait."""
        if self.counted:
            size = sum(part.size for _, parts in answer.topics for part in parts)
            answer.throttle_ms = self._charge(CONSUMER, client_id, size)
        if limits is not None:
            limits.client_id = client_id
            answer.throttle_ms = max(answer.throttle_ms, limits.settle())

    def limits(self) -> Limits | None:
        """What the request that comes now may cost beside bytes; None where nobody has such a quota."""
        quotas = self._security.quotas
        if not (quotas.used(REQUESTS) or quotas.used(MUTATIONS)):
            return None
        return Limits(quotas, self._user, self._clock, self._mute)

    @property
    def _user(self) -> str:
        return self.session.principal.partition(":")[2]

    def _charge(self, quota: str, client_id: str, size: int) -> int:
        wait_ms = self._security.quotas.charge(quota, self._user, client_id, size, self._clock.monotonic_ms())
        if wait_ms >= 1:
            self._mute(wait_ms)
        return int(wait_ms)

    def _mute(self, wait_ms: float) -> None:
        """Nothing is read for so long, or for longer where that was said before."""
        until_s = self._loop.time() + wait_ms / 1000
        if self._muted is not None:
            until_s = max(until_s, self._muted.when())
            self._muted.cancel()
        self._muted = self._loop.call_at(until_s, self._unmute)
        self.blocked = True

    def _unmute(self) -> None:
        self._muted = None
        self.blocked = self.closing
        self._resume()
