"""Settings of a ledger: how long to try, how much at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Settings of one ledger."""

    resolve_timeout_ms: float = 15_000
    """How long an append tries to learn its outcome before it raises OutcomeUnknown: longer than an object store's
    fail-over, shorter than an operator's patience.
    """
    retry_first_ms: float = 20
    """First pause after a lost answer; doubles, with jitter."""
    retry_max_ms: float = 1_000
    """Longest pause."""
    read_ahead: int = 32
    """Names read at once while catching up; it begins with one, and doubles while there are more."""
    empty_polls_per_marker: int = 60
    """An idle reader looks at its segment's marker this rarely: nothing new was seen that could be stale."""
    races_max: int = 200
    """Lost races after which an append gives up: fairness is a random pause, not a promise."""
    appends_queued_max: int = 1_000
    """Callers waiting for one incarnation's append in flight."""
    writers_kept_max: int = 256
    """Writer incarnations whose last entry a snapshot keeps, newest first."""
