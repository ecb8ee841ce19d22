"""Patterns of topic names, judged by Python's own matcher; and none keeps the coordinator busy."""

from __future__ import annotations

import random
import re

import pytest

from dataplane.broker.topic_regex import BadPattern, select

ATOMS = ["a", "b", "-", r"\.", ".", "[ab]", "[^a]", "[a-c1]", r"[\d.]", r"[a\-]", "[]a]", r"\d", r"\w", r"\S", "[b-]"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}", "*?", "+?"]


def pattern(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(9)
    if depth > 3 or kind < 3:
        return rng.choice(ATOMS)
    if kind < 6:
        return pattern(rng, depth + 1) + pattern(rng, depth + 1)
    if kind < 7:
        return f"({pattern(rng, depth + 1)}|{pattern(rng, depth + 1)})"
    return f"(?:{pattern(rng, depth + 1)}){rng.choice(REPEATS)}"


def test_a_pattern_selects_what_another_matcher_does() -> None:
    rng = random.Random(848)
    names = ["".join(rng.choice("ab-.1Z_") for _ in range(rng.randrange(8))) for _ in range(300)]
    for _ in range(1_000):
        regex = pattern(rng)
        assert select(regex, names) == [n for n in names if re.fullmatch(regex, n, re.ASCII)], regex


def test_anchors_say_nothing_new_at_the_ends() -> None:
    assert select("^foo.*$", ["foo", "food", "afoo"]) == ["foo", "food"]
    assert select("^foo|bar$", ["foo", "bar", "foobar"]) == ["foo", "bar"]
    assert select("(^fo+$|^(?:bar))|^(baz)$", ["fooo", "bar", "baz", "foobar"]) == ["fooo", "bar", "baz"]


NONE = (
    "(",
    "a)",
    "[",
    "[a",
    "*a",
    "a**",
    "a{2",
    "a{3,1}",
    "a{,2}",
    "x^y",
    "a$b",
    "(a|^b)c^",
    "(a$)b",
    "(^a)*",
    "(?i)a",
    r"\Q",
    "a\\",
    r"[z-a]",
)
TOO_MUCH = ("(" * 60 + ")" * 60, "((a{100}){100}){100}", "a" * 1_001, "[[:alpha:]]")


@pytest.mark.parametrize("regex", NONE + TOO_MUCH)
def test_what_is_no_pattern_or_not_served_is_refused_in_a_sentence(regex: str) -> None:
    with pytest.raises(BadPattern, match=" "):
        select(regex, ["a"])


def test_no_pattern_takes_time_without_bound() -> None:
    """A backtracking matcher would need 2^240 steps for the first. The second is refused: too many as it is."""
    assert select("(a*)*(a*)*b", ["a" * 240]) == []
    with pytest.raises(BadPattern, match="too long"):
        select("(.?a?){100}(.?.?b?){60}", ["".join("ab-"[(i * j) % 3] for i in range(240)) for j in range(500)])
