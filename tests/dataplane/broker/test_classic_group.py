"""Static members of classic groups (KIP-345), and joins that are no rebalance: over the group itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker import classic_state
from dataplane.broker.group import INITIAL_DELAY_MS, Group, GroupState, Joined, Member
from tests.sim.virtualtime import run


def member(name: str, instance: str | None = None, metadata: bytes = b"sub") -> Member:
    return Member(name, instance, "client", "host", 10_000, 60_000, [("range", metadata)], 0.0)


def now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000


async def stable(*members: Member) -> Group:
    """A group with these, each assigned its own name."""
    group = Group("g", protocol_type="consumer")
    joining = [group.join(m, now_ms()) for m in members]
    await asyncio.sleep(INITIAL_DELAY_MS / 1000)
    group.advance(now_ms())
    joined = [await j for j in joining]
    assignments = {m.id: m.id.encode() for m in members}
    syncing = [group.sync(j.member_id, j.generation, assignments, now_ms()) for j in reversed(joined)]
    group.settle(group.generation, ErrorCode.none, now_ms())
    for synced in syncing:
        assert (await synced).error is ErrorCode.none
    assert group.state is GroupState.STABLE
    return group


def virtually(main: Coroutine[Any, Any, None]) -> None:
    run(main)


def test_a_static_member_that_is_back_takes_its_place_without_a_rebalance() -> None:
    async def main() -> None:
        group = await stable(member("a", "i"), member("b", "j"))
        old = group.static("j")
        assert old is not None
        joined = await group.replace(old, member("b2", "j"), now_ms(), skips=False)
        assert (joined.error, joined.member_id, joined.generation) == (ErrorCode.none, "b2", group.generation)
        assert group.state is GroupState.STABLE
        synced = await group.sync("b2", joined.generation, {}, now_ms(), "j")
        assert synced.assignment == b"b", "what its predecessor had"
        assert group.heartbeat("a", group.generation, now_ms(), "i") is ErrorCode.none

    virtually(main())


def test_whoever_was_replaced_is_fenced_in_whatever_it_does() -> None:
    async def main() -> None:
        group = await stable(member("a", "i"), member("b", "j"))
        old = group.static("j")
        assert old is not None
        await group.replace(old, member("b2", "j"), now_ms(), skips=False)
        fenced = ErrorCode.fenced_instance_id
        assert group.heartbeat("b", group.generation, now_ms(), "j") is fenced
        assert group.check("b", group.generation, "j") is fenced
        assert (await group.sync("b", group.generation, {}, now_ms(), "j")).error is fenced
        assert group.heartbeat("b", group.generation, now_ms()) is ErrorCode.unknown_member_id

    virtually(main())


def test_a_join_that_waits_is_answered_when_its_member_is_replaced() -> None:
    async def main() -> None:
        group = await stable(member("a", "i"), member("b", "j"))
        waiting = group.join(member("a", "i", b"other"), now_ms())  # waits for b
        static = group.static("i")
        assert static is not None
        new = group.replace(static, member("a2", "i", b"other"), now_ms(), skips=False)
        assert (await waiting).error is ErrorCode.fenced_instance_id
        group.join(member("b", "j"), now_ms())
        assert (await new).member_id == "a2"

    virtually(main())


def test_a_static_leader_that_is_back_does_not_assign_anew() -> None:
    async def main(*, skips: bool) -> Joined:
        group = await stable(member("a", "i"), member("b", "j"))
        static = group.static("i")
        assert static is not None and group.leader == "a"
        joined = await group.replace(static, member("a2", "i"), now_ms(), skips=skips)
        assert group.leader == "a2"
        return joined

    knows = run(main(skips=True))
    assert knows.skip_assignment and knows.leader == "a2" and len(knows.members) == 2
    does_not = run(main(skips=False))
    assert not does_not.skip_assignment and does_not.leader == "a" and does_not.members == ()


def test_a_static_member_with_other_protocols_makes_the_group_rebalance() -> None:
    async def main() -> None:
        group = await stable(member("a", "i"))
        static = group.static("i")
        assert static is not None
        other = member("a2", "i")
        other.protocols = [("sticky", b"sub")]
        joined = await group.replace(static, other, now_ms(), skips=True)
        assert (joined.protocol, joined.skip_assignment) == ("sticky", False)
        assert group.state is GroupState.COMPLETING

    virtually(main())


def test_a_follower_that_joins_again_unchanged_rebalances_nobody() -> None:
    async def main() -> None:
        group = await stable(member("a"), member("b"))
        generation = group.generation
        again = await group.join(member("b"), now_ms())
        assert (again.error, again.generation, group.state) == (ErrorCode.none, generation, GroupState.STABLE)
        assert (await group.sync("b", generation, {}, now_ms())).assignment == b"b"
        group.join(member("b", metadata=b"other"), now_ms())
        assert group.state is GroupState.PREPARING, "it subscribes to something else"

    virtually(main())


def test_a_leader_that_joins_again_gets_a_rebalance() -> None:
    async def main() -> None:
        group = await stable(member("a"), member("b"))
        group.join(member("a"), now_ms())
        assert group.state is GroupState.PREPARING

    virtually(main())


def test_ids_given_to_newcomers_are_bounded_and_forgotten() -> None:
    async def main() -> None:
        group = Group("g")
        assert all(group.expect(f"m{i}", now_ms() + 1_000) for i in range(1_000))
        assert not group.expect("one more", now_ms() + 1_000)
        await asyncio.sleep(1)
        group.advance(now_ms())
        assert not group.knows("m0") and group.expect("one more", now_ms() + 1_000)

    virtually(main())


def loaded(*written: list[tuple[bytes, bytes | None]]) -> Group:
    """What a successor makes of the records."""
    groups: dict[str, Group] = {"g": Group("g")}
    for records in written:
        for key, value in records:
            classic_state.fold(groups, key, value)
    classic_state.begin(groups["g"], now_ms())
    return groups["g"]


def test_a_successor_goes_on_with_a_generation() -> None:
    async def main() -> None:
        group = await stable(member("a", "i"), member("b"))
        records = classic_state.dump(group)
        successor = loaded(classic_state.changes({}, records))
        assert successor.state is GroupState.STABLE and classic_state.dump(successor) == records
        for name in ("a", "b"):
            assert successor.heartbeat(name, group.generation, now_ms()) is ErrorCode.none
            assert (await successor.sync(name, group.generation, {}, now_ms())).assignment == name.encode()
        await asyncio.sleep(11)
        successor.advance(now_ms())
        assert not successor.members, "they are given a session, not for ever"

    virtually(main())


def test_a_generation_of_which_records_are_missing_is_none() -> None:
    async def main() -> None:
        group = await stable(member("a"), member("b"), member("c"))
        old = classic_state.dump(group)
        group.generation += 1
        group.remove("c", now_ms())
        new = classic_state.changes(old, classic_state.dump(group))
        written = classic_state.changes({}, old)
        assert loaded(written, new).members.keys() == {"a", "b"}
        for cut in range(1, len(new)):
            successor = loaded(written, new[:cut])
            assert (successor.state, successor.members) == (GroupState.EMPTY, {})
        groups: dict[str, Group] = {}
        for key, value in [*written, *((key, None) for key, _ in written)]:
            classic_state.fold(groups, key, value)
        assert groups == {}, "forgotten"

    virtually(main())


def test_assignments_that_cannot_be_made_durable_are_not_told() -> None:
    async def main() -> None:
        group = Group("g", protocol_type="consumer")
        joining = group.join(member("a"), now_ms())
        await asyncio.sleep(INITIAL_DELAY_MS / 1000)
        group.advance(now_ms())
        generation = (await joining).generation
        syncing = group.sync("a", generation, {"a": b"all"}, now_ms())
        assert not syncing.done()
        group.settle(generation, ErrorCode.not_coordinator, now_ms())
        assert (await syncing).error is ErrorCode.not_coordinator and group.state is GroupState.PREPARING

    virtually(main())
