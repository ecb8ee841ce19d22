"""Patterns of topic names, matched in time proportional to the name's length whatever the pattern: a coordinator runs
its clients' patterns on the one loop that serves everybody, where a backtracking matcher could be kept busy for years.

What RE2 has and topic names need: literals, `.`, classes, `\\d \\w \\s`, groups, `|`, `* + ? {m,n}` (lazy ones too),
`^` and `$` at the ends. A pattern matches a name as a whole, as Kafka's coordinator has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PATTERN_LENGTH_MAX = 1_000
NESTING_MAX = 50
REPEATS_MAX = 1_000
"""RE2's own bound of {m,n}."""
STATES_MAX = 1_000
"""Of the automaton."""
STEPS_MAX = 2_000_000
"""Of one selection: about a second. What takes longer is refused."""
KNOWN_MAX = 50_000
"""States in the ways remembered, so that most characters cost one look-up."""

Accepts = Callable[[str], bool]
"""Of one character."""


@dataclass(slots=True)
class _State:
    """Goes on to `out` by a character that it accepts; without one, by itself to all of `out`."""

    accepts: Accepts | None = None
    out: tuple[int, ...] = ()


class BadPattern(ValueError):
    """What is wrong, in one sentence."""


def select(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match.

    Raises:
        BadPattern: it is none, has something that is not served, or takes too long.
    """
    automaton = _automaton(pattern)
    automaton.steps_left = STEPS_MAX
    return [name for name in names if automaton.matches(name)]


@functools.lru_cache(maxsize=64)
def _automaton(pattern: str) -> _Automaton:
    if len(pattern) > PATTERN_LENGTH_MAX:
        raise BadPattern(f"a pattern of {len(pattern)} characters; {PATTERN_LENGTH_MAX} at most")
    return _Automaton(pattern)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a pattern, parsed. `build`: given the state to go on to, makes the states before it and returns the
    first. A pattern matches as a whole, so that anchors say nothing new at its ends, and elsewhere could never hold.
    """

    build: Callable[[int], int]
    starts: bool = False
    """It has a ^, so nothing may stand before it."""
    ends: bool = False
    """It has a $, so nothing may stand behind it."""


class _Automaton:
    """Thompson's: one state a character of the pattern, all threads stepped together."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = self._depth = self._known = 0
        self._states: list[_State] = []
        self._ways: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self.steps_left = STEPS_MAX
        build = self._alternatives().build
        if self._at < len(pattern):
            raise BadPattern(f"an unopened ) at {self._at}")
        self._end = self._add(_State())
        self._start = self._closure([build(self._end)])

    def matches(self, name: str) -> bool:
        """The whole name."""
        now = self._start
        for char in name:
            if not now:
                return False
            way = self._ways.get((now, char))
            now = way if way is not None else self._step(now, char)
        return self._end in now

    def _step(self, now: frozenset[int], char: str) -> frozenset[int]:
        on: list[int] = []
        for number in now:
            accepts = self._states[number].accepts
            if accepts is not None and accepts(char):
                on.extend(self._states[number].out)
        found = self._ways[now, char] = self._closure(on)
        self._known += len(found)
        if self._known > KNOWN_MAX:
            self._ways.clear()
            self._known = 0
        self.steps_left -= len(now) + len(found)
        if self.steps_left < 0:
            raise BadPattern("the pattern takes too long")
        return found

    def _closure(self, begin: Iterable[int]) -> frozenset[int]:
        found: set[int] = set()
        todo = list(begin)
        while todo:
            number = todo.pop()
            if number not in found:
                found.add(number)
                if self._states[number].accepts is None:
                    todo.extend(self._states[number].out)
        return frozenset(found)

    def _add(self, state: _State) -> int:
        if len(self._states) >= STATES_MAX:
            raise BadPattern("the pattern repeats too much")
        self._states.append(state)
        return len(self._states) - 1

    # ── parsing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise BadPattern("the pattern ends too early")
        self._at += 1
        return char

    def _alternatives(self) -> _Piece:
        choices = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            choices.append(self._sequence())
        if len(choices) == 1:
            return choices[0]
        return _Piece(
            lambda then: self._add(_State(None, tuple(piece.build(then) for piece in choices))),
            any(piece.starts for piece in choices),
            any(piece.ends for piece in choices),
        )

    def _sequence(self) -> _Piece:
        pieces: list[_Piece] = []
        while self._peek() not in ("", "|", ")"):
            at = self._at
            piece = self._repeated(self._atom())
            if pieces and (piece.starts or pieces[-1].ends):
                raise BadPattern(f"an anchor in the middle, before or at {at}")
            pieces.append(piece)

        def build(then: int) -> int:
            for piece in reversed(pieces):
                then = piece.build(then)
            return then

        return _Piece(build, any(p.starts for p in pieces), any(p.ends for p in pieces))

    def _atom(self) -> _Piece:
        at, char = self._at, self._take()
        if char == "(":
            if self._pattern.startswith("?:", self._at):
                self._at += 2
            elif self._peek() == "?":
                raise BadPattern(f"(? at {at} is not served")
            self._depth += 1
            if self._depth > NESTING_MAX:
                raise BadPattern(f"more than {NESTING_MAX} groups in each other")
            inner = self._alternatives()
            self._depth -= 1
            if self._peek() != ")":
                raise BadPattern(f"an unclosed ( at {at}")
            self._at += 1
            return inner
        if char == "[":
            return self._one(self._class(at))
        if char == ".":
            return self._one(lambda c: c != "\n")
        if char in "*+?":
            raise BadPattern(f"nothing to repeat at {at}")
        if char in "^$":
            return _Piece(lambda then: then, starts=char == "^", ends=char == "$")
        if char == "\\":
            return self._one(self._escape(at))
        return self._one(lambda c: c == char)

    def _one(self, accepts: Accepts) -> _Piece:
        return _Piece(lambda then: self._add(_State(accepts, (then,))))

    def _repeated(self, piece: _Piece) -> _Piece:
        again = False
        while (char := self._peek()) and char in "*+?{":
            at = self._at
            low, high = self._bounds()
            if again or piece.starts or piece.ends:
                raise BadPattern(f"what is at {at} cannot be repeated")
            again = True
            if self._peek() == "?":  # lazy: which way is tried first does not matter to whether it matches
                self._at += 1
            piece = _Piece(self._times(piece.build, low, high))
        return piece

    def _bounds(self) -> tuple[int, int | None]:
        char, at = self._take(), self._at
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        end = self._pattern.find("}", at)
        low, comma, high = self._pattern[at : max(end, at)].partition(",")
        if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high):
            raise BadPattern(f"a {{ at {at - 1} without its numbers")
        self._at = end + 1
        least, most = int(low), int(high) if high else None if comma else int(low)
        if max(least, most or 0) > REPEATS_MAX or (most is not None and most < least):
            raise BadPattern(f"{{{low}{comma}{high}}} at {at - 1} is out of bounds")
        return least, most

    def _times(self, build: Callable[[int], int], low: int, high: int | None) -> Callable[[int], int]:
        def built(then: int) -> int:
            if high is None:
                loop = self._add(_State())
                self._states[loop].out = (then, build(loop))
                then = loop
            else:
                end = then
                for _ in range(high - low):
                    then = self._add(_State(None, (end, build(then))))
            for _ in range(low):
                then = build(then)
            return then

        return built

    def _escape(self, at: int) -> Accepts:
        char = self._take()
        known = _CLASSES.get(char.lower())
        if known is not None:
            return known if char.islower() else lambda c: not known(c)
        if char.isalnum():
            raise BadPattern(f"\\{char} at {at} is not served")
        return lambda c: c == char

    def _class(self, at: int) -> Accepts:
        negative = self._peek() == "^"
        self._at += negative
        parts: list[Accepts] = []
        while (char := self._peek()) != "]" or not parts:
            if not char:
                raise BadPattern(f"an unclosed [ at {at}")
            parts.append(self._class_part())
        self._at += 1
        return lambda c: any(accepts(c) for accepts in parts) is not negative

    def _class_part(self) -> Accepts:
        if self._pattern.startswith("[:", self._at):
            raise BadPattern(f"[: at {self._at} is not served")
        low = self._take()
        if low == "\\":
            if self._peek().isalnum():
                return self._escape(self._at - 1)
            low = self._take()
        if self._peek() != "-" or self._pattern[self._at + 1 : self._at + 2] in ("]", ""):
            return lambda c: c == low
        self._at += 1
        high = self._take()
        if high == "\\":
            high = self._take()
            if high.isalnum():
                raise BadPattern(f"a range up to \\{high}")
        if high < low:
            raise BadPattern(f"the range {low}-{high} is empty")
        return lambda c: low <= c <= high


_CLASSES: dict[str, Accepts] = {
    "d": lambda c: "0" <= c <= "9",
    "w": lambda c: c == "_" or (c.isascii() and c.isalnum()),
    "s": lambda c: c in " \t\n\f\r",
}
