"""What bounds a broker's listener (`net.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of the listener."""

    frame_bytes_max: int = 100 << 20
    """Kafka's own default of `socket.request.max.bytes`; larger frames close the connection before they are read."""
    other_frame_bytes_max: int = 2 << 20
    """Of requests other than Produce: decoded they take many times their bytes, and time on the loop. Group members'
    metadata and assignments are the largest of good will; Kafka keeps those in one record of 1 MiB at most."""
    frames_bytes_max: int = 256 << 20
    """Large frames of all connections together (`receiving.py`)."""
    frame_patience_ms: float = 2_000
    """How long one may be under receipt while others wait for room."""
    frame_timeout_ms: float = 120_000
    """How long one may be under receipt at all: 1 MiB at 9 KB/s."""
    requests_in_flight_max: int = 64
    """A connection's requests under way; idempotent producers use five."""
    connections_max: int = 2_000
    """More are closed at once."""
    connections_per_host_max: int = 1_000
    """One host's, so that it leaves room for others."""
    write_timeout_ms: float = 60_000
    """A client that does not take an answer for so long is cut off."""
    write_bytes_max: int = 1 << 20
    """Answers that the socket has not taken at which no more requests are handled."""
    answers_bytes_max: int = 256 << 20
    """Fetch answers of all connections that no socket has taken yet (`answer_room.py`)."""
    login_timeout_ms: float = 10_000
    """A connection that has not logged in for so long, on a listener where one has to, is closed."""
    logging_in_max: int = 500
    """Connections that have not logged in yet; more are closed at once, so that they cannot keep others out."""
    idle_max_ms: float = 600_000
    """A connection without requests for so long is closed. Kafka's own default of `connections.max.idle.ms`."""
