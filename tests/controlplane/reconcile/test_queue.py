"""The work queue's promises, under virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from controlplane.reconcile.queue import QueueSettings, WorkQueue
from controlplane.store.base import Key
from providers.base.clock import SeededRng
from tests.sim.virtualtime import run


def a_queue(**settings: float) -> WorkQueue:
    return WorkQueue(rng=SeededRng(7), settings=QueueSettings(**settings))  # type: ignore[arg-type]


def key(number: int) -> Key:
    return ("Topic", f"t-{number}")


def test_a_users_change_goes_before_ten_thousand_resyncs() -> None:
    async def main() -> None:
        queue = a_queue()
        for number in range(10_000):
            queue.add(key(number), user=False)
        queue.add(("Topic", "mine"), user=True)
        queue.add(key(9_999), user=True)
        assert await queue.get() == ("Topic", "mine")
        assert await queue.get() == key(9_999)
        assert await queue.get() == key(0)

    run(main())


def test_a_key_waits_only_once_however_often_it_is_added() -> None:
    async def main() -> None:
        queue = a_queue()
        for user in (False, True, False, True):
            queue.add(key(1), user=user)
        assert len(queue) == 1
        queue.done(await queue.get())
        assert len(queue) == 0

    run(main())


def test_a_key_is_never_in_two_hands_and_a_change_in_the_meantime_is_not_lost() -> None:
    async def main() -> None:
        queue = a_queue()
        queue.add(key(1), user=False)
        held = await queue.get()
        queue.add(key(1), user=True)
        other = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        assert not other.done()
        queue.done(held)
        assert await other == key(1)

    run(main())


def test_failures_back_off_up_to_the_bound_and_success_forgets_them() -> None:
    async def main() -> None:
        queue = a_queue(backoff_min_ms=100, backoff_max_ms=1_000)
        queue.add(key(1), user=False)
        delays = [queue.retry(await queue.get()) for _ in range(8)]
        assert all(later >= earlier * 1.2 for earlier, later in pairwise(delays[:4]))
        assert max(delays) <= 1_000 * 1.25
        queue.done(await queue.get())
        queue.add(key(1), user=False)
        assert queue.retry(await queue.get()) <= 125

    run(main())


def test_a_users_change_does_not_wait_for_the_back_off() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue = a_queue(backoff_min_ms=60_000, backoff_max_ms=60_000)
        queue.add(key(1), user=False)
        queue.retry(await queue.get())
        before = loop.time()
        queue.add(key(1), user=True)
        assert await queue.get() == key(1)
        assert loop.time() == before

    run(main())


def test_the_queue_is_bounded_and_drops_resyncs_but_no_users_change() -> None:
    async def main() -> None:
        queue = a_queue(keys_max=3)
        assert [queue.add(key(n), user=False) for n in range(5)] == [True, True, True, False, False]
        assert queue.add(key(9), user=True)
        assert await queue.get() == key(9)

    run(main())


def test_of_two_later_looks_the_sooner_one_stands() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue = a_queue()
        queue.add_later(key(1), 5_000)
        queue.add_later(key(1), 1_000)
        queue.add_later(key(1), 9_000)
        queue.done(await queue.get())
        assert loop.time() == 1.0
        other = asyncio.create_task(queue.get())
        await asyncio.sleep(60)
        assert not other.done()
        other.cancel()

    run(main())
