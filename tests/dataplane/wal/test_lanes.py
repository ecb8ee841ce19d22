"""What only the append lanes promise. The volume beside them is cut off, so that they stand alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dataplane.wal.codec import Kind, encode_mark
from dataplane.wal.commit import GroupCommit
from dataplane.wal.lane_reader import LaneReader
from dataplane.wal.lanes import SEGMENT_OBJECTS, LaneSettings, LaneSide, lane_key
from providers.base.errors import Corrupt, Fenced, OutcomeUnknown, Unavailable
from tests.dataplane.wal.cell import RETRY, append, fill, identity, record, serial, until
from tests.sim.virtualtime import run
from tests.sim.wal_world import CALM, Bucket, Host, StoreClient, World


class Lanes:
    """A WAL of lanes alone."""

    def __init__(self, **settings: int) -> None:
        self.world = World(1, CALM)
        self.bucket = Bucket("express", appends=True)
        self.settings = replace(LaneSettings(retry=RETRY), **settings)  # type: ignore[arg-type]
        self.owner = Host(self.world, "owner")
        self.side = LaneSide(
            StoreClient(self.owner, self.bucket), identity(1), clock=self.owner, settings=self.settings
        )

    async def open(self) -> GroupCommit:
        wal = GroupCommit(identity(1), [self.side], clock=self.owner)
        await wal.open()
        return wal

    def reader(self, node: int = 2) -> LaneReader:
        host = Host(self.world, f"survivor-{node}")
        store = StoreClient(host, self.bucket)
        return LaneReader(store, identity(1), own_key=node, clock=host, settings=self.settings)

    async def recover(self, floor: int = 1, node: int = 2) -> list[int]:
        reader = self.reader(node)
        await reader.fence()
        return [serial(found) async for block in reader.read(floor) for found in block.records]

    def names(self, lane: int) -> list[int]:
        """Indexes of a lane's objects."""
        prefix = f"/lane-{lane}/0"
        return sorted(int(key.rsplit("/", 1)[1]) for key in self.bucket.objects if prefix in key)


def losing(bucket: Bucket, *, applied: bool, times: int) -> list[str]:
    """Lose the answers (or the requests) of the next appends; returns the list of what was lost."""
    bucket_append = bucket.append
    lost: list[str] = []

    def go(key: str, offset: int, data: bytes) -> None:
        if len(lost) == times:
            return bucket_append(key, offset, data)
        lost.append(key)
        if applied:
            bucket_append(key, offset, data)
        raise OutcomeUnknown("the answer was lost")

    bucket.append = go  # type: ignore[method-assign]
    return lost


@pytest.mark.parametrize("applied", [True, False])
def test_lost_append_is_resolved_by_content(applied: bool) -> None:
    async def main() -> None:
        lanes = Lanes()
        wal = await lanes.open()
        await fill(wal, [1, 2])
        lost = losing(lanes.bucket, applied=applied, times=3)
        await fill(wal, range(3, 10))
        assert len(lost) == 3
        assert await lanes.recover() == list(range(1, 10)), "each once"

    run(main())


def test_seal_that_made_the_object_grow_is_not_taken_for_a_lost_append() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1)
        wal = await lanes.open()
        await fill(wal, [1])
        losing(lanes.bucket, applied=False, times=1)
        late = append(wal, record(2))
        await asyncio.sleep(0.006)
        lanes.owner.freeze()
        assert await lanes.recover() == [1]
        lanes.owner.thaw()
        with pytest.raises(Fenced, match="sealed"):
            await late

    run(main())


def test_block_is_vouched_for_only_behind_all_lower_numbers_of_all_lanes() -> None:
    async def main() -> None:
        lanes = Lanes()
        await lanes.side.open()
        second = asyncio.create_task(lanes.side.write(2, b"block 2"))
        await asyncio.sleep(5)
        assert not second.done(), "block 1, on the other lane, is a hole"
        lane_one = lane_key(identity(1), 1, 1)
        lanes.bucket.objects[lane_one] += encode_mark(Kind.SEAL, identity(1), 1)
        with pytest.raises(Fenced):
            await lanes.side.write(1, b"block 1")
        with pytest.raises(Fenced):
            await second

    run(main())


@pytest.mark.parametrize("lane_count", [1, 2, 5])
def test_lanes_are_merged_by_number(lane_count: int) -> None:
    async def main() -> None:
        lanes = Lanes(lanes=lane_count)
        wal = await lanes.open()
        await fill(wal, range(1, 24))
        assert await lanes.recover() == list(range(1, 24))
        assert await lanes.recover(floor=9) == list(range(9, 24))

    run(main())


def test_lanes_roll_before_their_part_limit_and_are_read_through() -> None:
    async def main() -> None:
        lanes = Lanes(parts_max=6)
        requests: dict[str, int] = {}
        bucket_append = lanes.bucket.append

        def counting(key: str, offset: int, data: bytes) -> None:
            requests[key] = requests.get(key, 1) + 1
            bucket_append(key, offset, data)

        lanes.bucket.append = counting  # type: ignore[method-assign]
        wal = await lanes.open()
        await fill(wal, range(1, 60))
        assert max(requests.values()) <= 6 and lanes.names(0)[-1] > 5
        assert await lanes.recover() == list(range(1, 60))
        with pytest.raises(Fenced):
            await append(wal, record(60))

    run(main())


def test_lanes_roll_at_their_size_limit() -> None:
    async def main() -> None:
        lanes = Lanes(object_bytes_max=20_000)
        wal = await lanes.open()
        await fill(wal, range(1, 40))
        await append(wal, record(40, 30_000))
        sizes = [len(data) for key, data in lanes.bucket.objects.items() if len(data) < 30_000]
        assert max(sizes) <= 20_000 and len(sizes) >= 4
        assert await lanes.recover() == list(range(1, 41))

    run(main())


def test_fencer_that_finds_rolled_takes_the_successors_name() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=4)
        wal = await lanes.open()
        await fill(wal, [1, 2])
        late = append(wal, record(3))
        first = lane_key(identity(1), 0, 1)
        rolled = encode_mark(Kind.ROLLED, identity(1), 1)
        await until(lambda: lanes.bucket.objects[first].endswith(rolled))
        lanes.owner.freeze()
        assert lanes.names(0) == [1]
        assert await lanes.recover() == [1, 2]
        assert lanes.names(0) == [1, 2]
        assert await lanes.recover(node=3) == [1, 2], "a second fencer meets the tombstone"
        lanes.owner.thaw()
        with pytest.raises(Fenced, match="taken"):
            await late

    run(main())


def test_fencer_goes_on_into_a_successor_that_exists() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=4)
        wal = await lanes.open()
        await fill(wal, [1, 2, 3])
        reader = lanes.reader()
        reader._highest = lambda lane: asyncio.sleep(0, 1)  # type: ignore[method-assign]
        await reader.fence()
        assert reader._last == {0: 2}
        with pytest.raises(Fenced):
            await append(wal, record(4))

    run(main())


def test_fencer_wins_against_an_owner_that_appends_without_pause() -> None:
    """Each time the fencer looks, the owner appends before the seal arrives: the successor's name is taken, and the
    race ends with the object."""

    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=30)
        wal = await lanes.open()
        await fill(wal, [1])
        reader = lanes.reader()
        bucket_append, number = lanes.bucket.append, 1
        acked: list[int] = []

        def racing(key: str, offset: int, data: bytes) -> None:
            bucket_append(key, offset, data)

        async def end_of(lane: int, index: int):  # type: ignore[no-untyped-def]
            nonlocal number
            found = await end(lane, index)
            if wal.dead is None:
                number += 1
                try:
                    await append(wal, record(number))
                    acked.append(number)
                except Fenced:
                    pass
            return found

        end = reader._end_of
        reader._end_of = end_of  # type: ignore[method-assign]
        lanes.bucket.append = racing  # type: ignore[method-assign]
        await reader.fence()
        found = [serial(r) async for block in reader.read(1) for r in block.records]
        assert len(acked) > 10 and found == [1, *acked]

    run(main())


def test_lane_that_its_owner_never_opened_is_closed_to_it() -> None:
    async def main() -> None:
        lanes = Lanes()
        assert await lanes.recover() == []
        with pytest.raises(Fenced):
            await lanes.open()

    run(main())


def test_collected_lanes_are_found_without_listing() -> None:
    """Far more objects than one segment, trimmed while they are written: the last one is found by the markers."""

    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=3)
        wal = await lanes.open()
        count = 3 * SEGMENT_OBJECTS
        for number in range(1, count):
            await append(wal, record(number, 10))
            if number % 10 == 0:
                await wal.trim(wal.last_acked - 2)
                await asyncio.sleep(0.2)
        floor = wal._floor
        assert lanes.names(0)[0] > 2 * SEGMENT_OBJECTS
        assert await lanes.recover(floor=floor) == list(range(floor, count))

    run(main())


def test_late_duplicate_that_recreates_a_collected_object_misleads_nobody() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=4)
        wal = await lanes.open()
        await fill(wal, range(1, 12))
        await wal.trim(8)
        await until(lambda: lanes.names(0)[0] > 2)
        for index in (1, 2):
            lanes.bucket.objects[lane_key(identity(1), 0, index)] = encode_mark(Kind.LANE_HEADER, identity(1), index, 1)
        assert await lanes.recover(floor=8) == list(range(8, 12))
        with pytest.raises(Fenced):
            await append(wal, record(12))

    run(main())


def test_last_object_of_a_lane_is_never_deleted() -> None:
    """Rolled, and all of it trimmed, before its successor exists: it stays until there is one, for a reader has to find
    the lane."""

    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=4)
        wal = await lanes.open()
        await fill(wal, [1, 2])
        rolled = encode_mark(Kind.ROLLED, identity(1), 1)
        late = append(wal, record(3))
        first = lane_key(identity(1), 0, 1)
        await until(lambda: lanes.bucket.objects[first].endswith(rolled))
        put = lanes.bucket.put

        def held(key: str, data: bytes, if_absent: bool) -> None:
            if key == lane_key(identity(1), 0, 2):
                raise Unavailable("not yet")
            put(key, data, if_absent)

        lanes.bucket.put = held  # type: ignore[method-assign]
        for _ in range(4):
            await asyncio.sleep(0.01)
            await lanes.side.trim(3)
        assert lanes.names(0) == [1]
        lanes.bucket.put = put  # type: ignore[method-assign]
        await late
        assert await lanes.recover(floor=3) == [3]

    run(main())


def test_damaged_lane_is_corrupt() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1)
        await fill(await lanes.open(), range(1, 10))
        key = lane_key(identity(1), 0, 1)
        whole = lanes.bucket.objects[key]
        await lanes.reader().fence()
        for at in range(50, len(whole), 97):
            sealed = lanes.bucket.objects[key]
            lanes.bucket.objects[key] = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
            with pytest.raises(Corrupt):
                await lanes.recover()
            lanes.bucket.objects[key] = sealed

    run(main())


def test_collecting_that_goes_on_while_a_fencer_looks_hides_no_lane_from_it() -> None:
    """All that the fencer is about to look for is deleted between its two looks: absent then means nothing."""

    async def main() -> None:
        lanes = Lanes(lanes=1, parts_max=3)
        wal = await lanes.open()
        count = 2 * SEGMENT_OBJECTS
        await fill(wal, range(1, count), 10)
        reader = lanes.reader()
        markers = reader._markers

        async def trimmed_behind_its_back(lane: int, known: int) -> int:
            found = await markers(lane, known)
            await wal.trim(count - 3)
            await until(lambda: lanes.names(0)[0] > SEGMENT_OBJECTS + 1)
            return found

        reader._markers = trimmed_behind_its_back  # type: ignore[method-assign]
        await reader.fence()
        assert [serial(r) async for block in reader.read(count - 3) for r in block.records] == [
            *range(count - 3, count)
        ]

    run(main())


def test_closed_end_that_is_gone_or_open_again_is_corrupt() -> None:
    async def main() -> None:
        lanes = Lanes(lanes=1)
        await fill(await lanes.open(), range(1, 5))
        reader = lanes.reader()
        await reader.fence()
        key = lane_key(identity(1), 0, 1)
        sealed = lanes.bucket.objects.pop(key)
        with pytest.raises(Corrupt):
            [block async for block in reader.read(1)]
        lanes.bucket.objects[key] = sealed[: -len(encode_mark(Kind.SEAL, identity(1), 1))]
        with pytest.raises(Corrupt):
            [block async for block in reader.read(1)]

    run(main())
