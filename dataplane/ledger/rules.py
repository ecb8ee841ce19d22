"""How a fold says that a command is not accepted."""

from __future__ import annotations


class Rejected(Exception):
    """Why a command is not accepted, in one sentence. Never leaves the fold."""


def require(condition: bool, reason: str) -> None:
    """
    Raises:
        Rejected: the condition does not hold.
    """
    if not condition:
        raise Rejected(reason)
