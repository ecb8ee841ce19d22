"""How a broker process gets its epoch: a restart is a recovery.

    unknown ───────────────────────────────► joined(1)
    live (its own former life) ──► fenced ──► recovered together with joined(e + 1)
    gone (recovered by a survivor, or left cleanly) ──► joined(e + 1)

The former life may still be running (a frozen process, an agent that lost its journal): it is fenced like anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dataplane.failover.run import OpenReaders, take_over
from dataplane.ledger.commands import NodeEpoch, broker_fenced
from dataplane.ledger.entry import Command
from dataplane.ledger.log import Ledger
from dataplane.ledger.object_names import lane_prefix
from dataplane.ledger.state import BrokerStatus, CellState
from providers.base.clock import Clock
from providers.base.errors import Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 60
RETRY_MS = 500


async def join(
    node_id: int,
    *,
    ledger: Ledger[CellState],
    joined: Callable[[NodeEpoch], Command],
    open_readers: OpenReaders,
    store: ObjectStore,
    cluster: str,
    incarnation: str,
    clock: Clock,
) -> NodeEpoch:
    """Join with the next epoch; the one before is fenced and recovered when this returns.

    Raises:
        Unavailable: the bucket, or every side of the former epoch's WAL, stayed out of reach.
        Corrupt: the former epoch cannot be recovered whole.
    """
    last: Unavailable | None = None
    for attempt in range(ATTEMPTS_MAX):
        # Each attempt has names of its own: one that reads another side may find more, and other bytes.
        lane = f"{incarnation}-own-{attempt}"

        def prefix(me: NodeEpoch, victim: NodeEpoch, lane: str = lane) -> str:
            return lane_prefix(cluster, me, lane, victim)

        try:
            me = await _attempt(node_id, ledger, joined, open_readers, store, prefix, clock)
            if me is not None:
                return me
        except Unavailable as error:
            last = error
            log.warning("join-retry", extra={"node": node_id, "error": str(error)})
            await clock.sleep_ms(RETRY_MS)
    raise last or Unavailable(f"broker {node_id} could not join the cell within {ATTEMPTS_MAX} attempts")


async def _attempt(
    node_id: int,
    ledger: Ledger[CellState],
    joined: Callable[[NodeEpoch], Command],
    open_readers: OpenReaders,
    store: ObjectStore,
    prefix: Callable[[NodeEpoch, NodeEpoch], str],
    clock: Clock,
) -> NodeEpoch | None:
    await ledger.poll()
    before = ledger.state.brokers.get(node_id)
    me = NodeEpoch(node_id, before.epoch + 1 if before is not None else 1)
    if before is None or before.status is BrokerStatus.GONE:
        appended = await ledger.append(lambda state: [joined(me)] if _next(state, node_id) == me.epoch else None)
        return me if appended is not None and appended.rejections[0] is None else None
    if before.status is BrokerStatus.LIVE:
        victim = before.id
        await ledger.append(
            lambda state: (
                [broker_fenced(victim, by=me, reason="its next life begins")] if state.is_live(victim) else None
            )
        )
        return None  # look again: it is fenced now, by this entry or another
    outcome = await take_over(
        before,
        me=me,
        ledger=ledger,
        open_readers=open_readers,
        store=store,
        name_prefix=prefix(me, before.id),
        clock=clock,
        rejoin=joined(me),
    )
    log.info("rejoined", extra={"sentence": outcome.sentence})
    # Only the recovery that the ledger took from this very process gives it the epoch: a twin under the same node id
    # may have been first.
    return me if outcome.accepted else None


def _next(state: CellState, node_id: int) -> int:
    broker = state.brokers.get(node_id)
    return 1 if broker is None else broker.epoch + 1
