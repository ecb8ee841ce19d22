"""Instances and DNS: Google's own SDKs, through the adapters, against the lab's Compute Engine and Cloud DNS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.dns import RecordSet
from providers.base.errors import Conflict, Invalid, NotFound
from providers.base.registry import open_dns, open_instances
from tests.providers.gcp.control import DOMAIN, PROJECT, ZONES, GcpControlServer

A = ZONES[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpControlServer]:
    running = GcpControlServer(tmp_path_factory.mktemp("gcp"))
    yield running
    running.close()


def machine(zone: str, number: int = 1) -> str:
    return f"projects/{PROJECT}/zones/{zone}/instances/vm-{zone}-{number}"


# ---- instances


def test_instances_of_the_region_are_described_with_zone_type_address_and_state(server: GcpControlServer) -> None:
    async def main() -> None:
        instances = open_instances(server.address(), clock=SystemClock(), rng=SystemRng())
        found = {each.id: each for each in await instances.describe()}
        assert len(found) == 6
        first = found[machine(A)]
        assert (first.name, first.zone, first.kind) == (f"vm-{A}-1", A, "n2-standard-4")
        assert (first.running, first.private_address) == (True, "10.0.0.4")
        server.admin("instances", {"stop": [f"vm-{A}-1"]})
        gone = machine(A, 9)
        again = await instances.describe([gone, machine(A)])
        assert [(each.id, each.running) for each in again] == [(machine(A), False)]
        server.admin("instances", {"start": [f"vm-{A}-1"]})
        await instances.close()

    asyncio.run(main())


# ---- DNS


def record(name: str, *values: str, type: str = "A", ttl_s: int = 30) -> RecordSet:
    return RecordSet(f"{name}.{DOMAIN}", type, ttl_s, tuple(sorted(values)))


def with_dns(server: GcpControlServer, act: Callable[[Any], Awaitable[None]], zone: str = DOMAIN) -> None:
    async def main() -> None:
        dns = open_dns(server.address(), zone, clock=SystemClock(), rng=SystemRng())
        try:
            await act(dns)
        finally:
            await dns.close()

    asyncio.run(main())


def test_record_is_replaced_only_where_the_zone_holds_what_was_expected(server: GcpControlServer) -> None:
    async def act(dns: Any) -> None:
        old, new = record("www", "10.0.0.1", "10.0.0.2"), record("www", "10.0.0.3", ttl_s=60)
        await dns.replace(old, expected=None)
        assert await dns.get(old.name, "A") == old
        for wrong in (None, record("www", "10.0.0.1"), record("www", "10.0.0.1", "10.0.0.2", ttl_s=31)):
            with pytest.raises(Conflict):
                await dns.replace(new, expected=wrong)
            assert await dns.get(old.name, "A") == old
        await dns.replace(new, expected=old)
        assert await dns.get(old.name, "A") == new
        with pytest.raises(Conflict):
            await dns.delete(old)
        await dns.delete(new)
        await dns.delete(new)
        assert await dns.get(old.name, "A") is None

    with_dns(server, act)


def test_every_type_of_record_comes_back_as_it_was_set(server: GcpControlServer) -> None:
    async def act(dns: Any) -> None:
        records = [
            record("t1", "10.1.0.1"),
            record("t2", "2001:db8::1", type="AAAA"),
            record("t3", "target.example.test", type="CNAME"),
            record("t4", 'say "hi" \\ there', "x" * 300, type="TXT"),
            record("_kafka._tcp", "10 5 9092 b1.example.test", type="SRV"),
        ]
        for each in records:
            await dns.replace(each, expected=None)
            assert await dns.get(each.name, each.type) == each
        assert [each for each in await dns.list() if each in records] == sorted(records, key=lambda r: (r.name, r.type))
        for each in records:
            await dns.delete(each)

    with_dns(server, act)


def test_change_whose_answer_is_lost_is_settled_by_reading_the_zone(server: GcpControlServer) -> None:
    async def act(dns: Any) -> None:
        first = record("lost", "10.0.0.1")
        server.set_faults({"contains": "changes.create", "drop_answer": True})
        await dns.replace(first, expected=None)
        server.set_faults()
        assert await dns.get(first.name, "A") == first
        await dns.delete(first)

    with_dns(server, act)


def test_missing_zone_is_not_found_with_a_hint(server: GcpControlServer) -> None:
    async def act(dns: Any) -> None:
        with pytest.raises(NotFound) as caught:
            await dns.list()
        assert caught.value.hint is not None and "managed-zones create" in caught.value.hint

    with_dns(server, act, "absent.test")


@pytest.mark.parametrize(
    "bad",
    [
        RecordSet("www.other.test", "A", 30, ("10.0.0.1",)),
        record("a", "10.0.0.256"),
        record("a", "10.0.0.1", type="AAAA"),
        record("a b", "10.0.0.1"),
        record("a"),
        record("a", "x", type="MX"),
        record("a", "1 2 b1.example.test", type="SRV"),
        record("a", "10.0.0.1", ttl_s=-1),
    ],
)
def test_bad_record_is_invalid(bad: RecordSet, server: GcpControlServer) -> None:
    async def act(dns: Any) -> None:
        with pytest.raises(Invalid):
            await dns.replace(bad, expected=None)

    with_dns(server, act)
