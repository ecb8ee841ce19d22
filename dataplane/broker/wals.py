"""A broker's own WAL, and those of others that it can take over, from what its assignment names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dataplane.contract.assignment import BrokerSpec, WalMode, WalSpec
from dataplane.ledger.commands import NodeEpoch, membership_changed, side_returned
from dataplane.ledger.entry import Command
from dataplane.ledger.state import Broker, CellState
from dataplane.wal.base import MembershipChange, Wal, WalIdentity, WalReader
from dataplane.wal.modes import SIDES, WalPlaces, open_readers, open_wal
from providers.base.clock import Clock
from providers.base.errors import Invalid, NotFound, Unavailable
from providers.base.objects import ObjectStore
from providers.base.volumes import BlockDevice, BlockVolumes

log = logging.getLogger(__name__)


class Logs(Protocol):
    """How a node opens WALs: its own, and those of the dead."""

    def describe(self) -> Mapping[str, Any]:
        """The WAL as `broker-joined` states it: mode, sides, volume, volume_zones, express."""
        ...

    async def open(self, me: NodeEpoch, change: MembershipChange, on_dead: Callable[[Exception], None]) -> Wal:
        """This epoch's WAL.

        Raises:
            Fenced, Unavailable: it cannot be opened; the node stops.
        """
        ...

    async def readers(self, victim: Broker, me: NodeEpoch) -> Mapping[str, WalReader]:
        """Sides of a fenced epoch's WAL that can be reached from this zone, by name."""
        ...


class AssignedLogs:
    """`Logs` of an assignment. `express`: opened buckets by the name that the assignment gives them."""

    def __init__(
        self,
        cluster: str,
        broker: BrokerSpec,
        *,
        bucket: ObjectStore,
        volumes: BlockVolumes | None,
        express: Mapping[str, ObjectStore],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._broker = broker
        self._bucket = bucket
        self._volumes = volumes
        self._express = express
        self._clock = clock

    def describe(self) -> Mapping[str, Any]:
        wal = self._broker.wal
        return {
            "mode": wal.mode.value,
            "sides": list(SIDES[wal.mode]),
            "volume": wal.volume,
            "volume_zones": list(wal.volume_zones),
            "express": wal.express,
        }

    async def open(self, me: NodeEpoch, change: MembershipChange, on_dead: Callable[[Exception], None]) -> Wal:
        wal = self._broker.wal
        return await open_wal(
            wal,
            WalIdentity(self._cluster, me.node, me.epoch),
            await self._places("volume" in SIDES[wal.mode]),
            clock=self._clock,
            change=change,
            on_dead=on_dead,
            again=lambda side: self._places(side == "volume"),
        )

    async def _places(self, with_volume: bool) -> WalPlaces:
        """Raises Unavailable or NotFound when the volume cannot be opened now."""
        wal, device = self._broker.wal, None
        if with_volume:
            if self._volumes is None or wal.volume is None:
                raise Invalid(f"broker {self._broker.name} has no volume for its WAL mode {wal.mode.value}")
            device = await self._volumes.open(wal.volume, self._broker.zone)
        return WalPlaces(device, self._express.get(wal.express or ""), self._bucket)

    async def readers(self, victim: Broker, me: NodeEpoch) -> Mapping[str, WalReader]:
        identity = WalIdentity(self._cluster, victim.node, victim.epoch)
        sides = victim.wal.sides
        places = WalPlaces(
            await self._device(victim) if "volume" in sides else None,
            self._express.get(victim.wal.express or "") if "express" in sides else None,
            self._bucket if "object" in sides else None,
        )
        return open_readers(
            WalSpec(WalMode(victim.wal.mode)),
            identity,
            places,
            own_key=identity.recovery_key(me.node, me.epoch),
            floor=victim.wal.floor,
            instances=victim.wal.instances,
            clock=self._clock,
        )

    async def _device(self, victim: Broker) -> BlockDevice | None:
        if self._volumes is None or victim.wal.volume is None or self._broker.zone not in victim.wal.volume_zones:
            return None  # another side, or another survivor, has to do
        try:
            return await self._volumes.open(victim.wal.volume, self._broker.zone)
        except (NotFound, Unavailable) as error:
            log.warning("volume-unreachable", extra={"volume": victim.wal.volume, "error": str(error)})
            return None


def change_of(
    state: CellState, me: NodeEpoch, sides: Sequence[str], start: int, instance: int | None
) -> list[Command] | None:
    """What to append so that the membership of `me` becomes `sides` (`MembershipChange`); None when it is that."""
    if stands(state, me, sides, instance):
        return None  # an earlier attempt, whose answer was lost, was the one
    if instance is None:
        return [membership_changed(me, sides, start)]
    broker = state.brokers.get(me.node)
    back = set(sides) - set(broker.wal.sides if broker is not None else ())
    return [side_returned(me, side, instance, start) for side in sorted(back)]


def stands(state: CellState, me: NodeEpoch, sides: Sequence[str], instance: int | None) -> bool:
    """Whether the membership of `me`, who is live, is `sides`, the returned one among them as `instance`."""
    if not state.is_live(me):
        return False
    wal = state.brokers[me.node].wal
    return set(wal.sides) == set(sides) and (instance is None or instance in wal.instances.values())
