"""Ports that are still free when the process that was told them listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from providers.base import ports
from providers.base.clock import SeededRng
from providers.base.errors import Invalid

HOST = "127.0.0.1"


def test_no_port_is_one_that_the_kernel_gives_to_outgoing_connections() -> None:
    low, high = (int(n) for n in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if low <= ports.LOWEST + 1:
        pytest.skip("this kernel gives nearly all ports to outgoing connections")
    found = ports.free_ports(HOST, 50, SeededRng(1))
    assert len(set(found)) == 50
    assert not [port for port in found if low <= port <= high]


def test_a_port_that_somebody_holds_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    [taken] = ports.free_ports(HOST, 1, SeededRng(7))
    with socket.create_server((HOST, taken)):
        assert ports.free_port(HOST, SeededRng(7)) != taken
        assert ports.free_port(HOST, SeededRng(8), preferred=taken) != taken
    assert ports.free_port(HOST, SeededRng(8), preferred=taken) == taken


def test_where_the_kernel_has_every_port_for_itself_there_are_ports_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    assert len(set(ports.free_ports(HOST, 5, SeededRng(1)))) == 5


def test_an_address_that_this_host_does_not_have_is_said() -> None:
    with pytest.raises(Invalid, match=r"192\.0\.2\.1"):
        ports.free_port("192.0.2.1", SeededRng(1))
