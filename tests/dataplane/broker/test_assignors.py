"""What the server-side assignors promise, over many drawn groups."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dataplane.broker.assignors import ASSIGNORS, Partition, Subscriber, preferred, range_, uniform

TOPICS = {"t1": ["a", "b"] * 3, "t2": ["", "b", "a"], "t3": ["a"]}


def drawn(rng: random.Random, *, alike: bool) -> dict[str, Subscriber]:
    everything = frozenset(TOPICS)
    members = {}
    for i in range(rng.randint(1, 6)):
        topics = everything if alike else frozenset(rng.sample(sorted(TOPICS), rng.randint(0, 3)))
        members[f"m{i}"] = Subscriber(topics, rng.choice(["", "a", "b"]))
    return members


def with_what_they_got(
    members: dict[str, Subscriber], given: dict[str, set[Partition]], rng: random.Random
) -> dict[str, Subscriber]:
    """Some leave, some come; the others keep what they have."""
    rest = {m: s for m, s in members.items() if rng.random() < 0.7}
    kept = {m: Subscriber(s.topics, s.rack, frozenset(given[m])) for m, s in rest.items()}
    return {**kept, **{f"new{i}": Subscriber(frozenset(TOPICS), "a") for i in range(rng.randint(0, 2))}}


@pytest.mark.parametrize("name", ASSIGNORS)
@pytest.mark.parametrize("alike", [True, False], ids=["alike", "unlike"])
def test_every_partition_that_somebody_reads_has_one_reader_that_subscribes(name: str, alike: bool) -> None:
    rng = random.Random(f"{name} {alike}")
    for _ in range(300):
        members = drawn(rng, alike=alike)
        for _ in range(3):
            given = ASSIGNORS[name](members, TOPICS)
            assert given.keys() == members.keys()
            readers = Counter(part for parts in given.values() for part in parts)
            wanted = {(t, p) for t, racks in TOPICS.items() for p in range(len(racks))}
            assert readers == {part: 1 for part in wanted if any(part[0] in m.topics for m in members.values())}
            assert all(part[0] in members[m].topics for m, parts in given.items() for part in parts)
            members = with_what_they_got(members, given, rng)


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "unlike"])
def test_uniform_is_even_among_those_that_can_trade(alike: bool) -> None:
    rng = random.Random(f"even {alike}")
    for _ in range(300):
        members = drawn(rng, alike=alike)
        for _ in range(3):
            given = uniform(members, TOPICS)
            for one, parts in given.items():
                for other in members:
                    if any(topic in members[other].topics for topic, _ in parts):
                        assert len(parts) - len(given[other]) < 2, f"{one} could give one to {other}"
            members = with_what_they_got(members, given, rng)


def test_uniform_moves_no_partition_that_it_need_not() -> None:
    members = {f"m{i}": Subscriber(frozenset({"t"})) for i in range(4)}
    topics = {"t": [""] * 12}
    given = uniform(members, topics)
    has = {m: Subscriber(frozenset({"t"}), "", frozenset(parts)) for m, parts in given.items()}
    assert uniform(has, topics) == given, "nothing has changed"
    grown = uniform({**has, "new": Subscriber(frozenset({"t"}))}, topics)
    assert sum(len(given[m] - grown[m]) for m in given) == len(grown["new"]) == 2
    [_, *rest] = has
    shrunk = uniform({m: has[m] for m in rest}, topics)
    assert all(given[m] <= shrunk[m] for m in rest)


def test_uniform_gives_partitions_to_members_in_their_owners_zone() -> None:
    topics = {"t": ["a", "b", "c"] * 4}
    members = {f"{rack}{i}": Subscriber(frozenset({"t"}), rack) for rack in "cab" for i in range(2)}
    given = uniform(members, topics)
    assert all(topics[t][p] == members[m].rack for m, parts in given.items() for t, p in parts)
    assert {len(parts) for parts in given.values()} == {2}, "evenness comes first"


def test_a_zone_without_members_is_read_from_elsewhere() -> None:
    given = uniform({"m": Subscriber(frozenset({"t"}), "a"), "n": Subscriber(frozenset({"t"}), "z")}, {"t": ["a"] * 4})
    assert sorted(map(len, given.values())) == [2, 2]


def test_range_gives_a_member_the_same_partitions_of_all_topics() -> None:
    members = {f"m{i}": Subscriber(frozenset({"t", "u"})) for i in range(3)}
    topics = {"t": [""] * 7, "u": [""] * 7}
    for _ in range(3):
        given = range_(members, topics)
        for parts in given.values():
            assert {p for t, p in parts if t == "t"} == {p for t, p in parts if t == "u"}
        members = {m: Subscriber(s.topics, "", frozenset(given[m])) for m, s in members.items()}
        members = dict(list(members.items())[1:]) | {"a-newcomer": Subscriber(frozenset({"t", "u"}))}


def test_most_members_decide_on_the_assignor() -> None:
    assert preferred([]) == preferred([None, None]) == preferred(["range", "uniform"]) == "uniform"
    assert preferred(["range", None, "range", "uniform"]) == "range"
