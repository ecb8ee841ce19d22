"""Traffic rates of a broker's partitions, from counters that are read once in a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class RateMeter:
    """Exponentially weighted bytes a second, a stream. `weight`: of the newest sample; at one sample a second, 0.6 has
    forgotten five sixths of the past after two."""

    def __init__(self, weight: float = 0.6) -> None:
        self._weight = weight
        self._rates: dict[int, float] = {}
        self._totals: dict[int, int] = {}
        self._at_ms: float | None = None

    def observe(self, now_ms: float, totals: Iterable[tuple[int, int]]) -> None:
        """Take in (stream, bytes so far) of every partition; streams that are missing are forgotten."""
        fresh = dict(totals)
        if self._at_ms is not None and now_ms > self._at_ms:
            seconds = (now_ms - self._at_ms) / 1000
            self._rates = {
                stream: self._weight * max(0, total - self._totals[stream]) / seconds
                + (1 - self._weight) * self._rates.get(stream, 0.0)
                for stream, total in fresh.items()
                if stream in self._totals
            }
        self._totals, self._at_ms = fresh, now_ms

    @property
    def rates(self) -> Mapping[int, float]:
        """Bytes a second by stream."""
        return self._rates

    def heaviest(self, count: int) -> list[tuple[int, int]]:
        """The `count` streams with the most traffic, heaviest first, with whole bytes a second; idle ones left out."""
        busy = [(stream, int(rate)) for stream, rate in self._rates.items() if rate >= 1]
        return sorted(busy, key=lambda item: (-item[1], item[0]))[:count]
