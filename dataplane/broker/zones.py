"""Which broker reads a partition for the consumers of a zone (KIP-392). Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dataplane.broker.engine import BrokerView, PartitionView


class ZoneReaders:
    """The live brokers, by zone."""

    def __init__(self, brokers: Iterable[BrokerView]) -> None:
        zones: dict[str, list[int]] = {}
        self._zone_of: dict[int, str] = {}
        for broker in brokers:
            if broker.rack:
                zones.setdefault(broker.rack, []).append(broker.node_id)
                self._zone_of[broker.node_id] = broker.rack
        self._zones: Mapping[str, Sequence[int]] = {zone: sorted(nodes) for zone, nodes in sorted(zones.items())}

    def zone_of(self, node: int | None) -> str:
        """The zone of a live broker; empty where it has none, or is not live."""
        return self._zone_of.get(node, "") if node is not None else ""

    def reader(self, zone: str, stream: int) -> int | None:
        """The broker of that zone which reads the stream: always the same while the zone's brokers are, so that all
        consumers of a zone share its cache. None: the zone has no broker."""
        nodes = self._zones.get(zone, ())
        return nodes[stream % len(nodes)] if nodes else None

    def replicas(self, part: PartitionView) -> tuple[int, ...]:
        """Who can be asked to read: the leader, and in each other zone one broker. Empty while nobody leads."""
        if part.leader is None:
            return ()
        own = self.zone_of(part.leader)
        others = (nodes[part.stream % len(nodes)] for zone, nodes in self._zones.items() if zone != own)
        return part.leader, *others
