"""Who reads what: the server-side assignors of consumer groups (KIP-848). Pure: the same values give the same answer.

Both keep what members have wherever balance allows it, for a partition that changes hands costs a pause. Racks
(KIP-881) decide among equals only: a partition's owner may be moved at any time, and nobody is to rebalance for that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Partition = tuple[str, int]
"""Topic id and partition."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A member as an assignor sees it: the ids of the topics that it subscribes to, its zone, what it has now."""

    topics: frozenset[str]
    rack: str = ""
    has: frozenset[Partition] = frozenset()


Racks = Mapping[str, Sequence[str]]
"""Topic id → the zone of each partition's owner, "" where there is none."""
Assignor = Callable[[Mapping[str, Subscriber], Racks], dict[str, set[Partition]]]


def uniform(members: Mapping[str, Subscriber], topics: Racks) -> dict[str, set[Partition]]:
    """As even as subscriptions allow: of two members that read the same topics, none has two more than the other."""
    given: dict[str, set[Partition]] = {member: set() for member in members}
    if not members:
        return given
    free = {(t, p) for t, racks in topics.items() for p in range(len(racks))}
    if len({m.topics for m in members.values()}) == 1:
        [first, *_] = members.values()
        _spread_alike(members, topics, {part for part in free if part[0] in first.topics}, given)
    else:
        _spread_unlike(members, topics, free, given)
    return given


def _spread_alike(
    members: Mapping[str, Subscriber], topics: Racks, free: set[Partition], given: dict[str, set[Partition]]
) -> None:
    """All subscribe to the same: everybody gets the same number, or one more."""
    least, more = divmod(len(free), len(members))
    # Who has most now gets the odd ones: fewest partitions move.
    for member in sorted(members, key=lambda m: (-len(members[m].has & free), m)):
        here = members[member].rack
        has = sorted(members[member].has & free, key=lambda part: (not _near(topics, part, here), part))
        given[member].update(has[: least + (1 if more else 0)])
        more -= len(given[member]) > least
        free.difference_update(given[member])

    def room(member: str) -> bool:
        return len(given[member]) < least or (len(given[member]) == least and more > 0)

    heaps: dict[str, list[tuple[int, str]]] = {}
    for member in members:
        heaps.setdefault(members[member].rack, []).append((len(given[member]), member))
    everybody = [entry for heap in heaps.values() for entry in heap]
    for heap in (everybody, *heaps.values()):
        heapq.heapify(heap)

    def give(part: Partition, heap: list[tuple[int, str]]) -> bool:
        nonlocal more
        while heap:
            size, member = heapq.heappop(heap)
            if size != len(given[member]):
                heapq.heappush(heap, (len(given[member]), member))  # it got some through another heap
            elif room(member):
                more -= size == least
                given[member].add(part)
                heapq.heappush(heap, (size + 1, member))
                return True
        return False

    far = [
        part for part in sorted(free) if not _rack(topics, part) or not give(part, heaps.get(_rack(topics, part), []))
    ]
    for part in far:
        give(part, everybody)


def _spread_unlike(
    members: Mapping[str, Subscriber], topics: Racks, free: set[Partition], given: dict[str, set[Partition]]
) -> None:
    """Subscriptions differ: all keep what they have; the rest goes to whoever has least; then the fullest give."""
    readers = {topic: sorted(m for m in members if topic in members[m].topics) for topic in topics}
    for member in sorted(members):
        mine = {part for part in members[member].has & free if part[0] in members[member].topics}
        given[member] |= mine
        free -= mine

    def load(member: str, part: Partition) -> tuple[int, bool, str]:
        return len(given[member]), not _near(topics, part, members[member].rack), member

    for part in sorted(free, key=lambda part: (len(readers[part[0]]), part)):
        if readers[part[0]]:
            given[min(readers[part[0]], key=lambda member: load(member, part))].add(part)
    moved = True
    while moved:  # ends: each move makes the sum of the squared loads smaller
        moved = False
        for topic, among in readers.items():
            owning = [m for m in among if any(t == topic for t, _ in given[m])]
            if not owning:
                continue
            fullest = max(owning, key=lambda m: (len(given[m]), m))
            emptiest = min(among, key=lambda m: (len(given[m]), m))
            if len(given[fullest]) - len(given[emptiest]) >= 2:
                part = max(part for part in given[fullest] if part[0] == topic)
                given[fullest].remove(part)
                given[emptiest].add(part)
                moved = True


def range_(members: Mapping[str, Subscriber], topics: Racks) -> dict[str, set[Partition]]:
    """Of each topic a run of neighbours for each member, in the same order of members for all topics, so that who reads
    partition 3 of one reads it of the others too. Racks do not count: that would break the runs.
    """
    given: dict[str, set[Partition]] = {member: set() for member in members}
    # In the order of what they have, and newcomers last: most keep most.
    order = sorted(members, key=lambda m: (min((p for _, p in members[m].has), default=1 << 31), m))
    for topic, racks in topics.items():
        among = [m for m in order if topic in members[m].topics]
        if not among:
            continue
        least, more = divmod(len(racks), len(among))
        at = 0
        for i, member in enumerate(among):
            size = least + (i < more)
            given[member].update((topic, p) for p in range(at, at + size))
            at += size
    return given


ASSIGNORS: Mapping[str, Assignor] = {"uniform": uniform, "range": range_}
"""By the name that a client asks for. The first is the default."""
DEFAULT_ASSIGNOR = "uniform"


def preferred(asked: Iterable[str | None]) -> str:
    """The assignor that most members ask for."""
    votes: dict[str, int] = {}
    for name in asked:
        if name is not None:
            votes[name] = votes.get(name, 0) + 1
    return max(votes, key=lambda name: (votes[name], name == DEFAULT_ASSIGNOR, name)) if votes else DEFAULT_ASSIGNOR


def _rack(topics: Racks, part: Partition) -> str:
    return topics[part[0]][part[1]]


def _near(topics: Racks, part: Partition, rack: str) -> bool:
    return bool(rack) and _rack(topics, part) == rack
