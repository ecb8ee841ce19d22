"""How many spare brokers shall run: from what all brokers are used, over some time. Pure.

    need = use of all brokers together / the use of one that is aimed at, rounded up

A broker more does not change the need, so that one which starts cannot bring about the next; brokers that are missed
are replaced as long as they are needed. More are asked for when the least need of the last seconds asks for more;
one fewer when the greatest of the last minutes does, as Kubernetes' HorizontalPodAutoscaler has it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dataplane.contract.assignment import ScaleSpec

TOLERANCE = 0.1
"""Of a broker: so much of a need beyond a whole number starts none."""


@dataclass(frozen=True, slots=True)
class Used:
    """One live broker. `use`: of its capacity, 0 to 1 and, by bytes, beyond; `spare`: its rank among the spare ones,
    from 1; 0: it always runs."""

    use: float
    spare: int


class Extreme:
    """The least or the greatest number of a sliding window of time. Keeps at most as many as there are different
    ones."""

    def __init__(self, window_ms: float, pick: Callable[[int, int], int]) -> None:
        """`pick`: min or max."""
        self._window_ms = window_ms
        self._pick = pick
        self._kept: deque[tuple[float, int]] = deque()
        self._since_ms: float | None = None

    def add(self, now_ms: float, number: int) -> None:
        """One more look."""
        if self._since_ms is None:
            self._since_ms = now_ms
        while self._kept and self._pick(self._kept[-1][1], number) == number:
            self._kept.pop()
        self._kept.append((now_ms, number))
        while self._kept[0][0] < now_ms - self._window_ms:
            self._kept.popleft()

    def of_window(self, now_ms: float) -> int | None:
        """None: it has not been looked at for so long."""
        if self._since_ms is None or now_ms - self._since_ms < self._window_ms:
            return None
        return self._kept[0][1]


class Scaler:
    """The decision of one who became the cell's controller: `spares` of them shall run, which is what ran before."""

    def __init__(self, spec: ScaleSpec, spares: int, now_ms: float) -> None:
        self._spec = spec
        self._least = Extreme(spec.out_after_ms, min)
        self._greatest = Extreme(spec.in_after_ms, max)
        self._changed_ms = now_ms - spec.cool_down_ms
        self.spares = spares

    def turn(self, now_ms: float, brokers: Collection[Used]) -> str | None:
        """Take in how all live brokers are used now. Returns why `spares` has changed; None: it has not."""
        need = math.ceil(sum(broker.use for broker in brokers) / self._spec.target - TOLERANCE)
        lasting = sum(1 for broker in brokers if not broker.spare)
        wanted = min(max(need - lasting, 0), max(self._spec.brokers_max - lasting, 0))
        self._least.add(now_ms, wanted)
        self._greatest.add(now_ms, wanted)
        if now_ms - self._changed_ms < self._spec.cool_down_ms:
            return None
        least, greatest = self._least.of_window(now_ms), self._greatest.of_window(now_ms)
        if least is not None and least > self.spares:
            more, self.spares, self._changed_ms = least - self.spares, least, now_ms
            return f"{_brokers(more)} more: the load needs {need} at {self._spec.target:.0%} each"
        if greatest is not None and greatest < self.spares:
            self.spares, self._changed_ms = self.spares - 1, now_ms
            return (
                f"1 broker fewer: for {self._spec.in_after_ms / 1000:g} s the load has needed no more than the others"
            )
        return None


def _brokers(count: int) -> str:
    return f"{count} broker{'' if count == 1 else 's'}"
