"""What every run of a drill has, whatever it breaks: clock, timeline, a fault that is undone once, findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.drill.faults import Breaker
from controlplane.drill.report import Report
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import YunheError

Status = Callable[[], dict[str, Any]]
"""The status document of now."""


class Course:
    """See the module. Recipes use its public parts."""

    def __init__(
        self, report: Report, *, clock: Clock, say: Callable[[str], None], status: Status, breaker: Breaker
    ) -> None:
        self.report = report
        self.measured = report.measured
        self.clock = clock
        self.breaker = breaker
        self.undone_ms: float | None = None
        """When the fault had ended."""
        self._say = say
        self._status = status
        self._began_ms = clock.monotonic_ms()

    def wait_until(self, at_ms: float) -> None:
        """Sleep until a moment of the monotonic clock."""
        sleep_blocking_ms(max(0.0, at_ms - self.clock.monotonic_ms()))

    def undo(self) -> None:
        """End the fault; once it has ended, nothing."""
        if self.undone_ms is None and self.attempt(self.breaker.undo):
            self.undone_ms = self.clock.monotonic_ms()
            self.event("undone")

    def attempt(self, step: Callable[[], None]) -> bool:
        """Do a step after the fault. What goes wrong then is a finding, not the end of the drill."""
        try:
            step()
        except (YunheError, OSError) as error:
            if str(error) not in self.report.trouble:
                self.report.trouble.append(str(error))
            self.event(f"trouble: {error}")
            return False
        return True

    def event(self, what: str, at_ms: float | None = None) -> None:
        """Note it for the timeline; it happened just now, or at `at_ms`."""
        at = (self.clock.monotonic_ms() if at_ms is None else at_ms) - self._began_ms
        self.report.timeline.append((at, what))
        self._say(f"  {at / 1000:6.2f} s  {what}")

    def unkept(self, sentence: str) -> None:
        """Something that the drill promises was not so, or it showed nothing."""
        self.measured.unkept = (*self.measured.unkept, sentence)
