"""What a benchmark tells: figures, each beside a peer, a limit or a promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `ratio`: value to peer. `target`: what is promised, of the ratio if there is a peer, else of the value
    in `unit`; `holds`: whether it does; None where nothing is promised.
    """

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    target: float | None = None
    holds: bool | None = None


def at_most(name: str, value: float, unit: str, target: float) -> Figure:
    """A figure beside what is promised."""
    ratio = round(value / target, 3) if target else None
    return Figure(name, round(value, 3), unit, "promised, at most", target, ratio, target, value <= target)


def at_least(name: str, value: float, unit: str, target: float) -> Figure:
    """A figure beside what is promised."""
    ratio = round(value / target, 3)
    return Figure(name, round(value, 3), unit, "promised, at least", target, ratio, target, value >= target)


def beside(
    name: str,
    value: float,
    unit: str,
    peer: str,
    peer_value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """A figure beside a peer's or a limit's of the same run; the promise is of the ratio."""
    ratio = value / peer_value if peer_value else 0.0
    target = at_least if at_least is not None else at_most
    holds = None if target is None else (ratio >= target if at_least is not None else ratio <= target)
    return Figure(name, round(value, 3), unit, peer, round(peer_value, 3), round(ratio, 3), target, holds)
