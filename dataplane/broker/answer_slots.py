"""The place of one answer among those of its connection: they go out in the order of the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataplane.broker.request_meter import LOGIN
from dataplane.stream.batch import Buffer


class Slot:
    """`answered` hears of the answer's size. `began_ms`: when its request was there."""

    __slots__ = ("_answered", "answer", "api_key", "began_ms", "done", "size")

    def __init__(self, answered: Callable[[int], None], began_ms: float) -> None:
        self._answered = answered
        self.began_ms = began_ms
        self.api_key = LOGIN
        self.answer: bytes | Sequence[Buffer] | None = None
        self.done = False
        self.size = 0

    def send(self, answer: bytes | Sequence[Buffer] | None) -> None:
        """The answer is known; None: there is none to give."""
        self.answer, self.done = answer, True
        if answer is not None:
            self.size = len(answer) if isinstance(answer, bytes) else sum(map(len, answer))
        self._answered(self.size)
