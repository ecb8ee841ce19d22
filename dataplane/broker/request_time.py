"""How long the broker's one thread is busy with a request: its steps on the loop, not its waits."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

from providers.base.clock import Clock

T = TypeVar("T")


class RequestTime:
    """Runs from its making on, until `pause`."""

    __slots__ = ("_clock", "_since_ms", "_spent_ms")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent_ms = 0.0
        self._since_ms: float | None = clock.monotonic_ms()

    @property
    def ms(self) -> float:
        """So far."""
        return self._spent_ms + (0.0 if self._since_ms is None else self._clock.monotonic_ms() - self._since_ms)

    def pause(self) -> None:
        self._spent_ms, self._since_ms = self.ms, None

    def go_on(self) -> None:
        if self._since_ms is None:
            self._since_ms = self._clock.monotonic_ms()

    def timed(self, work: Awaitable[T]) -> Awaitable[T]:
        """The same work; while it waits, the time stands still. So it does until the work is begun."""
        self.pause()
        return _Timed(work, self)


class _Timed(Generic[T]):
    """An awaitable around another, that sees when it waits and when it goes on."""

    __slots__ = ("_time", "_work")

    def __init__(self, work: Awaitable[T], time: RequestTime) -> None:
        self._work = work
        self._time = time

    def __await__(self) -> Generator[Any, Any, T]:
        steps: Any = self._work.__await__()
        thrown: BaseException | None = None
        while True:
            self._time.go_on()
            try:
                waits_for = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as done:
                found: T = done.value
                return found
            finally:
                self._time.pause()
            thrown = None
            try:
                yield waits_for
            except BaseException as error:  # a cancellation is the work's to take
                thrown = error
