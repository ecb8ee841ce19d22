"""Which idempotent producers have a connection to this broker: those that have written over one that is still open."""

from __future__ import annotations

from collections import Counter

PRODUCERS_MAX = 64
"""Noted of one connection; a client has one producer, as a rule."""


class ConnectedProducers:
    """Producer ids, each with the number of its connections."""

    def __init__(self) -> None:
        self._connections: Counter[int] = Counter()

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._connections

    def note(self, producer_id: int, connection: set[int]) -> None:
        """Something of this producer has come over the connection, whose producers so far are `connection`."""
        if producer_id not in connection and len(connection) < PRODUCERS_MAX:
            connection.add(producer_id)
            self._connections[producer_id] += 1

    def gone(self, connection: set[int]) -> None:
        """The connection is closed."""
        for producer_id in connection:
            self._connections[producer_id] -= 1
            if not self._connections[producer_id]:
                del self._connections[producer_id]
        connection.clear()
