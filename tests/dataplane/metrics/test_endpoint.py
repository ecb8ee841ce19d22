"""The endpoint: what a scraper gets, and what one cannot do that means no good."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Coroutine
from typing import Any

import pytest

from dataplane.contract.assignment import MetricsSpec
from dataplane.metrics.endpoint import CONNECTIONS_MAX, HEAD_BYTES_MAX, SHARE, MetricsEndpoint, serve_metrics
from providers.base.clock import SystemClock, SystemRng
from providers.base.ports import free_port
from tests.hand_clock import HandClock

HOST = "127.0.0.1"


def ask(port: int, method: str = "GET", path: str = "/metrics") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def asked(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def cut_off(reading: Coroutine[Any, Any, bytes]) -> bool:
    """Whether a connection ends without a byte."""
    try:
        return await reading == b""
    except ConnectionResetError:
        return True


def test_there_is_one_page_and_it_is_read_by_get() -> None:
    async def main() -> None:
        endpoint = MetricsEndpoint(lambda: b"a 1\n", SystemClock())
        port = await endpoint.start(HOST, 0)
        assert await asyncio.to_thread(ask, port) == (200, b"a 1\n")
        assert await asyncio.to_thread(ask, port, path="/metrics?name=a") == (200, b"a 1\n")
        assert await asyncio.to_thread(ask, port, "HEAD") == (200, b"")
        assert (await asyncio.to_thread(ask, port, "POST"))[0] == 405
        assert (await asyncio.to_thread(ask, port, path="/metrics/"))[0] == 404
        assert (await asyncio.to_thread(ask, port, path="/"))[0] == 404
        assert asked(await raw(port, b"hello\r\n\r\n"))[0] == 400
        assert asked(await raw(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX))[0] == 431
        # In pieces, as a slow network brings it.
        reader, writer = await asyncio.open_connection(HOST, port)
        for piece in (b"GET /met", b"rics HTTP/1.1\r\nHost: x\r", b"\n\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert asked(await reader.read()) == (200, b"a 1\n")
        writer.close()
        await endpoint.close()
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, port)

    asyncio.run(main())


def test_a_page_that_cannot_be_made_is_a_500_and_the_next_is_tried() -> None:
    async def main() -> None:
        pages = iter([ZeroDivisionError, b"a 1\n"])

        def page() -> bytes:
            made = next(pages)
            if isinstance(made, bytes):
                return made
            raise made

        endpoint = MetricsEndpoint(page, SystemClock())
        port = await endpoint.start(HOST, 0)
        assert (await asyncio.to_thread(ask, port))[0] == 500
        assert await asyncio.to_thread(ask, port) == (200, b"a 1\n")
        await endpoint.close()

    asyncio.run(main())


def test_who_asks_nothing_or_takes_nothing_is_cut_off_and_others_are_served() -> None:
    async def main() -> None:
        endpoint = MetricsEndpoint(lambda: b"a 1\n" * (4 << 20), SystemClock(), timeout_ms=300)
        port = await endpoint.start(HOST, 0)
        silent = [await asyncio.open_connection(HOST, port) for _ in range(CONNECTIONS_MAX - 2)]
        halfway = await asyncio.open_connection(HOST, port)
        halfway[1].write(b"GET /metrics HTTP/1.1\r\n")
        # Asks, and does not read: the answer is more than the kernel holds for it.
        deaf = socket.create_connection((HOST, port))
        deaf.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        while len(endpoint.connections) < CONNECTIONS_MAX:  # noqa: ASYNC110 -- the loop's own accepts
            await asyncio.sleep(0.005)
        # One more than there may be is closed, unanswered.
        assert await cut_off(raw(port, b"GET /metrics HTTP/1.1\r\n\r\n"))
        async with asyncio.timeout(10):
            for reader, _ in [*silent, halfway]:
                assert await cut_off(reader.read())
            while endpoint.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await asyncio.to_thread(ask, port))[0] == 200
        for _, writer in [*silent, halfway]:
            writer.close()
        deaf.close()
        await endpoint.close()

    asyncio.run(main())


def test_no_number_of_scrapes_takes_more_than_a_twentieth_of_the_loop() -> None:
    clock = HandClock()
    made = 0

    def page() -> bytes:
        nonlocal made
        made += 1
        clock.now_ms += 5
        return b"%d" % made

    endpoint = MetricsEndpoint(page, clock)
    for _ in range(10_000):
        endpoint.page()
        clock.now_ms += 0.1  # a flood
    spent_ms, all_ms = made * 5, clock.now_ms
    assert made > 2 and spent_ms <= all_ms / SHARE + 5
    clock.now_ms += 100
    assert endpoint.page() == b"%d" % made, "who asks after a while gets what is so now"


def test_brokers_of_a_host_share_a_port_by_their_number_and_one_that_is_taken_keeps_nobody_from_serving() -> None:
    async def main() -> None:
        clock = SystemClock()
        taken, other, off = (MetricsEndpoint(lambda: b"", clock) for _ in range(3))
        base = free_port(HOST, SystemRng()) - 3
        spec = MetricsSpec(port=base)
        assert await serve_metrics(other, spec, nth=3) == f"{HOST}:{base + 3}"
        assert await serve_metrics(taken, spec, nth=3) is None
        assert await serve_metrics(off, MetricsSpec(enabled=False)) is None
        await other.close()
        # Others reach a host that listens on all addresses by its name.
        everywhere = MetricsEndpoint(lambda: b"", clock)
        told = await serve_metrics(everywhere, MetricsSpec(host="0.0.0.0"), name="pod-0.ns.svc")
        assert told is not None and told.startswith("pod-0.ns.svc:")
        await everywhere.close()

    asyncio.run(main())
