"""What every cloud's DNS API promises (`providers.base.dns.Dns`), over the lab's control servers and each cloud's real
SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base.dns import Dns, RecordSet
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable
from tests.conformance.control import (
    BUDGET_S_MAX,
    DOMAIN,
    REAL,
    ControlKind,
    ControlServer,
    of,
    parametrize,
    start_control_server,
)
from tests.conformance.name_server import NAMED, NameServer, NameServerKind, start_name_server

pytestmark = pytest.mark.timeout(600 if REAL else 90)

Server = ControlServer | NameServer
Kind = ControlKind | NameServerKind
Body = Callable[[Dns, Server], Awaitable[None]]

OLD = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.1", "10.0.0.2"))
NEW = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.3",))
OTHER = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.9",))
EVERY_TYPE = (
    OLD,
    RecordSet(f"kafka.{DOMAIN}", "AAAA", 60, ("2001:db8::1",)),
    RecordSet(f"www.{DOMAIN}", "CNAME", 300, (f"kafka.{DOMAIN}",)),
    RecordSet(f"owner.{DOMAIN}", "TXT", 60, ("second part", "yunhe=a b;c")),
    RecordSet(f"_kafka._tcp.{DOMAIN}", "SRV", 60, (f"10 5 9092 kafka.{DOMAIN}",)),
)


def start(kind: Kind, tmp_path: Path) -> Server:
    if isinstance(kind, NameServerKind):
        return start_name_server(tmp_path)
    return start_control_server(kind, tmp_path)


WITHOUT = pytest.mark.skipif(NAMED is None, reason="BIND (named) is not installed: private DNS is not judged")


BIND = [] if REAL else [pytest.param(NameServerKind(), marks=WITHOUT)]


@pytest.fixture(params=[*parametrize("dns"), *BIND], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = of(request)
    return found


@pytest.fixture
def over(kind: Kind, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test's body over one cloud."""

    def run(body: Body) -> None:
        async def main() -> None:
            with start(kind, tmp_path) as server:
                dns = server.open_dns()
                try:
                    await body(dns, server)
                finally:
                    await dns.close()

        asyncio.run(main())

    return run


def test_every_type_is_set_read_back_and_listed_in_order(over: Callable[[Body], None]) -> None:
    async def body(dns: Dns, server: Server) -> None:
        assert await ours(dns) == []
        for record in EVERY_TYPE:
            assert await dns.get(record.name, record.type) is None
            await dns.replace(record, expected=None)
            assert await dns.get(record.name, record.type) == record
        many = [RecordSet(f"b-{number}.{DOMAIN}", "A", 60, (f"10.0.1.{number}",)) for number in range(7)]
        for record in many:
            await dns.replace(record, expected=None)
        assert await ours(dns) == sorted((*EVERY_TYPE, *many), key=lambda r: (r.name, r.type))

    over(body)


async def ours(dns: Dns) -> list[RecordSet]:
    """The suite's own records among all of the zone."""
    return [record for record in await dns.list() if record.name.endswith(DOMAIN)]


# ---- 1. never empty


def test_name_always_has_records_while_they_are_replaced(over: Callable[[Body], None], kind: Kind) -> None:
    async def body(dns: Dns, server: Server) -> None:
        await dns.replace(OLD, expected=None)
        seen: set[tuple[str, ...]] = set()
        done = asyncio.Event()

        async def look() -> None:
            another = server.open_dns()
            try:
                while not done.is_set():
                    found = await another.get(OLD.name, "A")
                    assert found is not None, "the name had no records for a moment"
                    seen.add(found.values)
            finally:
                await another.close()

        looking = asyncio.create_task(look())
        for _ in range(5):
            await dns.replace(NEW, expected=OLD)
            await dns.replace(OLD, expected=NEW)
        done.set()
        await looking
        if kind.compares_atomically:
            assert seen <= {OLD.values, NEW.values}

    over(body)


def test_empty_and_malformed_sets_are_invalid(over: Callable[[Body], None]) -> None:
    async def body(dns: Dns, server: Server) -> None:
        wrong = [
            replace(OLD, values=()),
            replace(OLD, type="MX"),
            replace(OLD, name="kafka.other.test"),
            replace(OLD, name="two..dots." + DOMAIN),
            replace(OLD, ttl_s=-1),
            replace(OLD, values=("not an address",)),
        ]
        for record in wrong:
            with pytest.raises(Invalid):
                await dns.replace(record, expected=None)
        assert await ours(dns) == []

    over(body)


# ---- 2. compare before replace


def test_replace_of_something_else_is_a_conflict_and_changes_nothing(over: Callable[[Body], None]) -> None:
    async def body(dns: Dns, server: Server) -> None:
        with pytest.raises(Conflict):
            await dns.replace(NEW, expected=OLD)
        await dns.replace(OLD, expected=None)
        for expected in (None, OTHER, replace(OLD, ttl_s=30), replace(OLD, values=OLD.values[:1])):
            with pytest.raises(Conflict):
                await dns.replace(NEW, expected=expected)
        assert await dns.get(OLD.name, "A") == OLD
        await dns.replace(NEW, expected=OLD)
        assert await dns.get(OLD.name, "A") == NEW

    over(body)


def test_of_many_that_replace_the_same_set_one_wins(over: Callable[[Body], None], kind: Kind) -> None:
    if not kind.compares_atomically:
        pytest.skip(f"{kind} has no call that compares and replaces at once")

    async def body(dns: Dns, server: Server) -> None:
        await dns.replace(OLD, expected=None)
        wanted = [replace(OLD, values=(f"10.0.2.{number}",)) for number in range(6)]
        tried = await asyncio.gather(*(dns.replace(each, expected=OLD) for each in wanted), return_exceptions=True)
        won = [each for each, outcome in zip(wanted, tried, strict=True) if outcome is None]
        assert len(won) == 1
        assert all(isinstance(outcome, Conflict) for outcome in tried if outcome is not None)
        assert await dns.get(OLD.name, "A") == won[0]

    over(body)


def test_delete_removes_exactly_what_is_expected(over: Callable[[Body], None]) -> None:
    async def body(dns: Dns, server: Server) -> None:
        await dns.delete(OLD)  # not there: passed over
        await dns.replace(OLD, expected=None)
        with pytest.raises(Conflict):
            await dns.delete(NEW)
        assert await dns.get(OLD.name, "A") == OLD
        await dns.delete(OLD)
        assert await dns.get(OLD.name, "A") is None
        await dns.delete(OLD)

    over(body)


# ---- 3. bounded, and bad input


def test_lost_answer_is_learnt_by_reading(over: Callable[[Body], None], kind: Kind) -> None:
    async def body(dns: Dns, server: Server) -> None:
        await dns.replace(OLD, expected=None)
        server.set_faults({**kind.changes_dns, "drop_answer": True, "times": 1})
        try:
            await dns.replace(NEW, expected=OLD)
        except (Unavailable, Conflict) as error:
            assert isinstance(error, Unavailable), "a lost answer is no proof that somebody else was first"
        server.set_faults()
        assert await dns.get(OLD.name, "A") == NEW

    over(body)


def test_no_answer_is_unavailable_within_the_budget(over: Callable[[Body], None], kind: Kind) -> None:
    async def body(dns: Dns, server: Server) -> None:
        await dns.replace(OLD, expected=None)
        status, code = kind.throttled
        for rule in ({"unavailable": True}, {"error_status": status, "error_code": code}, {"latency_ms": 30_000}):
            server.set_faults(rule)
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await dns.get(OLD.name, "A")
            with pytest.raises(Unavailable):
                await dns.replace(NEW, expected=OLD)
            assert time.monotonic() - began < 2 * BUDGET_S_MAX
        server.set_faults()
        assert await dns.get(OLD.name, "A") == OLD

    over(body)


def test_zone_that_does_not_exist_is_not_found(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        with start(kind, tmp_path) as server:
            dns = server.open_dns(zone="missing.test")
            try:
                with pytest.raises(NotFound):
                    await dns.list()
                with pytest.raises(NotFound):
                    await dns.replace(replace(OLD, name="kafka.missing.test"), expected=None)
            finally:
                await dns.close()

    asyncio.run(main())


def test_refused_credentials_are_invalid_with_a_hint(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        with start(kind, tmp_path) as server:
            dns = server.open_dns(server.wrong_credentials)
            try:
                with pytest.raises(Invalid) as caught:
                    await dns.get(OLD.name, "A")
                assert caught.value.hint and "credentials" in caught.value.hint
            finally:
                await dns.close()

    asyncio.run(main())


def test_killed_control_server_forgets_no_record(over: Callable[[Body], None]) -> None:
    async def body(dns: Dns, server: Server) -> None:
        await dns.replace(OLD, expected=None)
        server.kill()
        server.start()
        assert await dns.get(OLD.name, "A") == OLD

    over(body)
