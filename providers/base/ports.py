"""Ports for processes that are started later, and are told their port beforehand."""

from __future__ import annotations

import socket
from pathlib import Path

from providers.base.clock import Rng
from providers.base.errors import Invalid

LOWEST = 10_240
"""Below are ports that well-known servers have."""
TRIES_MAX = 256
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(host: str, count: int, rng: Rng) -> list[int]:
    """Different ports on which nobody listens now, none of those that the kernel gives to outgoing connections.

    A port of the kernel's own range (what a bind to port 0 gives) may be some connection's by the time the process
    listens on it. Where that range leaves no others, they are taken from it all the same.

    Raises:
        Invalid: this host has no such address, or has no port left.
    """
    ports: list[int] = []
    highest = _first_ephemeral() - 1
    for attempt in range(TRIES_MAX):
        below = highest > LOWEST and attempt < TRIES_MAX // 2
        port = _bound(host, int(rng.uniform(LOWEST, highest + 1)) if below else 0)
        if port is not None and port not in ports:
            ports.append(port)
        if len(ports) == count:
            return ports
    raise Invalid(f"no {count} ports can be had on {host}")


def free_port(host: str, rng: Rng, *, preferred: int | None = None) -> int:
    """One port as `free_ports` has it: `preferred` while nobody holds that. Raises Invalid: as `free_ports` does."""
    if preferred is not None and _bound(host, preferred) is not None:
        return preferred
    return free_ports(host, 1, rng)[0]


def _first_ephemeral() -> int:
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        return 32_768  # Linux's own


def _bound(host: str, port: int) -> int | None:
    """The port that could be bound; None: it is somebody's. Raises Invalid: the host has no such address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections' remains do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            if port:
                return None
            raise Invalid(f"no port can be had on {host}: {error.strerror}") from error
        bound: int = probe.getsockname()[1]
        return bound
