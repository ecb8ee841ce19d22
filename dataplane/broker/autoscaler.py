"""Spare brokers: each broker measures how much of it is used, the cell's controller decides how many spare ones run
(`balance/scaling.py`), and that word goes from heartbeat to heartbeat to every broker, which tells its agent.

A word that is newer than another has the greater (term, number), so that it does not matter who passes it on: whoever
becomes controller next begins with the newest, and so does a broker that its agent starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from dataplane.balance.scaling import Scaler, Used
from dataplane.contract.assignment import ScaleSpec, SparesWanted

log = logging.getLogger(__name__)

WEIGHT = 0.4
"""Of the newest sample of use: a collection of garbage is no load."""


class Autoscaler:
    """See the module. `spare`: this broker's rank; `busy_ms`: processor time of its loop so far; `on_word` is told each
    newer word."""

    def __init__(
        self,
        spec: ScaleSpec | None = None,
        spare: int = 0,
        word: SparesWanted | None = None,
        *,
        busy_ms: Callable[[], float] = lambda: 0.0,
        on_word: Callable[[SparesWanted], None] = lambda _: None,
    ) -> None:
        """`spec` None: nothing is decided, and what others decided is passed on. `word`: the newest that this broker's
        agent knew."""
        self._spec = spec
        self._spare = spare
        self._busy_ms = busy_ms
        self._on_word = on_word
        self._seen: tuple[float, float] | None = None
        self._scaler: Scaler | None = None
        self._use = 0.0
        self.word = word or SparesWanted()

    def measure(self, now_ms: float, bytes_per_s: float) -> None:
        """One more look at this broker. `bytes_per_s`: written and read."""
        busy_ms, carried = self._busy_ms(), 0.0
        if self._spec is not None and self._spec.broker_bytes_per_s is not None:
            carried = bytes_per_s / self._spec.broker_bytes_per_s
        if self._seen is not None and now_ms > self._seen[0]:
            use = max((busy_ms - self._seen[1]) / (now_ms - self._seen[0]), carried)
            self._use += WEIGHT * (use - self._use)
        self._seen = (now_ms, busy_ms)

    def report(self) -> dict[str, Any]:
        """What a heartbeat says."""
        word = self.word
        return {"use": round(self._use, 3), "spare": self._spare, "spares": [word.term, word.number, word.count]}

    def hear(self, load: Mapping[str, Any]) -> None:
        """Take in what a peer's heartbeat says."""
        if (said := load.get("spares")) is not None:
            self._take(SparesWanted(*map(int, said)))

    @staticmethod
    def used(load: Mapping[str, Any]) -> Used:
        """How a peer is used, by its heartbeat."""
        return Used(float(load.get("use", 0.0)), int(load.get("spare", 0)))

    def turn(self, now_ms: float, term: int, others: Mapping[int, Used]) -> None:
        """Decide, as the controller of this term. `others`: all other live brokers."""
        if self._spec is None:
            return
        brokers = [Used(self._use, self._spare), *others.values()]
        if self._scaler is None:
            # Before there was a word, what runs was meant to run.
            ran = self.word.count if self.word.term else max(broker.spare for broker in brokers)
            self._scaler = Scaler(self._spec, ran, now_ms)
        if (why := self._scaler.turn(now_ms, brokers)) is not None:
            log.info("autoscale", extra={"spares": self._scaler.spares, "why": why})
            number = self.word.number + 1 if self.word.term == term else 0
            self._take(SparesWanted(term, number, self._scaler.spares))

    def deposed(self) -> None:
        """Another one decides now."""
        self._scaler = None

    def _take(self, word: SparesWanted) -> None:
        if word > self.word:
            self.word = word
            self._on_word(word)
