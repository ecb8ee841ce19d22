"""Runs an operation's steps and journals each change before and after, so that whoever starts next goes on where this
one stopped.

Steps of one cloud run in order; clouds run at once, and one cloud's failure does not hold up the others. Every act is
idempotent: a step that was Running when the process died runs again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.store.base import Operation, StepRecord, StepState, Store
from providers.base.clock import Clock, Rng
from providers.base.errors import Unavailable, YunheError

log = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Tells what a step waits for."""
Act = Callable[[Say], Awaitable[str]]
"""Carries a step out; returns one sentence. Raises YunheError; Unavailable means that it is worth another try."""


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """Bounds of a step."""

    step_timeout_ms: float = 90_000.0
    """From a step's start to its failure while the far side is not available. A broker on a slow machine needs a few
    seconds; a cloud's brown-out passes within a minute.
    """
    retry_min_ms: float = 100.0
    """First pause before another try; doubled each time, with jitter."""
    retry_max_ms: float = 2_000.0


class Executor:
    """Executes operations of one store."""

    def __init__(
        self, store: Store, *, clock: Clock, rng: Rng, settings: ExecutorSettings = ExecutorSettings()
    ) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._settings = settings

    async def run(self, operation: Operation, acts: Mapping[str, Act]) -> Operation:
        """Run what is not done yet, and journal the outcome.

        `acts`: by step id; each of the operation's steps has one.
        """
        journal = _Journal(self._store, operation)
        lanes: dict[str, list[StepRecord]] = {}
        for step in operation.steps:
            lanes.setdefault(step.cloud, []).append(step)
        await asyncio.gather(*(self._lane(journal, steps, acts) for steps in lanes.values()))
        done = all(step.state is StepState.DONE for step in journal.operation.steps)
        return journal.end("Done" if done else "Failed", self._clock.wall_ms())

    async def _lane(self, journal: _Journal, steps: Sequence[StepRecord], acts: Mapping[str, Act]) -> None:
        for step in steps:
            if step.state is StepState.DONE:
                continue
            journal.change(step.id, state=StepState.RUNNING, sentence="", error=None, hint=None)
            try:
                sentence = await self._step(journal, step, acts[step.id])
            except YunheError as error:
                journal.change(step.id, state=StepState.FAILED, error=error.message, hint=error.hint)
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # A bug in one act: its cloud stops here, the others go on, and the journal says so.
                log.exception("step %s failed with a bug", step.id)
                journal.change(step.id, state=StepState.FAILED, error=f"bug: {type(error).__name__}: {error}")
                return
            journal.change(step.id, state=StepState.DONE, sentence=sentence)

    async def _step(self, journal: _Journal, step: StepRecord, act: Act) -> str:
        settings = self._settings
        deadline = self._clock.monotonic_ms() + settings.step_timeout_ms
        pause_ms = settings.retry_min_ms
        while True:
            try:
                return await act(lambda sentence: journal.say(step.id, sentence))
            except Unavailable as error:
                pause_ms = min(pause_ms * 2, settings.retry_max_ms)
                if self._clock.monotonic_ms() + pause_ms > deadline:
                    raise
                journal.say(step.id, error.message)
            await self._clock.sleep_ms(pause_ms * self._rng.uniform(0.75, 1.25))


class _Journal:
    """The operation's record, written at every change."""

    def __init__(self, store: Store, operation: Operation) -> None:
        self._store = store
        self.operation = operation

    def say(self, id_: str, sentence: str) -> None:
        """Note what a running step waits for, if that is news."""
        if any(step.id == id_ and step.sentence != sentence for step in self.operation.steps):
            self.change(id_, sentence=sentence)

    def change(self, id_: str, **changes: object) -> None:
        def changed(step: StepRecord) -> StepRecord:
            return replace(step, **changes) if step.id == id_ else step  # type: ignore[arg-type]

        self._put(replace(self.operation, steps=tuple(changed(step) for step in self.operation.steps)))

    def end(self, outcome: str, now_ms: int) -> Operation:
        self._put(replace(self.operation, outcome=outcome, ended_ms=now_ms))
        return self.operation

    def _put(self, operation: Operation) -> None:
        self.operation = replace(operation, version=operation.version + 1)
        self._store.put_operation(self.operation)
