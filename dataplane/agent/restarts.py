"""When a process that has ended is started again: its back-off, and the bounds that brokers and databases share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from providers.base.clock import Clock

RESTART_FIRST_MS = 500
RESTART_MAX_MS = 30_000
STEADY_MS = 60_000
"""A process that ran for so long starts with the first back-off again."""
STOP_MS = 15_000
"""How long a process that is to start anew may take to hand over what it has. Then it is killed, and its next life
recovers what it could not hand over."""


@dataclass(slots=True)
class Restarts:
    """Back-off of one process."""

    pause_ms: float = RESTART_FIRST_MS
    not_before_ms: float = 0.0
    started_ms: float = 0.0
    was_running: bool = False
    kill_at_ms: float | None = None
    """It was asked to stop, so as to start with something else; by then it has to be gone. None: it was not asked."""

    def seen_alive(self, now_ms: float) -> bool:
        """It runs; whether that is news, as after a restart of the agent."""
        adopted, self.was_running = not self.was_running, True
        if now_ms - self.started_ms > STEADY_MS:
            self.pause_ms = RESTART_FIRST_MS
        return adopted

    def seen_gone(self, now_ms: float, *, held: bool) -> bool:
        """It does not run; whether it ended just now by itself, so that its back-off begins. `held`: ended on purpose,
        and nothing is wrong with it."""
        if self.kill_at_ms is not None:
            self.kill_at_ms, self.was_running = None, False  # it ended as it was asked to: no back-off
        if not self.was_running:
            return False
        self.was_running = False
        if held:
            self.pause_ms = RESTART_FIRST_MS
        self.not_before_ms = now_ms + self.pause_ms
        self.pause_ms = min(self.pause_ms * 2, RESTART_MAX_MS)
        return True

    def started(self, now_ms: float) -> None:
        """It was started."""
        self.was_running, self.started_ms = True, now_ms


def hold_left_ms(folder: Path, name: str, clock: Clock) -> float:
    """How long a drill keeps this process from being started again. A hold that cannot be read does not hold."""
    try:
        until = json.loads((folder / "holds" / name).read_text())["until_wall_ms"]
        return max(0.0, float(until) - clock.wall_ms())
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
