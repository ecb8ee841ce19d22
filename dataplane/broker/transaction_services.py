"""All that serves transactions in one broker, put together."""

from __future__ import annotations

from dataplane.broker.engine import Engine
from dataplane.broker.groups import GroupCoordinator
from dataplane.broker.handlers.transactions import Transactions
from dataplane.broker.markers import Markers
from dataplane.broker.transactions import TransactionCoordinator
from dataplane.broker.txn_offsets import TxnOffsets
from dataplane.broker.txn_verify import Verifier
from providers.base.clock import Clock


class TransactionServices:
    """Over an engine and its group coordinator."""

    def __init__(self, engine: Engine, groups: GroupCoordinator, clock: Clock) -> None:
        offsets = TxnOffsets(groups)
        self.verifier = Verifier(engine, clock)
        self.coordinator = TransactionCoordinator(engine, Markers(engine, offsets, clock), clock=clock)
        self.handlers = Transactions(engine, self.coordinator, groups, offsets, self.verifier, clock)
