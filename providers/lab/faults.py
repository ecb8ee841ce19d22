"""What the faults in force do to one request.

Pure: time is handed in, and each draw is a function of a fault's seed and of how many requests it has matched, so that
the same seed and the same sequence of requests give the same verdicts, also across a restart.

    request ──► every fault in force that matches ──► waits add up; of the outcomes the first one decides ──► Verdict
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from providers.base.errors import Invalid, NotFound
from providers.lab.calls import GROUPS, VERB_GROUPS, Call
from providers.lab.fault import SERVICES_OF, VERBS_OF, Fault, Kind, services_of
from providers.lab.latency import LATENCY_MS_MAX, Expectation, Latency

FAULTS_MAX = 64
"""Of one process."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one request."""

    latency_ms: float = 0
    """Waited before anything else."""
    error: tuple[int, str] | None = None
    """Answer this status with this code (empty: the cloud's usual one for it) and do nothing."""
    drop_answer: bool = False
    """Do what is asked, then cut the connection: the answer is lost."""
    unavailable: bool = False
    """Cut the connection and do nothing."""
    silent_ms: float = 0
    """Do nothing and answer nothing; cut the connection after this time."""
    throttled: bool = False
    """Answer as this cloud throttles, and do nothing."""
    full: bool = False
    """Answer as when there is no room, and do nothing."""
    broken: bool = False
    """Answer as when the device fails, and do nothing."""

    @property
    def calm(self) -> bool:
        """Nothing happens to the request."""
        return self is CALM


CALM = Verdict()


class _Active:
    """A fault in force, with what it has seen."""

    def __init__(self, fault: Fault, matched: int = 0) -> None:
        self.fault = fault
        self.matched = matched
        self.services = services_of(fault.service) if fault.service else SERVICES_OF.get(fault.kind)
        self.verbs = VERB_GROUPS.get(fault.verb) or (frozenset({fault.verb}) if fault.verb else None)
        by_kind = VERBS_OF.get(fault.kind)
        if by_kind is not None:
            self.verbs = by_kind if self.verbs is None else by_kind & self.verbs
        self.latency = Latency.of(fault.latency)
        # Two parts of one outage share a seed: their kind keeps their draws apart.
        self._salt = f"{fault.seed}:{fault.kind}:{fault.service}:{fault.verb}:"
        self._free_ms: float | None = None
        self._tokens: tuple[float, float, float] | None = None

    def matches(self, call: Call, method: str, target: str) -> bool:
        fault = self.fault
        if self.services is not None and call.service not in self.services:
            return False
        if self.verbs is not None and call.verb not in self.verbs:
            return False
        # A zone takes with it what it holds, and its callers.
        zones = (call.zone, call.caller_zone) if fault.kind is Kind.ZONE_LOSS else (call.zone,)
        if fault.zone and fault.zone not in zones:
            return False
        return (not fault.method or fault.method == method) and fault.contains in target

    def draw(self, index: int, purpose: str) -> float:
        digest = hashlib.blake2b(f"{self._salt}{purpose}{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def wait_ms(self, index: int, now_ms: float, call: Call) -> float:
        waited, fault = 0.0, self.fault
        if self.latency is not None:
            waited = self.latency.at(self.draw(index, "wait"), now_ms - fault.from_ms)
        queues = fault.kind is Kind.SLOW_DISK or (fault.kind is Kind.THROTTLE and call.service == "volumes")
        if queues and (fault.bytes_s or fault.requests_s):
            # One disk: a request waits until those before it are through. A device over its limit is throttled so, too.
            begin = now_ms if self._free_ms is None else max(now_ms, self._free_ms)
            takes_s = call.size / fault.bytes_s if fault.bytes_s else 0.0
            self._free_ms = begin + max(takes_s, 1 / fault.requests_s if fault.requests_s else 0.0) * 1000
            waited += self._free_ms - now_ms
        return min(waited, LATENCY_MS_MAX)

    def over_rate(self, now_ms: float, call: Call) -> bool:
        """A second's worth may come at once; a request larger than that passes when the bucket is full."""
        if call.service == "volumes":
            return False  # no device refuses; it is slow
        size = call.size
        requests_s, bytes_s = self.fault.requests_s, self.fault.bytes_s
        at_ms, requests, volume = self._tokens or (now_ms, max(1.0, requests_s), bytes_s)
        passed_s = max(0.0, now_ms - at_ms) / 1000
        requests = min(max(1.0, requests_s), requests + passed_s * requests_s)
        volume = min(bytes_s, volume + passed_s * bytes_s)
        over = bool((requests_s and requests < 1) or (bytes_s and volume < min(size, bytes_s)))
        if not over:
            requests, volume = requests - 1, volume - size
        self._tokens = now_ms, requests, volume
        return over


_OUTCOMES: Mapping[Kind, Callable[[Fault], Verdict]] = {
    Kind.ERROR: lambda fault: Verdict(error=(fault.status, fault.code)),
    Kind.THROTTLE: lambda fault: Verdict(throttled=True),
    Kind.TIMEOUT: lambda fault: Verdict(silent_ms=fault.hold_ms),
    Kind.RESET: lambda fault: Verdict(unavailable=True),
    Kind.LOST: lambda fault: Verdict(drop_answer=True),
    Kind.ZONE_LOSS: lambda fault: Verdict(unavailable=True),
    Kind.CLOUD_LOSS: lambda fault: Verdict(unavailable=True),
    Kind.DISK_FULL: lambda fault: Verdict(full=True),
    Kind.IO_ERROR: lambda fault: Verdict(broken=True),
}


class Faults:
    """The faults of one process, and its latency profile. Used from one thread, but for `skew_ms`."""

    def __init__(self) -> None:
        self._active: tuple[_Active, ...] = ()
        self._expected: tuple[Expectation, ...] = ()
        self._asked = 0
        self._next_end_ms = float("inf")

    # ---- which are in force

    def add(self, faults: Sequence[Fault], now_ms: float, *, matched: Mapping[str, int] | None = None) -> None:
        """All of them, or none. One whose id is taken replaces it.

        Raises:
            Invalid: too many.
        """
        fresh = {fault.id: _Active(fault, (matched or {}).get(fault.id, 0)) for fault in faults}
        kept = [one for one in self._active if one.fault.id not in fresh and one.fault.until_ms > now_ms]
        if len(kept) + len(fresh) > FAULTS_MAX:
            raise Invalid(f"there are at most {FAULTS_MAX} faults", hint="clear some first")
        self._replace([*kept, *fresh.values()])

    def clear(self, ids: Iterable[str] | None = None, *, transient: bool | None = None) -> list[str]:
        """Those faults, or all; returns the ids of what was in force.

        Raises:
            NotFound: an id that no fault has; nothing was cleared.
        """
        named = None if ids is None else set(ids)
        here = {one.fault.id for one in self._active}
        if named is not None and (unknown := sorted(named - here)):
            raise NotFound(f"no fault is named {', '.join(unknown)}", hint=f"there are: {', '.join(here) or 'none'}")
        gone = [
            one
            for one in self._active
            if (named is None or one.fault.id in named) and transient in (None, one.fault.transient)
        ]
        self._replace([one for one in self._active if one not in gone])
        return [one.fault.id for one in gone]

    def expect(self, rows: Sequence[Expectation]) -> None:
        """The latency profile: what requests wait in any case."""
        self._expected = tuple(rows)

    def any(self) -> bool:
        """Whether there is one, over or not."""
        return bool(self._active)

    @property
    def quiet(self) -> bool:
        """Nothing can happen to any request."""
        return not self._active and not self._expected

    def live(self, now_ms: float) -> list[tuple[Fault, int]]:
        """Faults that are not over, those to come included, with how many requests each has matched."""
        self._expire(now_ms)
        return [(one.fault, one.matched) for one in self._active]

    def _replace(self, active: Sequence[_Active]) -> None:
        self._active = tuple(active)
        self._next_end_ms = min((one.fault.until_ms for one in active), default=float("inf"))

    def _expire(self, now_ms: float) -> None:
        if now_ms >= self._next_end_ms:
            self._replace([one for one in self._active if one.fault.until_ms > now_ms])

    # ---- what they do

    def skew_ms(self, now_ms: float) -> float:
        """How far the cloud's clock is ahead now."""
        return sum(
            one.fault.skew_ms
            for one in self._active
            if one.fault.kind is Kind.CLOCK_SKEW and one.fault.from_ms <= now_ms < one.fault.until_ms
        )

    def severed(self, zone: str, now_ms: float) -> bool:
        """Whether the zone, or all of the cloud, is lost now."""
        return any(
            one.fault.from_ms <= now_ms < one.fault.until_ms
            and (one.fault.kind is Kind.CLOUD_LOSS or (one.fault.kind is Kind.ZONE_LOSS and one.fault.zone == zone))
            and (one.services is None or "volumes" in one.services)
            for one in self._active
        )

    def judge(self, call: Call, now_ms: float, *, method: str = "", target: str = "") -> Verdict:
        """What happens to this request."""
        if self.quiet:
            return CALM
        self._expire(now_ms)
        waited = self._expectation_ms(call) if self._expected else 0.0
        verdict: Verdict | None = None
        over: list[_Active] = []
        for one in self._active:
            fault = one.fault
            if fault.from_ms > now_ms or not one.matches(call, method, target):
                continue
            index, one.matched = one.matched, one.matched + 1
            if fault.times >= 0 and one.matched >= fault.times:
                over.append(one)
                if fault.times == 0:
                    continue
            happens = fault.rate >= 1 or one.draw(index, "rate") < fault.rate
            if happens or fault.kind not in (Kind.LATENCY, Kind.SLOW_DISK):
                waited += one.wait_ms(index, now_ms, call)
            outcome = _OUTCOMES.get(fault.kind)
            if outcome is None or not happens or verdict is not None:
                continue
            if fault.kind is Kind.THROTTLE and not one.over_rate(now_ms, call):
                continue
            verdict = outcome(fault)
            if fault.kind is Kind.ZONE_LOSS and call.service in GROUPS["control"] and call.caller_zone != fault.zone:
                # The regional API lives, and says that it cannot do anything there.
                verdict = Verdict(error=(503, ""))
        if over:
            self._replace([one for one in self._active if one not in over])
        if not waited:
            return verdict or CALM
        return replace(verdict or CALM, latency_ms=min(waited, LATENCY_MS_MAX))

    def _expectation_ms(self, call: Call) -> float:
        for row in self._expected:
            if row.service == call.service and (not row.verbs or call.verb in row.verbs):
                self._asked += 1
                digest = hashlib.blake2b(f"expected{self._asked}".encode(), digest_size=8).digest()
                return row.latency.at(int.from_bytes(digest, "big") / 2**64, 0)
        return 0.0
