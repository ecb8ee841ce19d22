"""Faults that a test or a drill asks an emulated store for: slow, failing, answering and then losing the answer, or
gone. Seeded, so that a drill repeats."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from providers.base.clock import SeededRng
from providers.base.errors import Invalid
from providers.lab.wire import Exchange

RULES_MAX = 64
REQUESTS_KEPT_MAX = 1000
"""The newest requests are kept for whoever wants to count them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the requests that match; the first rule that matches decides."""

    method: str = ""
    """HTTP method; empty: any."""
    contains: str = ""
    """Text that the request's target holds; empty: any."""
    times: int = -1
    """How many requests it applies to, then it is spent; -1: no end."""
    latency_ms: float = 0
    """Waited before anything else."""
    rate: float = 1.0
    """Probability that the error, drop or refusal below happens to a matching request."""
    error_status: int = 0
    """Answer this status with `error_code` and do nothing; 0: no error."""
    error_code: str = "InternalError"
    drop_answer: bool = False
    """Do what is asked, then cut the connection: the answer is lost."""
    unavailable: bool = False
    """Cut the connection and do nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with one request."""

    latency_ms: float = 0
    error: tuple[int, str] | None = None
    drop_answer: bool = False
    unavailable: bool = False


class Faults:
    """The rules in force and the newest requests."""

    def __init__(self) -> None:
        self._rng = SeededRng(0)
        self._rules: list[tuple[Rule, int]] = []
        self._requests: deque[tuple[str, str, int]] = deque(maxlen=REQUESTS_KEPT_MAX)

    def load(self, plain: Mapping[str, Any]) -> None:
        """Replace all rules: `{"seed": 1, "rules": [{...}]}`.

        Raises:
            Invalid: an unknown field or a value of the wrong type; the rules in force stay.
        """
        known = {field.name: field.default for field in fields(Rule)}
        rules = plain.get("rules", [])
        if not isinstance(rules, list) or len(rules) > RULES_MAX:
            raise Invalid(f"rules is a list of at most {RULES_MAX}")
        fresh = []
        for rule in rules:
            for name, value in rule.items():
                if name not in known:
                    raise Invalid(f"unknown field {name!r} in a fault rule", hint=f"one of: {', '.join(known)}")
                if not isinstance(value, (int, float) if isinstance(known[name], (int, float)) else type(known[name])):
                    raise Invalid(f"field {name!r} of a fault rule has the wrong type")
            made = Rule(**rule)
            fresh.append((made, made.times))
        self._rules = fresh
        self._rng = SeededRng(int(plain.get("seed", 0)))

    def judge(self, exchange: Exchange) -> Verdict:
        """What happens to this request, whose body has arrived and which nothing has been done about yet."""
        for index, (rule, left) in enumerate(self._rules):
            if left == 0 or (rule.method and rule.method != exchange.method) or rule.contains not in exchange.target:
                continue
            self._rules[index] = (rule, left - 1 if left > 0 else left)
            if self._rng.uniform(0, 1) >= rule.rate:
                return Verdict(latency_ms=rule.latency_ms)
            error = (rule.error_status, rule.error_code) if rule.error_status else None
            return Verdict(rule.latency_ms, error, rule.drop_answer, rule.unavailable)
        return Verdict()

    def note(self, exchange: Exchange) -> None:
        """Remember a request that is over; status 0: no answer was sent."""
        self._requests.append((exchange.method, exchange.target, exchange.status))

    def plain(self) -> dict[str, Any]:
        """Rules in force and newest requests, for the admin endpoint."""
        return {
            "rules": [{**asdict(rule), "times": left} for rule, left in self._rules],
            "requests": [list(row) for row in self._requests],
        }
