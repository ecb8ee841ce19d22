"""What every cloud's compute API promises (`providers.base.instances.Instances`), over the lab's control servers and
each cloud's real SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from providers.base.errors import Invalid, Unavailable
from providers.base.instances import Instances
from tests.conformance.control import (
    BUDGET_S_MAX,
    REAL,
    ControlKind,
    ControlServer,
    of,
    parametrize,
    start_control_server,
)
from tests.conformance.test_volume_api import server_id

Body = Callable[[Instances, ControlServer], Awaitable[None]]


@pytest.fixture(params=parametrize("instances"), ids=str)
def kind(request: pytest.FixtureRequest) -> ControlKind:
    found: ControlKind = of(request)
    return found


@pytest.fixture
def over(kind: ControlKind, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test's body over one cloud."""

    def run(body: Body) -> None:
        async def main() -> None:
            with start_control_server(kind, tmp_path) as server:
                instances = server.open_instances()
                try:
                    await body(instances, server)
                finally:
                    await instances.close()

        asyncio.run(main())

    return run


@pytest.mark.skipif(bool(REAL), reason="an account has machines that the suite knows nothing of")
def test_all_machines_are_described_over_all_pages(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(instances: Instances, server: ControlServer) -> None:
        found = await instances.describe()
        assert sorted(i.zone for i in found) == sorted(kind.zones * 3)
        assert len({i.id for i in found}) == 9 and all(i.running and i.kind and i.name for i in found)
        assert len({i.private_address for i in found}) == 9

    over(body)


def test_machines_that_do_not_exist_are_left_out(over: Callable[[Body], None]) -> None:
    async def body(instances: Instances, server: ControlServer) -> None:
        found = list(await instances.describe())
        server.admin("instances", {"remove": [server_id(server, found[0].id)]})
        some = await instances.describe([found[0].id, found[1].id])
        assert list(some) == [found[1]]
        assert found[0].id not in {i.id for i in await instances.describe()}
        assert await instances.describe([]) == []

    over(body)


def test_killed_control_server_brings_no_terminated_machine_back(over: Callable[[Body], None]) -> None:
    async def body(instances: Instances, server: ControlServer) -> None:
        first, *others = await instances.describe()
        server.admin("instances", {"remove": [server_id(server, first.id)]})
        server.kill()
        server.start()
        assert {i.id for i in await instances.describe()} == {i.id for i in others}

    over(body)


def test_stopped_machine_is_described_and_not_running(over: Callable[[Body], None]) -> None:
    async def body(instances: Instances, server: ControlServer) -> None:
        first = (await instances.describe())[0]
        server.admin("instances", {"stop": [server_id(server, first.id)]})
        (found,) = await instances.describe([first.id])
        assert not found.running and found.zone == first.zone

    over(body)


def test_missing_answer_is_unavailable_within_the_budget(over: Callable[[Body], None], kind: ControlKind) -> None:
    async def body(instances: Instances, server: ControlServer) -> None:
        status, code = kind.throttled
        for rule in ({"unavailable": True}, {"error_status": status, "error_code": code}, {"latency_ms": 30_000}):
            server.set_faults(rule)
            began = time.monotonic()
            with pytest.raises(Unavailable):
                await instances.describe()
            assert time.monotonic() - began < BUDGET_S_MAX

    over(body)


def test_refused_credentials_are_invalid_with_a_hint(kind: ControlKind, tmp_path: Path) -> None:
    async def main() -> None:
        with start_control_server(kind, tmp_path) as server:
            instances = server.open_instances(server.wrong_credentials)
            try:
                with pytest.raises(Invalid) as caught:
                    await instances.describe()
                assert caught.value.hint and "credentials" in caught.value.hint
            finally:
                await instances.close()

    asyncio.run(main())
