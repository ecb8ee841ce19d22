"""How long blocks take from their sealing to their acks: as a window of time shows it, and in all."""

from __future__ import annotations

import statistics
from collections import deque

from dataplane.metrics.histogram import Histogram

SAMPLES_MAX = 512
"""Blocks of a window that count, the newest: a fast volume makes thousands a second."""


class AckLatency:
    """The median of what was added since the last look: a single stall of the process is not a slow device."""

    def __init__(self) -> None:
        self.all = Histogram()
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)

    def add(self, duration_ms: float) -> None:
        """A block was acked, so long after it was sealed."""
        self._samples.append(duration_ms)
        self.all.observe(duration_ms)

    def window(self, oldest_ms: float | None) -> float | None:
        """Milliseconds, since the last call; None: nothing was written. `oldest_ms`: age of the oldest block that is
        not acked yet, None when all are: a device that hangs acks nothing, and so would say nothing."""
        known = [statistics.median(self._samples)] if self._samples else []
        self._samples.clear()
        if oldest_ms is not None:
            known.append(oldest_ms)
        return max(known, default=None)
