"""What a broker's listener counts: a few additions a request, and nothing a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dataplane.metrics.histogram import Histogram

LOGIN = -1
"""Instead of an api key: a request of a connection that is not logged in."""
PRODUCE, FETCH = 0, 1


class RequestMeter:
    """Of all connections together."""

    __slots__ = ("_answers", "aborted", "fetch", "others", "produce", "received_bytes", "refused", "sent_bytes")

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self.refused: Counter[tuple[int, int]] = Counter()
        """By api key and Kafka's error code: refused partitions of Produce and Fetch, refused requests of others."""
        self.aborted = 0
        """Connections that were cut for what they sent, or for a bug of ours."""
        self.received_bytes = self.sent_bytes = 0
        self.produce, self.fetch, self.others = Histogram(), Histogram(), Histogram()
        """From the whole request's arrival to the answer's way into the socket."""

    def answered(self, api_key: int, took_ms: float, sent_bytes: int) -> None:
        """An answer goes out."""
        self.sent_bytes += sent_bytes
        if api_key == PRODUCE:
            histogram = self.produce
        elif api_key == FETCH:
            histogram = self.fetch
        else:
            histogram = self.others
            self._answers[api_key] += 1
        histogram.observe(took_ms)

    def answers(self) -> Mapping[int, int]:
        """By api key. Only requests that are served are answered, so that there are no more keys than Kafka has."""
        return {PRODUCE: self.produce.count, FETCH: self.fetch.count, **self._answers}
