"""Fences a dead broker's WAL and reads it: one side of the membership, the same one for both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataplane.wal.base import Block, WalReader
from providers.base.errors import Corrupt, Invalid, NotFound, Unavailable, YunheError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that was acked at or above the floor, in order, and possibly some that never was: the ledger's accepted entry
    defines what counts. `side`: where it was read."""

    side: str
    blocks: tuple[Block, ...]


async def recover(readers: Mapping[str, WalReader], membership: Sequence[str], floor: int) -> Recovered:
    """Fence and read one side of the membership that `BrokerFenced` found in the ledger; `readers` are by side name,
    and one that could not be opened is left out.

    With two sides in the membership each has every acked block, and so either will do; fencing one and reading the
    other would not. With one it has to be that one, and if it cannot be reached, recovery waits. Idempotent: any
    survivor may repeat or finish it. The caller commits to the ledger, and then calls `release` on the readers.

    Raises:
        Unavailable: no side of the membership can be fenced and read now; nothing is concluded.
        Corrupt: every side that can be reached is damaged.
        Fenced: another recovery has overtaken this one.
        Conflict: another recovery has finished: read the ledger again.
    """
    if not membership:
        raise Invalid("a membership names at least one side")
    failures: dict[str, YunheError] = {}
    for side in membership:
        reader = readers.get(side)
        if reader is None:
            failures[side] = Unavailable(f"the side {side} could not be opened")
            continue
        try:
            await reader.fence()
            return Recovered(side, tuple([block async for block in reader.read(floor)]))
        except (Unavailable, NotFound, Corrupt) as error:
            log.warning("wal side not recovered side=%s error=%s", side, error)
            failures[side] = error
    shown = "; ".join(f"{side}: {error}" for side, error in failures.items())
    damaged = [error for error in failures.values() if isinstance(error, Corrupt)]
    if len(damaged) == len(failures):
        raise Corrupt(f"no side of the WAL is whole: {shown}") from damaged[0]
    raise Unavailable(
        f"no side of the WAL can be recovered now: {shown}", hint="recovery waits for the side to come back"
    )
