"""What the webhook judges by is never older than the request, and one list serves many requests."""

from __future__ import annotations

import asyncio
import threading

import pytest

from controlplane.operator.present import Present
from providers.base.errors import Unavailable
from tests.controlplane.store.fake_kube import NAMESPACE, FakeKube


def names(found: object) -> set[str]:
    assert isinstance(found, list)
    return {custom["metadata"]["name"] for custom in found}


def test_requests_that_come_during_a_list_share_the_next_one() -> None:
    api, go, reached = FakeKube(), threading.Event(), threading.Event()
    api.resource("Topic", "first")

    def held(method: str, path: str) -> None:
        if path.endswith("/topics"):
            reached.set()
            assert go.wait(10)

    api.after = held

    async def main() -> None:
        present = Present(api.kube)
        early = asyncio.create_task(present(NAMESPACE))
        await asyncio.to_thread(reached.wait, 10)  # it has read the topics
        api.resource("Topic", "second")
        late = [asyncio.create_task(present(NAMESPACE)) for _ in range(20)]
        await asyncio.sleep(0)
        go.set()
        assert names(await early) == {"first"}
        for one in late:
            assert names(await one) == {"first", "second"}, "what was there when it came"
        assert sum(path.endswith("/topics") for _, path in api.calls) == 2
        api.resource("Topic", "third")
        assert names(await present(NAMESPACE)) == {"first", "second", "third"}

    asyncio.run(main())


def test_a_request_that_is_given_up_and_a_list_that_fails_spoil_no_other() -> None:
    api = FakeKube()
    api.resource("Topic", "first")

    async def main() -> None:
        present = Present(api.kube)
        api.away = True
        with pytest.raises(Unavailable):
            await present(NAMESPACE)
        api.away = False
        given_up = asyncio.create_task(present(NAMESPACE))
        other = asyncio.create_task(present(NAMESPACE))
        await asyncio.sleep(0)
        given_up.cancel()
        assert names(await other) == {"first"}
        assert names(await present("elsewhere")) == set()

    asyncio.run(main())
