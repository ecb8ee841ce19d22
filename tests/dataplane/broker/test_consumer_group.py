"""What a consumer group of KIP-848 promises, whatever its members do: drawn histories, in which each member acts on
what it was answered and answers get lost. The judge believes the members alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
from kio.schema.errors import ErrorCode

from dataplane.broker import consumer_state
from dataplane.broker.consumer_group import (
    JOIN,
    LEAVE,
    LEAVE_FOR_A_WHILE,
    NOTHING,
    Beat,
    Beaten,
    ConsumerGroup,
    Parts,
    Step,
    Topic,
    heartbeat,
)
from dataplane.broker.engine import KafkaError


class Topics:
    """A catalog."""

    def __init__(self, **partitions: int) -> None:
        self.partitions = partitions

    def topic(self, name: str) -> Topic | None:
        count = self.partitions.get(name)
        return None if count is None else Topic(f"id-{name}", [""] * count)

    def matching(self, regex: str) -> Iterable[str]:
        if regex == "(":
            raise KafkaError(ErrorCode.invalid_regular_expression.value, "bad")
        return [name for name in self.partitions if name.startswith(regex)]

    def all(self, *names: str) -> Parts:
        return frozenset((f"id-{n}", p) for n in names for p in range(self.partitions[n]))


class Client:
    """A member as clients are: it takes what it is given at once, and gives back what it must at its next heartbeat."""

    def __init__(self, member: str, *topics: str, instance: str | None = None, regex: str | None = None) -> None:
        self.id, self.topics, self.instance, self.regex = member, topics, instance, regex
        self.epoch = JOIN
        self.reading: Parts = NOTHING
        self.told: Parts = NOTHING

    def beat(self) -> Beat:
        """A whole one: what clients send first, and after an answer was lost."""
        self.reading &= self.told
        return Beat(
            self.id,
            self.epoch,
            self.instance,
            rebalance_timeout_ms=60_000,
            topics=self.topics,
            regex=self.regex,
            owned=self.reading if self.epoch != JOIN else NOTHING,
        )

    def hear(self, beaten: Beaten) -> None:
        self.epoch = beaten.epoch
        if beaten.assignment is not None:
            self.told = beaten.assignment
            self.reading |= self.told


class World:
    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.group = ConsumerGroup("g")
        self.log: list[tuple[bytes, bytes | None]] = []

    def send(self, beat: Beat) -> Beaten:
        beaten = heartbeat(self.group, beat, self.topics, look=True)
        self.log += consumer_state.changes(self.group, beaten.group)
        self.group = beaten.group
        return beaten

    def talk(self, client: Client, *, lost: bool = False) -> None:
        try:
            beaten = self.send(client.beat())
        except KafkaError as error:
            fenced = ErrorCode.fenced_member_epoch, ErrorCode.unknown_member_id
            assert ErrorCode(error.code) in fenced
            client.epoch, client.reading, client.told = JOIN, NOTHING, NOTHING
            return
        if not lost:
            client.hear(beaten)

    def settle(self, *clients: Client) -> None:
        for _ in range(8):
            for client in clients:
                self.talk(client)
        assert self.group.state == "Stable"


def refused(world: World, beat: Beat) -> ErrorCode:
    before = world.group
    with pytest.raises(KafkaError) as error:
        world.send(beat)
    assert world.group is before
    return ErrorCode(error.value.code)


def loaded(world: World) -> ConsumerGroup:
    """What a successor reads."""
    groups: dict[str, ConsumerGroup] = {}
    for key, value in world.log:
        consumer_state.fold(groups, json.loads(key), value)
    return groups.get("g", ConsumerGroup("g"))


@pytest.mark.parametrize("seed", range(40))
def test_no_partition_is_read_by_two_members_and_in_the_end_each_by_one(seed: int) -> None:
    rng = random.Random(seed)
    world = World(Topics(t=5, u=3))
    clients: dict[str, Client] = {}
    for i in range(400):
        what = rng.random()
        if what < 0.05 and len(clients) < 6:
            clients[f"m{i}"] = Client(f"m{i}", *rng.choice([("t",), ("t", "u"), ("u",)]))
        elif what < 0.08 and clients:
            gone = clients.pop(rng.choice(sorted(clients)))
            if gone.id in world.group.members:
                world.send(Beat(gone.id, LEAVE))
        elif what < 0.10:
            world.topics.partitions["t"] += rng.randint(0, 1)
        elif what < 0.11:
            world.group = loaded(world)  # another coordinator
        elif clients:
            world.talk(clients[rng.choice(sorted(clients))], lost=rng.random() < 0.2)
        read = [part for client in clients.values() for part in client.reading]
        assert len(read) == len(set(read)), f"after {i}"
    if not clients:
        clients["last"] = Client("last", "t", "u")
    world.settle(*clients.values())
    wanted = world.topics.all(*{t for c in clients.values() for t in c.topics})
    assert sorted(part for c in clients.values() for part in c.reading) == sorted(wanted)
    assert loaded(world) == world.group


def test_a_heartbeat_with_nothing_new_changes_and_writes_nothing() -> None:
    world = World(Topics(t=4))
    one = Client("one", "t")
    world.settle(one)
    epoch, written = one.epoch, len(world.log)
    for _ in range(5):
        before = world.group
        beaten = world.send(Beat("one", epoch))
        assert beaten.assignment is None and beaten.group is before
    assert (len(world.log), world.group.epoch) == (written, epoch)


def test_a_member_keeps_reading_what_it_keeps_while_others_come() -> None:
    world = World(Topics(t=6))
    one, two = Client("one", "t"), Client("two", "t")
    world.settle(one)
    world.talk(two)
    assert two.reading == NOTHING, "nobody has given anything back yet"
    world.talk(one)  # told to give three back
    assert len(one.told) == 3 and world.group.members["one"].step is Step.UNREVOKED
    world.talk(two)
    assert two.reading == NOTHING
    assert world.group.members["one"].epoch < world.group.epoch, "the epoch rises when they are given back"
    world.settle(one, two)
    assert len(one.reading) == len(two.reading) == 3


def test_a_lost_answer_does_not_fence_who_sent_the_request() -> None:
    world = World(Topics(t=4))
    one, two = Client("one", "t"), Client("two", "t")
    world.settle(one)
    world.talk(two)
    world.talk(one)
    world.talk(one, lost=True)  # its epoch rose, and it does not know
    before = one.epoch
    world.talk(one)
    assert one.epoch == world.group.members["one"].epoch > before


def test_who_is_at_another_epoch_is_fenced() -> None:
    world = World(Topics(t=4))
    one = Client("one", "t")
    world.settle(one)
    assert refused(world, Beat("one", one.epoch + 1)) is ErrorCode.fenced_member_epoch
    assert refused(world, Beat("stranger", one.epoch)) is ErrorCode.unknown_member_id
    world.settle(one, Client("two", "t"))
    stale = Beat("one", 1, owned=world.topics.all("t"))
    assert refused(world, stale) is ErrorCode.fenced_member_epoch, "it has more than it may"


def test_a_static_member_that_is_back_in_time_gets_its_own_and_nobody_rebalances() -> None:
    world = World(Topics(t=4))
    one, two = Client("one", "t", instance="i"), Client("two", "t")
    world.settle(one, two)
    had, epoch = one.reading, world.group.epoch
    world.send(Beat("one", LEAVE_FOR_A_WHILE, "i"))
    world.talk(two)
    assert len(two.reading) == 2, "what it had waits for it"
    back = Client("one-again", "t", instance="i")
    world.talk(back)
    assert (back.reading, world.group.epoch) == (had, epoch)
    assert refused(world, Beat("one", epoch, "i")) is ErrorCode.fenced_instance_id
    assert refused(world, Beat("one", LEAVE, "i")) is ErrorCode.fenced_instance_id


def test_a_static_member_may_be_back_under_its_old_id() -> None:
    world = World(Topics(t=4))
    one = Client("one", "t", instance="i")
    world.settle(one)
    epoch = world.group.epoch
    world.send(Beat("one", LEAVE_FOR_A_WHILE, "i"))
    back = Client("one", "t", instance="i")
    world.talk(back)
    assert (back.epoch, back.reading, world.group.state) == (epoch, world.topics.all("t"), "Stable")


def test_who_joins_again_says_all_that_it_subscribes_to() -> None:
    world = World(Topics(t=2, u=2))
    world.settle(Client("one", regex="t"))
    again = Client("one", "u")
    world.settle(again)
    assert again.reading == world.topics.all("u")


def test_an_instance_id_in_use_is_not_taken_over() -> None:
    world = World(Topics(t=4))
    one = Client("one", "t", instance="i")
    world.settle(one)
    assert refused(world, Client("two", "t", instance="i").beat()) is ErrorCode.unreleased_instance_id


def test_topics_that_come_grow_and_go_are_dealt_out_anew() -> None:
    world = World(Topics(t=2))
    one, two = Client("one", "t", "later"), Client("two", regex="la")
    world.settle(one, two)
    world.topics.partitions["later"] = 2
    world.settle(one, two)
    assert one.reading | two.reading == world.topics.all("t", "later") and len(one.reading) == len(two.reading)
    world.topics.partitions["later"] = 4
    world.settle(one, two)
    assert one.reading | two.reading == world.topics.all("t", "later")
    del world.topics.partitions["later"]
    world.settle(one, two)
    assert (one.reading, two.reading) == (world.topics.all("t"), NOTHING)


def test_a_bad_heartbeat_is_refused_and_changes_nothing() -> None:
    world = World(Topics(t=2))
    world.settle(Client("one", "t"))
    assert refused(world, Client("two", regex="(").beat()) is ErrorCode.invalid_regular_expression
    assert refused(world, Beat("two", JOIN, topics=("t",), assignor="best")) is ErrorCode.unsupported_assignor
    assert refused(world, Beat("two", LEAVE)) is ErrorCode.unknown_member_id


def test_who_commits_must_be_a_member_at_its_epoch() -> None:
    world = World(Topics(t=2))
    one = Client("one", "t")
    world.settle(one)
    assert world.group.check("one", one.epoch) is None
    assert world.group.check("one", one.epoch - 1) is ErrorCode.stale_member_epoch
    assert world.group.check("two", one.epoch) is ErrorCode.unknown_member_id


def test_a_change_in_several_batches_that_is_cut_is_dealt_out_anew() -> None:
    world = World(Topics(t=60_000))
    clients = [Client(f"m{i}", "t") for i in range(4)]
    world.settle(*clients)
    before = world.group
    after = heartbeat(before, Client("new", "t").beat(), world.topics, look=True).group
    batches = list(consumer_state.batches(consumer_state.changes(before, after)))
    assert len(batches) > 1
    assert all(sum(len(k) + len(v or b"") for k, v in batch) <= 1 << 20 for batch in batches)
    world.log += batches[0]
    world.group = loaded(world)
    assert world.group.epoch == after.epoch and world.group.state == "Assigning"
    world.settle(*clients, Client("new", "t"))
