"""The executor: journaled before and after, resumable at any step, one cloud's failure holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from controlplane.apply.executor import Act, Executor, ExecutorSettings, Say
from controlplane.store.base import Operation, StepRecord, StepState, StoredPlan
from controlplane.store.sqlite import SqliteStore
from providers.base.clock import LoopClock, SeededRng, SystemClock
from providers.base.errors import Invalid, Unavailable
from tests.sim.virtualtime import run

STEPS = (
    StepRecord("bucket/a", "a", "probe the bucket of a"),
    StepRecord("assign/a", "a", "publish the assignments of a"),
    StepRecord("bucket/b", "b", "probe the bucket of b"),
    StepRecord("assign/b", "b", "publish the assignments of b"),
)


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    store = SqliteStore(tmp_path / "s.sqlite", clock=SystemClock())
    store.accept(StoredPlan("abcd", 0, {}, {}), Operation("op", "abcd", 0, STEPS))
    return store


def operation(store: SqliteStore) -> Operation:
    found = store.operation("op")
    assert found is not None
    return found


def execute(store: SqliteStore, acts: Mapping[str, Act], **settings: float) -> Operation:
    async def main() -> Operation:
        executor = Executor(store, clock=LoopClock(), rng=SeededRng(3), settings=ExecutorSettings(**settings))
        return await executor.run(operation(store), acts)

    return run(main())


def acting(done: list[str], **special: Act) -> dict[str, Act]:
    def plain(id_: str) -> Act:
        async def act(say: Say) -> str:
            done.append(id_)
            return f"did {id_}"

        return act

    return {step.id: special.get(step.id.replace("/", "_"), plain(step.id)) for step in STEPS}


def test_steps_of_a_cloud_run_in_order_and_the_journal_says_what_each_did(store: SqliteStore) -> None:
    done: list[str] = []
    assert execute(store, acting(done)).outcome == "Done"
    assert [d for d in done if d.endswith("/a")] == ["bucket/a", "assign/a"]
    journaled = operation(store)
    assert journaled.outcome == "Done"
    assert [s.sentence for s in journaled.steps] == [f"did {s.id}" for s in STEPS]


def test_a_failing_cloud_stops_there_and_the_others_go_on(store: SqliteStore) -> None:
    async def refuse(say: Say) -> str:
        raise Invalid("the bucket is versioned", hint="turn it off")

    done: list[str] = []
    assert execute(store, acting(done, bucket_a=refuse)).outcome == "Failed"
    states = {s.id: s.state for s in operation(store).steps}
    assert states == {
        "bucket/a": StepState.FAILED,
        "assign/a": StepState.PENDING,
        "bucket/b": StepState.DONE,
        "assign/b": StepState.DONE,
    }
    failed = operation(store).steps[0]
    assert (failed.error, failed.hint) == ("the bucket is versioned", "turn it off")


def test_unavailable_is_tried_again_until_the_step_is_out_of_time(store: SqliteStore) -> None:
    tries = {"a": 0, "b": 0}

    async def third_time(say: Say) -> str:
        tries["a"] += 1
        if tries["a"] < 3:
            raise Unavailable("not yet")
        return "there"

    async def never(say: Say) -> str:
        tries["b"] += 1
        raise Unavailable("does not answer")

    done: list[str] = []
    ended = execute(store, acting(done, bucket_a=third_time, bucket_b=never), step_timeout_ms=10_000)
    assert tries["a"] == 3 and "assign/a" in done
    assert tries["b"] > 3 and "assign/b" not in done
    assert ended.outcome == "Failed" and ended.steps[2].error == "does not answer"


@pytest.mark.parametrize("victim", [step.id for step in STEPS])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_step_is_resumed_and_ends_done(store: SqliteStore, victim: str, when: str) -> None:
    effects: set[str] = set()
    ran: list[str] = []
    crashed = False

    def act_of(id_: str) -> Act:
        async def act(say: Say) -> str:
            nonlocal crashed
            ran.append(id_)
            if id_ == victim and not crashed and when == "before":
                crashed = True
                raise Killed
            effects.add(id_)
            if id_ == victim and not crashed:
                crashed = True
                raise Killed
            return "ok"

        return act

    acts = {step.id: act_of(step.id) for step in STEPS}
    with pytest.raises(Killed):
        execute(store, acts)
    [left] = store.unfinished()
    finished = {s.id for s in left.steps if s.state is StepState.DONE}
    ran.clear()
    assert execute(store, acts).outcome == "Done"
    assert effects == {s.id for s in STEPS}
    assert not finished & set(ran), "a step that was journaled as done ran again"
    assert store.unfinished() == []


def test_a_superseded_operation_writes_nothing_any_more(store: SqliteStore) -> None:
    async def superseded(say: Say) -> str:
        store.accept(StoredPlan("ffff", 1, {}, {}), Operation("op-2", "ffff", 0, ()))
        await asyncio.sleep(0)
        return "late"

    done: list[str] = []
    execute(store, acting(done, bucket_a=superseded))
    assert operation(store).outcome == "Superseded"
