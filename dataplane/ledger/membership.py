"""How a lost side of a broker's WAL comes back into its membership within the epoch: the rules, and what changes."""

from __future__ import annotations

from dataplane.ledger.entry import Command
from dataplane.ledger.state import WalState

SIDES_OF_MODE = {"block+express": ("volume", "express")}
"""Modes whose membership can change, with the membership that each epoch begins with, in its order."""


def why_not_back(wal: WalState, command: Command) -> str | None:
    """Why a `side-returned` is not accepted of a live broker; None when it is."""
    side, instance, start = command["side"], command["instance"], command["start"]
    if side not in SIDES_OF_MODE.get(wal.mode, ()):
        return f"a WAL of mode {wal.mode} has no side {side} that could come back"
    if side in wal.sides:
        return f"{side} is in the membership already"
    if instance <= wal.instances.get(side, 0):
        return (
            f"instance {wal.instances.get(side, 0)} of {side} was in the membership already, so {instance} is not new"
        )
    if start > wal.floor:
        return f"{side} begins at block {start}, and the WAL is needed from block {wal.floor} on"
    return None


def take_back(wal: WalState, command: Command) -> None:
    """The side is in the membership again, as the command's instance."""
    wal.instances[command["side"]] = command["instance"]
    wal.sides = [side for side in SIDES_OF_MODE[wal.mode] if side in (*wal.sides, command["side"])]
