"""The runner: turns, sentences, failures that stay where they are."""

from __future__ import annotations

import asyncio

from controlplane.reconcile.queue import WorkQueue
from controlplane.reconcile.runner import Runner, RunnerSettings, Turn
from controlplane.store.base import Key
from providers.base.clock import SeededRng
from providers.base.errors import Full, Unavailable, YunheError
from tests.sim.virtualtime import run


class Scripted:
    """A reconciler that does what each name says."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.failures: list[str] = []
        self.disk_full = False

    async def reconcile(self, name: str) -> Turn:
        self.turns.append(name)
        match name:
            case "down":
                raise Unavailable("the bucket does not answer")
            case "buggy":
                raise ZeroDivisionError("bug")
            case "stuck":
                await asyncio.sleep(10_000)
            case "watching":
                return Turn("looks again", again_ms=1_000)
        return Turn("is as it should be")

    def failed(self, name: str, error: YunheError) -> None:
        self.failures.append(f"{name}: {error.message}")
        if self.disk_full:
            raise Full("the disk is full")


def turns(names: list[str], seconds: float, *, disk_full: bool = False, **settings: float) -> tuple[Scripted, Runner]:
    scripted = Scripted()
    scripted.disk_full = disk_full
    queue = WorkQueue(rng=SeededRng(1))
    keys: list[Key] = [("Topic", name) for name in names]
    runner = Runner(queue, {"Topic": scripted}, lambda: keys, settings=RunnerSettings(**settings))  # type: ignore[arg-type]

    async def main() -> None:
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(seconds)
        assert not task.done()
        task.cancel()
        await asyncio.wait({task})

    run(main())
    return scripted, runner


def test_every_turn_says_one_sentence() -> None:
    _, runner = turns(["fine"], 1)
    assert runner.sentences == {("Topic", "fine"): "is as it should be"}


def test_everything_gets_a_turn_at_each_resync() -> None:
    scripted, _ = turns(["a", "b"], 95, resync_interval_ms=30_000)
    assert scripted.turns.count("a") == 4 and scripted.turns.count("b") == 4


def test_a_failing_key_is_recorded_and_tried_again_while_others_go_on() -> None:
    scripted, runner = turns(["down", "fine"], 3)
    assert scripted.turns.count("down") > 2
    assert scripted.failures[0] == "down: the bucket does not answer"
    assert "the bucket does not answer; again in" in runner.sentences["Topic", "down"]
    assert runner.sentences["Topic", "fine"] == "is as it should be"


def test_a_bug_in_one_turn_stops_no_other() -> None:
    _, runner = turns(["buggy", "fine"], 1)
    assert "bug" in runner.sentences["Topic", "buggy"]
    assert runner.sentences["Topic", "fine"] == "is as it should be"


def test_a_stuck_turn_is_abandoned_and_holds_up_nobody() -> None:
    scripted, runner = turns(["stuck", "watching"], 30, workers=2, turn_timeout_ms=5_000)
    assert scripted.turns.count("watching") > 25
    assert scripted.turns.count("stuck") > 1
    assert "gave up after 5 s" in runner.sentences["Topic", "stuck"]


def test_a_full_disk_under_the_store_does_not_end_the_control_plane() -> None:
    scripted, runner = turns(["down", "fine"], 60, disk_full=True)
    assert scripted.turns.count("down") > 5
    assert runner.sentences["Topic", "fine"] == "is as it should be"


def test_a_store_that_cannot_be_read_is_asked_again_at_the_next_resync() -> None:
    scripted = Scripted()
    asked = 0

    def keys() -> list[Key]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise Unavailable("the store is locked")
        return [("Topic", "fine")]

    async def main() -> None:
        runner = Runner(WorkQueue(rng=SeededRng(1)), {"Topic": scripted}, keys)
        task = asyncio.create_task(runner.run())
        await asyncio.sleep(40)
        task.cancel()
        await asyncio.wait({task})

    run(main())
    assert scripted.turns == ["fine"]
