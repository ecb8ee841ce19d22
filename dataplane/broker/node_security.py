"""`Store` of `security.py` over a node: the cell's ledger."""

from __future__ import annotations

from collections.abc import Sequence

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.node import Node
from dataplane.broker.security import Decide
from dataplane.ledger.entry import Command
from dataplane.ledger.security_state import SecurityState
from dataplane.ledger.state import CellState
from providers.base.errors import Unavailable


class NodeSecurity:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def state(self) -> SecurityState:
        return self._node.state.security

    async def change(self, decide: Decide) -> None:
        wanted = True

        def commands(state: CellState) -> Sequence[Command] | None:
            nonlocal wanted
            found = decide(state.security)
            wanted = bool(found)
            return found or None

        try:
            refused = await self._node.append(commands)
        except Unavailable as error:
            raise KafkaError(ErrorCode.request_timed_out.value, error.message) from error
        if wanted and refused is not None:
            raise KafkaError(ErrorCode.invalid_request.value, refused)
