"""What DescribeConfigs and CreateTopics show of configs: value, where it comes from, type, the names that it is also
known under, and what it does here. Values only; what may be changed is decided in `topic_configs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DYNAMIC_TOPIC_CONFIG, STATIC_BROKER_CONFIG, DEFAULT_CONFIG = 1, 4, 5
"""Config sources (Kafka's ConfigSource)."""
BOOLEAN, STRING, INT, LONG, DOUBLE, LIST = 1, 2, 3, 5, 6, 7
"""Config types (Kafka's ConfigType)."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What is known of a config beside its value. `broker_name`: what Kafka calls a topic config's broker-wide
    default; None: it has none."""

    kind: int
    documentation: str
    broker_name: str | None = None


TOPIC: Mapping[str, Explained] = {
    "cleanup.policy": Explained(LIST, "What becomes of old records.", "log.cleanup.policy"),
    "compression.type": Explained(
        STRING, "Batches are kept as producers compressed them; brokers never look inside.", "compression.type"
    ),
    "delete.retention.ms": Explained(
        LONG,
        "Milliseconds that a compacted topic keeps a tombstone once it was met.",
        "log.cleaner.delete.retention.ms",
    ),
    "max.message.bytes": Explained(INT, "Bytes of the largest record batch that is taken.", "message.max.bytes"),
    "message.timestamp.type": Explained(
        STRING, "Timestamps are those that producers gave.", "log.message.timestamp.type"
    ),
    "min.cleanable.dirty.ratio": Explained(
        DOUBLE,
        "Part of a compacted topic's partition that is not clean when a cleaning begins.",
        "log.cleaner.min.cleanable.ratio",
    ),
    "min.compaction.lag.ms": Explained(
        LONG, "Age in milliseconds from which records may be compacted.", "log.cleaner.min.compaction.lag.ms"
    ),
    "min.insync.replicas": Explained(
        INT, "One owner serves a partition; what is acked is durable in its WAL.", "min.insync.replicas"
    ),
    "retention.bytes": Explained(
        LONG, "Bytes of a partition that are kept at least; -1: no bound.", "log.retention.bytes"
    ),
    "retention.ms": Explained(
        LONG, "Age in milliseconds from which records may go; -1: they stay for ever.", "log.retention.ms"
    ),
}
_UNEXPLAINED = Explained(STRING, "")


@dataclass(frozen=True, slots=True)
class BrokerConfigEntry:
    """A broker's config: never changed from outside, so that each is read-only."""

    name: str
    value: str
    kind: int
    documentation: str
    given: bool = False
    """By the assignment, as against: by default."""


def topic_entries(
    configs: Mapping[str, str],
    defaults: Mapping[str, str],
    changeable: frozenset[str],
    wanted: Sequence[str] | None = None,
    *,
    synonyms: bool = False,
    documentation: bool = False,
) -> list[dict[str, Any]]:
    """A topic's configs as entries of a response; `wanted`: only these names. `configs` are those set for the topic."""
    return [
        {
            "name": name,
            "value": configs.get(name, default),
            "read_only": name not in changeable,
            "config_source": DYNAMIC_TOPIC_CONFIG if name in configs else DEFAULT_CONFIG,
            "is_sensitive": False,
            "synonyms": list(_synonyms(name, configs, default)) if synonyms else (),
            "config_type": TOPIC.get(name, _UNEXPLAINED).kind,
            "documentation": TOPIC.get(name, _UNEXPLAINED).documentation if documentation else None,
        }
        for name, default in defaults.items()
        if wanted is None or name in wanted
    ]


def _synonyms(name: str, configs: Mapping[str, str], default: str) -> Iterator[dict[str, Any]]:
    """Where the value would come from, the strongest first: so Kafka lists them."""
    if name in configs:
        yield {"name": name, "value": configs[name], "source": DYNAMIC_TOPIC_CONFIG}
    broker_name = TOPIC.get(name, _UNEXPLAINED).broker_name
    if broker_name is not None:
        yield {"name": broker_name, "value": default, "source": DEFAULT_CONFIG}


def broker_entries(
    entries: Sequence[BrokerConfigEntry],
    wanted: Sequence[str] | None = None,
    *,
    synonyms: bool = False,
    documentation: bool = False,
) -> list[dict[str, Any]]:
    """A broker's configs as entries of a response; `wanted`: only these names."""
    return [
        {
            "name": entry.name,
            "value": entry.value,
            "read_only": True,
            "config_source": _source(entry),
            "is_default": not entry.given,
            "is_sensitive": False,
            "synonyms": [{"name": entry.name, "value": entry.value, "source": _source(entry)}] if synonyms else (),
            "config_type": entry.kind,
            "documentation": entry.documentation if documentation else None,
        }
        for entry in entries
        if wanted is None or entry.name in wanted
    ]


def _source(entry: BrokerConfigEntry) -> int:
    return STATIC_BROKER_CONFIG if entry.given else DEFAULT_CONFIG
