"""Private DNS against a real name server (BIND): what the common suite cannot ask for. And what a private cloud lacks
is said rather than pretended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.dns import Dns, RecordSet
from providers.base.errors import Conflict, Invalid, OutcomeUnknown, Unavailable
from providers.base.record_sets import quote_txt, unquote_txt
from providers.base.registry import AccountAddress, open_dns, open_instances, open_volume_api
from providers.private.capabilities import capabilities
from tests.conformance.control import BUDGET_S_MAX, DOMAIN
from tests.conformance.name_server import NAMED, NameServer, start_name_server

needs_named = pytest.mark.skipif(NAMED is None, reason="BIND (named) is not installed: private DNS is not judged")

OLD = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.1", "10.0.0.2"))
NEW = RecordSet(f"kafka.{DOMAIN}", "A", 60, ("10.0.0.3",))
UPDATE = 5
"""Its opcode (RFC 2136, section 1.3)."""


@asynccontextmanager
async def opened(server: NameServer, port: int | None = None) -> AsyncIterator[Dns]:
    dns = server.open_dns(port=port)
    try:
        yield dns
    finally:
        await dns.close()


@asynccontextmanager
async def loses_answers_to_updates(port: int) -> AsyncIterator[int]:
    """A relay before the server: its port. One message a connection, as the adapter sends them."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection("127.0.0.1", port)
        length = await reader.readexactly(2)
        message = await reader.readexactly(int.from_bytes(length, "big"))
        onward.write(length + message)
        answer_length = await onward_reader.readexactly(2)
        answer = await onward_reader.readexactly(int.from_bytes(answer_length, "big"))
        if message[2] >> 3 & 0xF != UPDATE:
            writer.write(answer_length + answer)
            await writer.drain()
        writer.close()
        onward.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@needs_named
def test_lost_answer_to_an_update_is_an_unknown_outcome(tmp_path: Path) -> None:
    async def main() -> None:
        with start_name_server(tmp_path) as server:
            async with loses_answers_to_updates(server.port) as port, opened(server, port) as dns:
                with pytest.raises(OutcomeUnknown):
                    await dns.replace(OLD, expected=None)
                assert await dns.get(OLD.name, "A") == OLD

    asyncio.run(main())


@needs_named
def test_server_that_hangs_or_is_gone_is_unavailable_within_the_budget(tmp_path: Path) -> None:
    async def main() -> None:
        with start_name_server(tmp_path) as server:
            async with opened(server) as dns:
                await dns.replace(OLD, expected=None)
                assert server.process is not None
                os.kill(server.process.pid, signal.SIGSTOP)
                began = time.monotonic()
                for ask in (dns.get(OLD.name, "A"), dns.list(), dns.replace(NEW, expected=OLD)):
                    with pytest.raises(Unavailable):
                        await ask
                assert time.monotonic() - began < 3 * BUDGET_S_MAX
                os.kill(server.process.pid, signal.SIGCONT)
                assert await dns.get(OLD.name, "A") == OLD
                server.kill()
                with pytest.raises(Unavailable):
                    await dns.get(OLD.name, "A")

    asyncio.run(main())


@needs_named
def test_server_itself_refuses_what_changed_after_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's own comparison is switched off here: the prerequisites alone must hold."""

    async def unchecked(*_: object) -> None:
        pass

    async def main() -> None:
        with start_name_server(tmp_path) as server:
            async with opened(server) as dns:
                await dns.replace(OLD, expected=None)
                monkeypatch.setattr("providers.private.dns.PrivateDns._check", unchecked)
                for expected in (None, NEW, replace(OLD, values=OLD.values[:1])):
                    with pytest.raises(Conflict):
                        await dns.replace(replace(NEW, values=("10.0.0.7",)), expected=expected)
                with pytest.raises(Conflict):
                    await dns.delete(NEW)
                assert await dns.get(OLD.name, "A") == OLD

    asyncio.run(main())


@needs_named
def test_alias_beside_other_records_is_a_conflict_rather_than_passed_over(tmp_path: Path) -> None:
    alias = RecordSet(OLD.name, "CNAME", 60, (f"other.{DOMAIN}",))

    async def main() -> None:
        with start_name_server(tmp_path) as server:
            async with opened(server) as dns:
                await dns.replace(OLD, expected=None)
                with pytest.raises(Conflict):
                    await dns.replace(alias, expected=None)
                await dns.delete(OLD)
                await dns.replace(alias, expected=None)
                with pytest.raises(Conflict):
                    await dns.replace(OLD, expected=None)
                assert await dns.list() == [alias]

    asyncio.run(main())


@needs_named
def test_clock_that_is_off_has_a_hint_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    async def main() -> None:
        with start_name_server(tmp_path) as server:
            async with opened(server) as dns:
                monkeypatch.setattr(time, "time", lambda: real() + 20 * 60)
                with pytest.raises(Invalid) as caught:
                    await dns.get(OLD.name, "A")
                monkeypatch.undo()
                assert caught.value.hint and "clock" in caught.value.hint

    asyncio.run(main())


@pytest.mark.parametrize(
    "endpoint", [None, "", "127.0.0.1:53", "http://127.0.0.1", "dns://", "dns://host:99999", "dns://host/path"]
)
def test_endpoint_that_is_no_name_server_is_invalid(endpoint: str | None) -> None:
    address = AccountAddress("private", "site", endpoint=endpoint)
    with pytest.raises(Invalid) as caught:
        open_dns(address, DOMAIN, clock=SystemClock(), rng=SystemRng())
    assert caught.value.hint


def test_malformed_key_is_invalid_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text('{"key_name": "yunhe", "key": "no base64 ***"}')
    address = AccountAddress("private", "site", endpoint="dns://127.0.0.1", credentials_file=str(path))
    with pytest.raises(Invalid) as caught:
        open_dns(address, DOMAIN, clock=SystemClock(), rng=SystemRng())
    assert "***" not in str(caught.value)


def test_private_cloud_has_no_volumes_or_instances_and_says_so() -> None:
    address = AccountAddress("private", "site")
    for opener in (open_volume_api, open_instances):
        with pytest.raises(Invalid) as caught:
            opener(address, clock=SystemClock(), rng=SystemRng())
        assert caught.value.hint
    found = capabilities("site", ("a", "b"))
    assert (found.regional_blocks, found.zonal_block, found.zonal_shared_block) == ((), None, None)


@pytest.mark.parametrize("value", ["", "plain", 'with "quotes" and \\ backslash', "x" * 700, "a b;c"])
def test_text_values_survive_quoting(value: str) -> None:
    assert unquote_txt(quote_txt(value)) == value
    assert max(len(part) for part in quote_txt(value).split('" "')) <= 255 + 30
