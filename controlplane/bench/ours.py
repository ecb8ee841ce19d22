"""Our broker under a benchmark: what it still has to upload, by its own metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Unavailable

DRAIN_MS_MAX = 120_000
"""How long a broker may take to upload what it has; it begins after its upload interval at the latest."""
LOOK_MS = 500
TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Ours:
    """The one broker of a lab's one cloud."""

    bootstrap: str
    metrics: str

    @staticmethod
    def of(clouds: list[dict[str, Any]]) -> Ours:
        """From what status shows."""
        return Ours(clouds[0]["bootstrapServers"], clouds[0]["brokers"][0]["metrics"])

    def metric(self, name: str) -> float:
        """The value of a metric without labels.

        Raises:
            Unavailable: the broker does not tell it.
        """
        try:
            with urlopen(self.metrics, timeout=TIMEOUT_S) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith(f"{name} "):
                        return float(line.split()[1])
        except OSError as error:
            raise Unavailable(f"{self.metrics} does not answer: {error}") from error
        raise Unavailable(f"{self.metrics} has no {name}")

    def drain(self, clock: Clock) -> None:
        """Wait until everything acked is in object storage.

        Raises:
            Unavailable: not within DRAIN_MS_MAX.
        """
        until_ms = clock.monotonic_ms() + DRAIN_MS_MAX
        while left := self.metric("yunhe_broker_unuploaded_bytes"):
            if clock.monotonic_ms() > until_ms:
                raise Unavailable(f"{left / 1e6:.0f} MB are not uploaded after {DRAIN_MS_MAX // 1000} s")
            sleep_blocking_ms(LOOK_MS)
