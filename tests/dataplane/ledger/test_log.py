"""The rules that make objects created with put-if-absent a log (design §4), each by the accident it is there for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from dataplane.ledger import log as log_module
from dataplane.ledger import names
from dataplane.ledger.entry import Command, Entry, Writer
from dataplane.ledger.log import Ledger
from dataplane.ledger.names import entry_key, marker_key, snapshot_key
from dataplane.ledger.settings import LedgerSettings
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Corrupt, Internal, NotFound, OutcomeUnknown, Unavailable
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, HOSTILE, Bucket, Faults, Host, StoreClient, World

PREFIX = "c"


class Counter:
    """A state machine for tests: named counters, and a term that a deposed writer's commands do not pass."""

    level_max = 1

    def initial(self) -> dict[str, Any]:
        return {"term": 0, "history": []}

    def apply(self, state: dict[str, Any], entry: Entry) -> Sequence[str | None]:
        outcomes: list[str | None] = []
        for command in entry.commands:
            if command["kind"] == "elect":
                state["term"] = command["term"]
                outcomes.append(None)
            elif entry.term != state["term"]:
                outcomes.append(f"term {entry.term} is over")
            else:
                state["history"].append(command["value"])
                outcomes.append(None)
        return outcomes

    def dump(self, state: dict[str, Any]) -> Any:
        return state

    def load(self, plain: Any) -> dict[str, Any]:
        return {"term": plain["term"], "history": list(plain["history"])}


class ListingClient(StoreClient):
    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1_000) -> Sequence[Any]:
        from providers.base.objects import ObjectInfo

        def apply() -> Sequence[Any]:
            keys = sorted(k for k in self.bucket.objects if k.startswith(prefix) and k > start_after)
            return [ObjectInfo(k, len(self.bucket.objects[k])) for k in keys[:limit]]

        found: Sequence[Any] = await self._call("list", apply, changes=False)
        return found


class Bench:
    def __init__(self, seed: int = 1, faults: Faults = CALM) -> None:
        self.world = World(seed, faults)
        self.bucket = Bucket("bucket")
        self.writers = 0

    def ledger(self, **settings: Any) -> Ledger[dict[str, Any]]:
        self.writers += 1
        name = f"w{self.writers}"
        store = ListingClient(Host(self.world, name), self.bucket)
        return Ledger(
            store,
            PREFIX,
            Counter(),
            Writer(name, f"incarnation-{name}"),
            clock=LoopClock(),
            rng=SeededRng(name),
            settings=LedgerSettings(**settings),
        )


def add(value: str) -> Callable[[dict[str, Any]], list[Command]]:
    return lambda state: [{"kind": "add", "value": value}]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of ten names, so that collection happens within a test."""
    monkeypatch.setattr(names, "SEGMENT_ENTRIES", 10)
    monkeypatch.setattr(log_module, "SEGMENT_ENTRIES", 10)


async def fold_from_scratch(bench: Bench) -> list[str]:
    reader = bench.ledger()
    await reader.open()
    history: list[str] = reader.state["history"]
    return history


def test_of_eight_racing_writers_each_appends_exactly_once_and_all_see_one_order() -> None:
    async def main() -> None:
        bench = Bench()
        ledgers = [bench.ledger() for _ in range(8)]
        await asyncio.gather(*(x.open() for x in ledgers))
        done = await asyncio.gather(*(x.append(add(f"v{i}")) for i, x in enumerate(ledgers)))
        assert sorted(d.seq for d in done if d) == list(range(1, 9)), "each name has one winner"
        await asyncio.gather(*(x.poll() for x in ledgers))
        [order] = {tuple(x.state["history"]) for x in ledgers}
        assert sorted(order) == sorted(f"v{i}" for i in range(8))

    run(main())


def test_whoever_loses_a_race_decides_again_on_the_new_state() -> None:
    async def main() -> None:
        bench = Bench()
        ledgers = [bench.ledger() for _ in range(4)]

        def once(state: dict[str, Any]) -> list[Command] | None:
            return None if state["history"] else [{"kind": "add", "value": "only"}]

        done = await asyncio.gather(*(x.append(once) for x in ledgers))
        assert sum(d is not None for d in done) == 1
        assert await fold_from_scratch(bench) == ["only"]

    run(main())


def test_a_rejected_command_is_not_acted_on() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger()
        done = await ledger.append(add("stale"), term=7)
        assert done is not None and done.rejections == ("term 7 is over",)
        assert ledger.state["history"] == []

    run(main())


def test_a_deposed_controller_learns_it_from_its_next_append() -> None:
    async def main() -> None:
        bench = Bench()
        old, new = bench.ledger(), bench.ledger()
        await old.append(lambda state: [{"kind": "elect", "term": 1}])
        assert (await old.append(add("a"), term=1)).rejections == (None,)  # type: ignore[union-attr]
        await new.append(lambda state: [{"kind": "elect", "term": 2}])
        # It has not read that yet: the name that it wants is taken, it reads why, and the fold refuses its term.
        done = await old.append(add("b"), term=1)
        assert done is not None and done.rejections == ("term 1 is over",)
        assert old.state["term"] == 2 and await fold_from_scratch(bench) == ["a"]

    run(main())


async def grow_and_collect(bench: Bench, entries: int = 45) -> Ledger[dict[str, Any]]:
    """A log whose first segments are collected behind two snapshots."""
    ledger = bench.ledger()
    for i in range(entries):
        await ledger.append(add(f"v{i}"))
        if i in (entries - 12, entries - 1):
            await ledger.snapshot()
    assert await ledger.collect() > 0
    return ledger


def test_a_collected_name_created_anew_is_not_counted() -> None:
    """A request sent yesterday arrives today, and finds its name free again."""

    async def main() -> None:
        bench = Bench()
        ledger = await grow_and_collect(bench)
        assert entry_key(PREFIX, 3) not in bench.bucket.objects
        stale = Entry(3, "late", Writer("w9", "incarnation-w9"), 0, ({"kind": "add", "value": "GHOST"},))
        bench.bucket.objects[entry_key(PREFIX, 3)] = stale.encode()
        # A reader that was asleep at entry 2 finds the ghost where it reads next.
        sleeper = bench.ledger()
        sleeper.seq, sleeper.state = 2, {"term": 0, "history": ["v0", "v1"]}
        await sleeper.poll()
        assert sleeper.state["history"] == ledger.state["history"]
        assert "GHOST" not in sleeper.state["history"]
        assert "GHOST" not in await fold_from_scratch(bench)

    run(main())


def test_a_writer_asleep_since_before_the_collection_does_not_count_what_it_creates() -> None:
    async def main() -> None:
        bench = Bench()
        sleeper = bench.ledger()
        await sleeper.append(add("mine"))
        await grow_and_collect(bench)
        assert sleeper.seq == 1 and entry_key(PREFIX, 2) not in bench.bucket.objects
        # Its next create succeeds, on a collected name. It must end up at the log's true end instead, once.
        done = await sleeper.append(add("late"))
        assert done is not None and done.seq == 47
        assert (await fold_from_scratch(bench)).count("late") == 1

    run(main())


def test_a_writer_whose_answer_was_lost_before_the_collection_learns_that_it_counted() -> None:
    """Rule 2: the snapshot knows each incarnation's last entry, so that the marker means yes or no, and nobody appends
    the same thing twice."""

    async def main() -> None:
        bench = Bench()
        sleeper = bench.ledger(resolve_timeout_ms=600_000)
        await sleeper.append(add("before"))
        store, arrived = sleeper._store, asyncio.Event()
        original = store.put

        async def lost(key: str, data: bytes, *, if_absent: bool = False) -> None:
            await original(key, data, if_absent=if_absent)
            arrived.set()
            await asyncio.sleep(60)  # the answer never comes, and by the time that is clear the log has moved on
            raise OutcomeUnknown("no answer")

        store.put = lost  # type: ignore[method-assign]
        appending = asyncio.create_task(sleeper.append(add("mine")))
        await arrived.wait()
        store.put = original  # type: ignore[method-assign]
        await grow_and_collect(bench)
        assert entry_key(PREFIX, 2) not in bench.bucket.objects
        done = await appending
        assert done is not None and done.seq == 2 and done.rejections == (None,)
        assert (await fold_from_scratch(bench)).count("mine") == 1

    run(main())


def test_the_marker_is_there_before_the_first_delete() -> None:
    async def main() -> None:
        bench = Bench()
        deleted: list[bool] = []
        original = ListingClient.delete

        async def watched(self: ListingClient, keys: Sequence[str]) -> None:
            if keys[0].startswith(f"{PREFIX}/ledger/0"):
                deleted.append(any(k.startswith(f"{PREFIX}/ledger/collected/") for k in bench.bucket.objects))
            await original(self, keys)

        ListingClient.delete = watched  # type: ignore[method-assign]
        try:
            await grow_and_collect(bench)
        finally:
            ListingClient.delete = original  # type: ignore[method-assign]
        assert deleted and all(deleted)
        kept = [k for k in bench.bucket.objects if k.startswith(f"{PREFIX}/ledger/0")]
        assert entry_key(PREFIX, 34) in kept, "nothing above the older snapshot is deleted"
        assert marker_key(PREFIX, 0) in bench.bucket.objects and marker_key(PREFIX, 3) not in bench.bucket.objects

    run(main())


def test_an_append_whose_outcome_stays_unknown_is_settled_before_the_next() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger(resolve_timeout_ms=3_000)
        await ledger.append(add("a"))
        bench.world.faults = Faults(lost_response=1.0)
        with pytest.raises(Unavailable):
            await ledger.append(add("b"))
        bench.world.faults = CALM
        ledger._store.host.cut_from.clear()  # type: ignore[attr-defined]
        await ledger.append(add("c"))
        history = await fold_from_scratch(bench)
        assert history in (["a", "b", "c"], ["a", "c"]), history
        assert ledger.state["history"] == history

    run(main())


async def appended(ledger: Ledger[dict[str, Any]], value: str, **given: float) -> str:
    """The kind of error, or what was made of it."""
    try:
        done = await ledger.append(add(value), **given)
    except Unavailable as error:
        return type(error).__name__
    return "accepted" if done is not None and done.rejections == (None,) else "not accepted"


def test_what_the_store_refuses_outright_is_no_entry_and_stands_in_nobody_s_way() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger(resolve_timeout_ms=3_000)
        put, asked = ledger._store.put, 0

        async def refused(key: str, data: bytes, *, if_absent: bool = False) -> None:
            nonlocal asked
            asked += 1
            raise Unavailable("no connection")

        ledger._store.put = refused  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        assert await appended(ledger, "a") not in ("accepted", "OutcomeUnknown")
        assert 3 < asyncio.get_running_loop().time() - began < 6 and 3 < asked < 200, "it is patient, and not eager"
        began = asyncio.get_running_loop().time()
        assert await appended(ledger, "b", unsent_ms_max=100) == "Unavailable"
        assert asyncio.get_running_loop().time() - began < 2
        ledger._store.put = put  # type: ignore[method-assign]
        assert await appended(ledger, "c") == "accepted"
        await asyncio.sleep(10)
        assert await fold_from_scratch(bench) == ["c"] == ledger.state["history"]

    run(main())


def test_what_waits_behind_an_open_outcome_was_not_sent_and_may_be_withdrawn() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger(resolve_timeout_ms=3_000)
        put = ledger._store.put

        async def lost(key: str, data: bytes, *, if_absent: bool = False) -> None:
            await asyncio.sleep(0.2)
            raise OutcomeUnknown("no answer")

        ledger._store.put = lost  # type: ignore[method-assign]
        first = asyncio.create_task(appended(ledger, "a"))
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert await appended(ledger, "b", unsent_ms_max=100) == "Unavailable"
        assert asyncio.get_running_loop().time() - began < 0.2
        assert await appended(ledger, "c") == "Unavailable", "not in an entry, though the one before is open"
        assert await first == "OutcomeUnknown"
        ledger._store.put = put  # type: ignore[method-assign]
        assert await appended(ledger, "d") == "accepted"
        assert await fold_from_scratch(bench) == ["a", "d"] == ledger.state["history"]

    run(main())


def test_what_is_on_its_way_is_not_withdrawn() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger()
        put = ledger._store.put

        async def slowly(key: str, data: bytes, *, if_absent: bool = False) -> None:
            await put(key, data, if_absent=if_absent)
            await asyncio.sleep(1)

        ledger._store.put = slowly  # type: ignore[method-assign]
        assert await appended(ledger, "a", unsent_ms_max=100) == "accepted"
        assert await fold_from_scratch(bench) == ["a"]

    run(main())


def test_concurrent_appends_of_one_writer_share_an_entry_and_keep_their_own_outcomes() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger()

        def broken(state: dict[str, Any]) -> list[Command]:
            raise ValueError("a bug of one caller")

        results = await asyncio.gather(
            *(ledger.append(add(f"v{i}")) for i in range(20)), ledger.append(broken), return_exceptions=True
        )
        assert isinstance(results[-1], ValueError)
        assert all(not isinstance(r, BaseException) and r is not None and r.rejections == (None,) for r in results[:-1])
        assert ledger.seq <= 2
        assert sorted(await fold_from_scratch(bench)) == sorted(f"v{i}" for i in range(20))

    run(main())


def test_a_reader_stops_at_what_it_does_not_know_and_at_what_is_damaged() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = bench.ledger()
        await ledger.append(add("a"))
        future = Entry(2, "f", Writer("w", "i"), 0, (), level=2)
        bench.bucket.objects[entry_key(PREFIX, 2)] = future.encode()
        with pytest.raises(Internal, match="feature level 2"):
            await ledger.poll()
        bench.bucket.objects[entry_key(PREFIX, 2)] = b"\0garbage"
        with pytest.raises(Corrupt):
            await ledger.poll()
        assert ledger.seq == 1

    run(main())


def test_an_idle_reader_creates_nothing_and_a_stale_list_is_harmless() -> None:
    async def main() -> None:
        bench = Bench()
        ledger = await grow_and_collect(bench)
        before = dict(bench.bucket.objects)
        for _ in range(200):
            await ledger.poll()
        assert bench.bucket.objects == before
        # Somebody's list still shows only an older snapshot, whose successors are gone: list again.
        newest = max(k for k in before if "/snapshot/" in k)
        lists = 0
        original = ListingClient.list

        async def stale(self: ListingClient, prefix: str, *, start_after: str = "", limit: int = 1_000) -> Any:
            nonlocal lists
            lists += 1
            found = await original(self, prefix, start_after=start_after, limit=limit)
            return [i for i in found if lists > 2 or i.key != newest]

        ListingClient.list = stale  # type: ignore[method-assign]
        try:
            assert await fold_from_scratch(bench) == ledger.state["history"]
        finally:
            ListingClient.list = original  # type: ignore[method-assign]
        assert snapshot_key(PREFIX, 45) == newest

    run(main())


@pytest.mark.parametrize("hurried", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_under_faults_every_reader_folds_one_history_and_no_append_counts_twice(seed: int, hurried: bool) -> None:
    """Lost, late, repeated and refused requests, frozen writers, snapshots and collection under way. `hurried`: two
    callers a writer, who withdraw what is not sent soon."""

    async def main() -> None:
        bench = Bench(seed, HOSTILE)
        rng = random.Random(seed)
        accepted: list[str] = []
        unknown: set[str] = set()
        refused: set[str] = set()
        ledgers = [bench.ledger(resolve_timeout_ms=4_000) for _ in range(3)]

        async def write(ledger: Ledger[dict[str, Any]], name: str) -> None:
            for i in range(25):
                value = f"{name}-{i}"
                try:
                    done = await ledger.append(add(value), unsent_ms_max=rng.choice([3, 30, 300]) if hurried else None)
                    assert done is not None and done.rejections == (None,)
                    accepted.append(value)
                except OutcomeUnknown:
                    unknown.add(value)  # it may be in the log, at most once
                except Unavailable:
                    refused.add(value)
                if rng.random() < 0.1:
                    await attempt(ledger.snapshot)
                if rng.random() < 0.1:
                    await attempt(ledger.collect)
                if rng.random() < 0.05:
                    ledger._store.host.freeze()  # type: ignore[attr-defined]
                    asyncio.get_running_loop().call_later(rng.uniform(0, 40), ledger._store.host.thaw)  # type: ignore[attr-defined]
                await asyncio.sleep(rng.uniform(0, 0.5))

        callers = "ab" if hurried else "a"
        await asyncio.gather(*(write(x, f"w{i}{c}") for i, x in enumerate(ledgers) for c in callers))
        await asyncio.sleep(60)  # what is late arrives
        bench.world.faults = CALM
        histories = []
        for ledger in [*ledgers, bench.ledger()]:
            await ledger.open()
            histories.append(ledger.state["history"])
        assert all(h == histories[0] for h in histories), f"seed {seed}: readers disagree"
        assert len(histories[0]) == len(set(histories[0])), f"seed {seed}: an append counted twice"
        missing = [v for v in accepted if v not in histories[0]]
        assert not missing, f"seed {seed}: accepted and not in the log: {missing}"
        strangers = set(histories[0]) - set(accepted) - unknown
        assert not strangers, f"seed {seed}: {strangers}"
        assert not hurried or refused

    run(main())


async def attempt(act: Callable[[], Awaitable[Any]]) -> None:
    try:
        await act()
    except (Unavailable, OutcomeUnknown, NotFound):
        pass
