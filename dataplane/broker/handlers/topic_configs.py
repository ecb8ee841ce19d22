"""The configs that a topic can have, and what they may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.handlers.produce import BATCH_BYTES_MAX
from dataplane.stream.cleaning import COMPACT, DELETE, policies

LONGEST_MS = (1 << 63) - 1
SET, UNSET, APPEND, SUBTRACT = 0, 1, 2, 3
"""Of IncrementalAlterConfigs (Kafka's AlterConfigOp.OpType)."""


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """`what`: what a value is, in words; None: it is always the default, for nothing else would be honoured."""

    default: str
    what: str | None = None
    allows: Callable[[str], bool] = lambda value: False
    is_list: bool = False


def _whole(least: int) -> Callable[[str], bool]:
    return lambda value: value.removeprefix("-").isdecimal() and value.isascii() and least <= int(value) <= LONGEST_MS


def _ratio(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _policy(value: str) -> bool:
    return policies({"cleanup.policy": value}) <= {COMPACT, DELETE}


_FROM_NOTHING = "a whole number from 0 on"
_BOUND = "a whole number from -1 on"

TOPIC_CONFIGS: Mapping[str, TopicConfig] = {
    "cleanup.policy": TopicConfig("delete", "delete, compact, or both", _policy, is_list=True),
    "compression.type": TopicConfig("producer"),
    "delete.retention.ms": TopicConfig("86400000", _FROM_NOTHING, _whole(0)),
    "max.message.bytes": TopicConfig(str(BATCH_BYTES_MAX)),
    "message.timestamp.type": TopicConfig("CreateTime"),
    "min.cleanable.dirty.ratio": TopicConfig("0.5", "a number from 0 to 1", _ratio),
    "min.compaction.lag.ms": TopicConfig("0", _FROM_NOTHING, _whole(0)),
    "min.insync.replicas": TopicConfig("1"),
    "retention.bytes": TopicConfig("-1", _BOUND, _whole(-1)),
    "retention.ms": TopicConfig("-1", _BOUND, _whole(-1)),
}
TOPIC_DEFAULTS: Mapping[str, str] = {name: config.default for name, config in TOPIC_CONFIGS.items()}
CHANGEABLE = frozenset(name for name, config in TOPIC_CONFIGS.items() if config.what is not None)


def check_config(name: str, value: str) -> None:
    """
    Raises:
        KafkaError: INVALID_CONFIG.
    """
    config = TOPIC_CONFIGS.get(name)
    if config is None:
        raise KafkaError(ErrorCode.invalid_config.value, f"config {name} is not honoured here")
    if config.what is None:
        if value != config.default:
            raise KafkaError(ErrorCode.invalid_config.value, f"config {name} is always {config.default} here")
    elif not config.allows(value):
        raise KafkaError(ErrorCode.invalid_config.value, f"config {name} is {config.what}, not {value!r}")


def changed(configs: Mapping[str, str], name: str, operation: int, value: str | None) -> dict[str, str]:
    """A topic's configs after one alteration.

    Raises:
        KafkaError: INVALID_CONFIG.
    """
    after = dict(configs)
    if operation == UNSET:
        after.pop(name, None)
        return after
    if operation == SET:
        after[name] = value or ""
    elif operation in (APPEND, SUBTRACT) and name in TOPIC_CONFIGS and TOPIC_CONFIGS[name].is_list:
        after[name] = ",".join(_listed(configs.get(name, TOPIC_CONFIGS[name].default), operation, value or ""))
    else:
        raise KafkaError(ErrorCode.invalid_config.value, f"config {name} is no list")
    check_config(name, after[name])
    return after


def _listed(before: str, operation: int, value: str) -> Sequence[str]:
    present, given = before.split(","), value.split(",")
    if operation == SUBTRACT:
        return [item for item in present if item not in given]
    return [*present, *(item for item in given if item not in present)]
