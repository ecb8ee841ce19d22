"""What an agent writes for a broker process to read at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.contract.assignment import CONTRACT_VERSION, BrokerSettings, BrokerSpec, SparesWanted
from dataplane.contract.security import SecuritySpec
from providers.base.registry import StoreAddress, VolumesAddress


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """The broker's part of an assignment, with its port picked, and where it says that it serves."""

    cell: str
    cluster: str
    bucket: StoreAddress
    broker: BrokerSpec
    settings: BrokerSettings
    ready_file: str
    """Written when the broker serves: JSON with pid, kafka_port, peer_port, node_id, epoch and `metrics`, the address
    where it serves them, or null; and again, whenever they change, with `slow`, why the cell's controller calls it
    slow, and `spares`, that one's newest word of how many spare brokers shall run: [term, number, count]."""
    volumes: VolumesAddress | None = None
    express: dict[str, StoreAddress] = field(default_factory=dict)
    security: SecuritySpec = field(default_factory=SecuritySpec)
    spares: SparesWanted = field(default_factory=SparesWanted)
    """The newest word that the agent knows."""
    version: int = CONTRACT_VERSION
