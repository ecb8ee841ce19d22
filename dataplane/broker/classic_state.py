"""Records of classic groups in the offsets topic: a stable generation, with its members and what they were assigned, so
that another coordinator goes on with it and nobody rebalances.

One record of the group and one a member, each with the generation that it belongs to. A generation of which not all
records are there never became one: its group is loaded without members, and they join again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from dataplane.broker.group import Group, GroupState, Member
from dataplane.stream.encode import KeyValue

Records = dict[bytes, bytes]


def dump(group: Group) -> Records:
    """A group as it is now; nothing, when it has no members."""
    if not group.members:
        return {}
    own = {
        "generation": group.generation,
        "protocol_type": group.protocol_type,
        "protocol": group.protocol,
        "leader": group.leader,
        "members": len(group.members),
    }
    records = {_key(group.id, m.id): _dump(_dump_member(m, group.generation)) for m in group.members.values()}
    return {**records, _key(group.id): _dump(own)}


def changes(kept: Records, now: Records) -> list[KeyValue]:
    """The records that make `now` of `kept`."""
    gone: list[KeyValue] = [(key, None) for key in kept if key not in now]
    return gone + [(key, value) for key, value in now.items() if kept.get(key) != value]


def unknown(*records: Records) -> Records:
    """What the log may have, after a failed write: whatever comes next writes all of it anew."""
    return dict.fromkeys(set().union(*records), b"")


def is_key(key: object) -> bool:
    """Whether a record's key, parsed, is one of these."""
    return isinstance(key, dict) and "classic" in key


def fold(groups: dict[str, Group], key: bytes, value: bytes | None) -> None:
    """Take in one record."""
    group_id = json.loads(key)["classic"]
    group = groups.setdefault(group_id, Group(group_id))
    if value is not None:
        group.kept[key] = value
        return
    group.kept.pop(key, None)
    if not group.kept and not group.offsets:
        del groups[group_id]


def begin(group: Group, now_ms: float) -> None:
    """Go on with what was kept. Every member has a whole session from now on to be heard."""
    own = group.kept.get(_key(group.id))
    if own is None:
        return
    said = json.loads(own)
    group.generation = said["generation"]
    members = [_load_member(value, now_ms) for key, value in group.kept.items() if key != _key(group.id)]
    mine = {member.id: member for generation, member in members if generation == group.generation}
    if len(mine) == said["members"]:
        group.members = mine
        group.state = GroupState.STABLE
        group.protocol_type, group.protocol, group.leader = said["protocol_type"], said["protocol"], said["leader"]


def _key(group_id: str, member_id: str | None = None) -> bytes:
    return _dump({"classic": group_id} if member_id is None else {"classic": group_id, "member": member_id})


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


NAMES = ("id", "instance_id", "client_id", "host", "session_timeout_ms", "rebalance_timeout_ms")


def _dump_member(member: Member, generation: int) -> dict[str, Any]:
    return {name: getattr(member, name) for name in NAMES} | {
        "generation": generation,
        "protocols": [[name, _text(data)] for name, data in member.protocols],
        "assignment": _text(member.assignment),
    }


def _load_member(value: bytes, now_ms: float) -> tuple[int, Member]:
    said = json.loads(value)
    member = Member(
        **{name: said[name] for name in NAMES},
        protocols=[(name, base64.b64decode(data)) for name, data in said["protocols"]],
        seen_ms=now_ms,
        assignment=base64.b64decode(said["assignment"]),
    )
    return said["generation"], member


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
