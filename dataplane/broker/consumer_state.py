"""What a coordinator keeps of consumer groups (KIP-848): their records in the offsets topic, and who was heard when.

Records: one of the group (epochs), one a member (all of it, its target included). Those of one change are one batch, so
that a coordinator's successor sees all of it or nothing; a change too large for that says so first (see `changes`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dataplane.broker.consumer_group import ConsumerGroup, ConsumerMember, Parts, Step
from dataplane.stream.encode import KeyValue

BATCH_RECORDS = 500
BATCH_BYTES = 512 << 10


@dataclass(slots=True)
class Live:
    """A group here: its durable state, and what a successor finds out anew."""

    state: ConsumerGroup
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One change at a time: the next is decided on what the last one made durable."""
    users: int = 0
    """Who holds the lock or waits for it."""
    putting_out: bool = False
    """Members that are late are being put out, or a group that nobody needs."""
    checked_ms: float = float("-inf")
    looked_ms: float = float("-inf")
    heard_ms: dict[str, float] = field(default_factory=dict)
    """When each member was heard last."""
    revoking_ms: dict[str, float] = field(default_factory=dict)
    """Since when each member is to give partitions back."""

    @property
    def exists(self) -> bool:
        """A group that nobody ever joined does not."""
        return self.state.epoch > 0


def changes(before: ConsumerGroup, after: ConsumerGroup | None) -> list[KeyValue]:
    """The records that make `after` (None: no group) of `before`; the group's own comes last."""
    if after is before:
        return []
    old, new = before.members, after.members if after is not None else {}
    records: list[KeyValue] = [(_key(before.id, i), None) for i in old if i not in new]
    records += [
        (_key(before.id, i), _dump_member(m)) for i, m in new.items() if old.get(i) is not m and old.get(i) != m
    ]
    if after is None:
        records.append((_key(before.id), None))
    elif records or _own(after) != _own(before):
        if sum(_size(r) for r in records) > BATCH_BYTES or len(records) >= BATCH_RECORDS:
            # More than one batch: whoever finds only some of them deals partitions out anew.
            records.insert(0, (_key(after.id), _dump({**_own(after), "target_epoch": before.target_epoch})))
        records.append((_key(after.id), _dump(_own(after))))
    return records


def everything(group: ConsumerGroup) -> list[KeyValue]:
    """The records of a group, for a snapshot."""
    return changes(ConsumerGroup(group.id), group)


def fold(groups: dict[str, ConsumerGroup], key: Mapping[str, str], value: bytes | None) -> None:
    """Take in one record."""
    name = key["group"]
    group = groups.get(name, ConsumerGroup(name))
    member_id = key.get("member")
    loaded = json.loads(value) if value is not None else None
    if member_id is None:
        if loaded is None:
            groups.pop(name, None)
            return
        group = replace(group, **loaded)
    else:
        members = {i: m for i, m in group.members.items() if i != member_id}
        if loaded is not None:
            members[member_id] = _load_member(member_id, loaded)
        group = replace(group, members=members)
    groups[name] = group


def is_key(key: object) -> bool:
    """Whether a record's key, parsed, is one of these."""
    return isinstance(key, dict) and "group" in key


def batches(records: Iterable[KeyValue]) -> Iterable[list[KeyValue]]:
    """The same records in lists that fit into one batch each."""
    one: list[KeyValue] = []
    size = 0
    for record in records:
        if one and (len(one) >= BATCH_RECORDS or size + _size(record) > BATCH_BYTES):
            yield one
            one, size = [], 0
        one.append(record)
        size += _size(record)
    if one:
        yield one


def _size(record: KeyValue) -> int:
    return len(record[0]) + len(record[1] or b"")


def _key(group: str, member: str | None = None) -> bytes:
    return _dump({"group": group} if member is None else {"group": group, "member": member})


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _own(group: ConsumerGroup) -> dict[str, Any]:
    return {name: getattr(group, name) for name in ("epoch", "target_epoch", "assignor", "topics_seen")}


PARTS = ("assigned", "revoking", "target")


def _dump_member(member: ConsumerMember) -> bytes:
    said = {f.name: getattr(member, f.name) for f in fields(member) if f.name not in ("id", *PARTS)}
    return _dump(said | {name: _dump_parts(getattr(member, name)) for name in PARTS})


def _load_member(member_id: str, said: dict[str, Any]) -> ConsumerMember:
    parts = {name: _load_parts(said[name]) for name in PARTS}
    return ConsumerMember(
        **{**said, **parts, "id": member_id, "topics": tuple(said["topics"]), "step": Step(said["step"])}
    )


def _dump_parts(parts: Parts) -> dict[str, list[int]]:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in sorted(parts):
        by_topic.setdefault(topic, []).append(partition)
    return by_topic


def _load_parts(by_topic: Mapping[str, list[int]]) -> Parts:
    return frozenset((topic, p) for topic, partitions in by_topic.items() for p in partitions)
