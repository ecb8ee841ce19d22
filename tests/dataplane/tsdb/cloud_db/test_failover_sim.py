"""Promises of a region's fail-over under seeded faults: of acked points none is lost and none is there twice, whatever
happens to owners, answers and connections; what was refused never appears; what was shown stays.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from dataplane.tsdb.engine import Rows
from providers.base.errors import Fenced, Full, OutcomeUnknown, Unavailable
from tests.dataplane.tsdb.cloud_db.world import APPENDS, COLUMNS, MERGES, ROUGH, Member, Region, rows, write
from tests.sim.virtualtime import run

WRITERS = 3
KEYS = 5


class Judge:
    """What clients were told, and what they were shown."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.acked: set[int] = set()
        self.unknown: set[int] = set()
        self.refused: set[int] = set()
        self.shown: set[int] = set()
        self.epoch = 0
        self.looks = 0
        self.last: dict[int, int] = {}
        """Of each writer's keys, the greatest number whose write was acked."""

    def look(self, member: Member) -> None:
        """What the newest owner shows now."""
        tenure = member.node.tenure
        if not member.owns or tenure is None or tenure.epoch < self.epoch:
            return
        if tenure.epoch != member.node.manifest.state.epoch:
            return
        newest = max((m.node.manifest.state.epoch for m in self.region.members.values()), default=0)
        if tenure.epoch < newest:
            return  # deposed, and about to learn it
        self.epoch = tenure.epoch
        self.looks += 1
        moment = member.database.moment()
        self.check(self.region.numbers(moment["appends"]))
        self.check_latest({key: n for (_, key), n in self.region.latest(moment["merges"]).items()})

    def check(self, found: Counter[int]) -> None:
        doubled = [n for n, count in found.items() if count > 1]
        assert not doubled, f"twice: {doubled[:5]}"
        lost = self.acked - set(found)
        assert not lost, f"acked and lost: {sorted(lost)[:5]}"
        withdrawn = self.shown - set(found)
        assert not withdrawn, f"shown and withdrawn: {sorted(withdrawn)[:5]}"
        made_up = set(found) & self.refused
        assert not made_up, f"refused and there: {sorted(made_up)[:5]}"
        self.shown |= set(found)

    def check_latest(self, found: dict[int, int]) -> None:
        for key, n in self.last.items():
            assert found.get(key, -1) >= n, f"key {key} shows {found.get(key)}, and {n} was acked"


async def writer(region: Region, judge: Judge, which: int, stop: asyncio.Event) -> None:
    """One client, one number after the other, to whichever node says that it owns the database."""
    n = which
    while not stop.is_set():
        await region.clock.sleep_ms(400)
        owners = [m for m in region.members.values() if m.database.owns and not m.dead]
        if not owners:
            continue
        member = max(owners, key=lambda m: m.node.tenure.epoch if m.node.tenure else 0)
        n += WRITERS
        key = which * KEYS + n % KEYS
        both = [Rows("appends", rows(n)), Rows("merges", rows(n, at=key))]
        task = asyncio.ensure_future(member.database.write(both))
        done, _ = await asyncio.wait({task}, timeout=60)
        if not done or member.dead:
            judge.unknown.add(n)  # its node is gone, and with it the answer
            task.cancel()
            continue
        try:
            task.result()
            judge.acked.add(n)
            judge.last[key] = max(judge.last.get(key, -1), n)
        except OutcomeUnknown:
            judge.unknown.add(n)
        except (Fenced, Full, Unavailable):
            judge.refused.add(n)


async def looker(region: Region, judge: Judge, stop: asyncio.Event) -> None:
    while not stop.is_set():
        for member in list(region.members.values()):
            judge.look(member)
        await region.clock.sleep_ms(700)


async def trouble(region: Region, chance: random.Random, rounds: int) -> None:
    """Owners are killed, frozen and cut off, at any moment."""
    for _ in range(rounds):
        await region.clock.sleep_ms(chance.uniform(500, 9_000))
        alive = [m for m in region.members.values() if not m.dead and not m.frozen]
        owners = [m for m in alive if m.database.owns] or alive
        victim = chance.choice(owners if chance.random() < 0.8 else alive) if alive else None
        if victim is None:
            continue
        what = chance.choice(["kill", "freeze", "bucket", "peers", "hand over"])
        region.world.note(f"trouble: {what} {victim.name}")
        if what == "kill":
            region.kill(victim)
            await region.clock.sleep_ms(chance.uniform(0, 8_000))
            await region.start(victim.name)
        elif what == "freeze":
            region.freeze(victim)
            await region.clock.sleep_ms(chance.uniform(0, 15_000))
            region.thaw(victim)
        elif what == "bucket":
            victim.process.cut_from.add("bucket")
            await region.clock.sleep_ms(chance.uniform(0, 15_000))
            victim.process.cut_from.discard("bucket")
        elif what == "peers":
            region.cut |= {frozenset((victim.name, other)) for other in region.names if other != victim.name}
            await region.clock.sleep_ms(chance.uniform(0, 15_000))
            region.cut.clear()
        else:
            victim.dead = True
            await victim.node.close()
            await region.start(victim.name)


async def one_life_of_a_region(seed: int, rounds: int = 4) -> Judge:
    region = Region(seed)
    await region.begin()
    owner = await region.owner()
    await owner.database.create_table("appends", COLUMNS, APPENDS)
    await owner.database.create_table("merges", COLUMNS, MERGES)
    region.bucket.faults = ROUGH
    judge, stop = Judge(region), asyncio.Event()
    clients = [asyncio.ensure_future(writer(region, judge, which, stop)) for which in range(WRITERS)]
    clients.append(asyncio.ensure_future(looker(region, judge, stop)))
    work = asyncio.gather(*clients)
    try:
        troubled = asyncio.ensure_future(trouble(region, random.Random(seed), rounds))
        await asyncio.wait({troubled, work}, return_when=asyncio.FIRST_COMPLETED)
        if not troubled.done():
            await work  # a checker has failed
        await troubled
        stop.set()
        await work
        region.bucket.faults = type(ROUGH)()
        await region.world.settle()
        owner = await region.owner()
        judge.look(owner)
        await owner.database.flush()
        assert owner.node.tenure is not None and owner.node.tenure.memory_bytes == 0
        state = (await region.truth()).state
        assert list(state.logs) == [state.epoch], "what is recovered is forgotten"
        judge.look(owner)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}; {region.saying()}; last: {region.world.trace[-5:]}") from error
    return judge


@pytest.mark.parametrize("seed", range(3))
def test_of_acked_points_none_is_lost_and_none_is_there_twice(seed: int) -> None:
    judge = run(one_life_of_a_region(seed))
    assert len(judge.acked) > 30 and judge.looks > 10, (len(judge.acked), judge.looks)


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = run(one_life_of_a_region(3, rounds=1)), run(one_life_of_a_region(3, rounds=1))
    assert (first.acked, first.unknown, first.refused) == (second.acked, second.unknown, second.refused)


def test_a_thawed_owner_harms_nobody_and_sends_its_clients_on() -> None:
    async def main() -> None:
        region = Region()
        await region.begin()
        old = await region.owner()
        await old.database.create_table("appends", COLUMNS, APPENDS)
        await write(old, "appends", rows(1))
        late = asyncio.ensure_future(write(old, "appends", rows(2)))
        region.freeze(old)
        await region.clock.sleep_ms(10_000)
        new = await region.owner()
        assert new.name != old.name
        assert region.numbers(new.database.moment()["appends"])[1] == 1
        await write(new, "appends", rows(3))
        region.thaw(old)
        with pytest.raises((OutcomeUnknown, Fenced)):
            await late
        await region.clock.sleep_ms(3_000)
        with pytest.raises(Fenced) as caught:
            await write(old, "appends", rows(4))
        assert caught.value.fields["owner"] == new.name
        found = region.numbers(new.database.moment()["appends"])
        assert found[1] == found[3] == 1 and found[4] == 0 and max(found.values()) == 1

    run(main())


def test_a_handed_over_database_is_taken_at_once_and_needs_no_recovery() -> None:
    async def main() -> None:
        region = Region(names=("a", "b"))
        await region.begin()
        old = await region.owner()
        await old.database.create_table("appends", COLUMNS, APPENDS)
        await write(old, "appends", rows(1, 50))
        began = region.clock.monotonic_ms()
        old.dead = True
        await old.node.close()
        state = (await region.truth()).state
        assert (state.owner, state.logs) == ("", {})
        new = await region.owner()
        assert region.clock.monotonic_ms() - began < region.settings.lease_ms
        assert new.name != old.name
        assert sum(region.numbers(new.database.moment()["appends"]).values()) == 50

    run(main())


def test_an_owner_that_a_peer_hears_is_left_alone() -> None:
    async def main() -> None:
        region = Region()
        await region.begin()
        owner = await region.owner()
        deaf = next(name for name in region.names if name != owner.name)
        region.cut = {frozenset((deaf, owner.name))}
        await region.clock.sleep_ms(60_000)
        assert (await region.truth()).state.epoch == owner.node.manifest.state.epoch == 1
        assert "is heard by" in region.members[deaf].node.said

    run(main())


def test_two_nodes_that_do_not_hear_each_other_take_turns_ever_more_seldom() -> None:
    async def main() -> None:
        region = Region(names=("a", "b"))
        await region.begin()
        await region.owner()
        region.cut = {frozenset(("a", "b"))}
        await region.clock.sleep_ms(60_000)
        first = (await region.truth()).state.epoch
        await region.clock.sleep_ms(240_000)
        later = (await region.truth()).state.epoch
        assert 2 <= first <= 7 and later - first <= 6, (first, later)

    run(main())
