"""An edge and a cloud through power cuts at every call of flush, upload, batch, ack and removal: in the end the cloud
has each row that was durable, once, and none that nobody wrote.

The judge reads the cloud's files with DuckDB. Tables append, so that a file taken twice shows; one merges, so that
files taken in the wrong order show.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.schema.tables import TableOptions
from providers.base.errors import Full, Unavailable
from providers.memory.faults import Faults
from providers.memory.objects import PART_BYTES
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE, DATABASE, Cloud
from tests.dataplane.tsdb.edge.both_sides import (
    Line,
    Vehicle,
    batches_of,
    importing,
    importing_over,
    in_cloud,
    last_written,
    opened_cloud,
)
from tests.dataplane.tsdb.edge.flash import Flash, PowerCut
from tests.dataplane.tsdb.edge.test_power_cut import LOGGED, rows
from tests.dataplane.tsdb.edge.test_ship_line import ROOMY, noise

MERGED = replace(LOGGED, name="merged", options=TableOptions())
STEPS = 9
ERRS = Faults((0, 0), throttled=0.15, lost_response=0.08, delayed=0.04, duplicated=0.04)


@dataclass
class Told:
    """What an application was told: rows that are durable, and rows that may be there."""

    tried: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    durable: set[int] = field(default_factory=set)
    next: int = 0

    async def live(self, car: Vehicle, turn: Callable[[], Any], rng: random.Random, steps: int) -> None:
        store = car.store
        for schema in (LOGGED, MERGED):
            if schema.name not in {table.name for table in store.tables}:
                store.create_table(schema)
        # What came through a cut is durable from then on; what was not durable and did not, is no more.
        self.durable |= set(store.scan("logged").column("n").to_pylist())
        self.written = set(self.durable)
        for _ in range(steps):
            batch = list(range(self.next, self.next + rng.randint(1, 5)))
            self.next = batch[-1] + 1
            self.tried |= set(batch)
            store.write("logged", rows(*batch))
            store.write("merged", rows(batch[0], at=0))
            self.written |= set(batch)
            if rng.random() < 0.4:
                store.sync()
                self.durable |= self.written
            if rng.random() < 0.7:
                store.flush(rng.choice(["logged", "merged"]))
            for _ in range(rng.randint(0, 2)):
                await ship(car)
            if rng.random() < 0.5:
                await imports(turn)
            car.cloud.clock.now_ms += 5_000

    def judge(self, cloud: Cloud, manifest: Manifest) -> None:
        found = in_cloud(cloud, manifest, "logged")
        assert len(found) == len(set(found)), f"twice: {sorted(n for n in set(found) if found.count(n) > 1)[:5]}"
        assert self.durable <= set(found), f"lost: {sorted(self.durable - set(found))[:5]}"
        assert set(found) <= self.tried, f"nobody wrote {sorted(set(found) - self.tried)[:5]}"


async def ship(car: Vehicle) -> None:
    try:
        await car.shipper.turn()
    except (Unavailable, Full):
        pass


async def imports(turn: Callable[[], Any]) -> None:
    try:
        await turn()
    except Unavailable:
        pass


async def whole_run(
    seed: int, flash_cut: int, line_cut: int, heard: bool, faults: Faults, kill_only: bool = False
) -> tuple[int, int]:
    """One run, cut where it says; how many calls of flash and line it made before."""
    cloud, flash, told = Cloud(seed), Flash(), Told()
    manifest = await opened_cloud(cloud)
    key_made = Vehicle(cloud, flash, seed=seed)  # the key and the catalog are there before anything is cut
    turn = importing(cloud, manifest, key_made)
    cloud.bucket.faults = faults
    rng, dice = random.Random(seed * 1_000), random.Random(seed * 7_919 + flash_cut * 31 + line_cut)
    flash.calls, flash.cut_at = 0, flash_cut
    calls = (0, 0)
    try:
        car = Vehicle(cloud, flash, seed=seed)
        car.line.cut_at, car.line.heard = line_cut, heard
        await told.live(car, turn, rng, STEPS)
        calls = flash.calls, car.line.calls
    except PowerCut:
        pass
    for again in (dice.randint(1, 25), 0):
        if not kill_only:
            flash.cut(dice)
        flash.calls, flash.cut_at = 0, again
        try:
            car = Vehicle(cloud, flash, seed=dice.randint(1, 10**9))
            car.line.cut_at, car.line.heard = (dice.randint(0, 12) if again else 0), dice.random() < 0.5
            await told.live(car, turn, dice, 3)
        except PowerCut:
            continue
    flash.cut_at = 0
    cloud.bucket.faults = AT_ONCE
    car = Vehicle(cloud, flash, seed=10**10)
    for schema in car.store.tables:
        car.store.flush(schema.name)
    await cloud.world.settle()
    await car.ship_all(turn)
    told.judge(cloud, manifest)
    expected = last_written(cloud, manifest, "merged")
    merged = in_cloud(cloud, manifest, "merged")
    assert expected == (max(merged) if merged else None), "an older row won over a later one"
    assert car.store.outbox.state.aside == {}
    named = [file_id for _, ids in sorted(batches_of(cloud, car).items()) for file_id in ids]
    assert len(named) == len(set(named)), "a file is in two batches: what was noted was forgotten"
    return calls


@pytest.mark.parametrize("part", range(4))
def test_a_power_cut_at_every_call_of_the_flash_loses_no_row_and_doubles_none(part: int) -> None:
    """All calls of one run, in four parts."""

    async def main() -> None:
        calls, _ = await whole_run(1, 0, 0, False, AT_ONCE)
        assert calls > 80
        for cut_at in range(1 + part, calls + 1, 4):
            await whole_run(1, cut_at, 0, False, AT_ONCE, kill_only=cut_at % 5 == 0)

    asyncio.run(main())


@pytest.mark.parametrize("seed", [4])
def test_a_power_cut_at_every_request_loses_no_row_and_doubles_none(seed: int) -> None:
    async def main() -> None:
        _, calls = await whole_run(seed, 0, 0, False, AT_ONCE)
        assert calls > 10
        for cut_at in range(1, calls + 1):
            for heard in (False, True):
                await whole_run(seed, 0, cut_at, heard, AT_ONCE)

    asyncio.run(main())


@pytest.mark.parametrize("seed", [4])
def test_an_import_cut_short_at_every_request_is_made_up_for(seed: int) -> None:
    """The importer's process dies, before or after the bucket heard of a request; a fresh one goes on."""

    async def one(cut_at: int, heard: bool) -> int:
        cloud, told = Cloud(seed), Told()
        manifest = await opened_cloud(cloud)
        car = Vehicle(cloud, Flash(), seed=seed)
        line = Line(cloud.store("first"))
        dying = await importing_over(cloud, line, car)
        line.calls, line.cut_at, line.heard = 0, cut_at, heard
        try:
            for _ in range(3):
                await told.live(car, dying, random.Random(seed), 3)
        except PowerCut:
            pass
        for schema in car.store.tables:
            car.store.flush(schema.name)
        told.durable |= told.written
        await car.ship_all(importing(cloud, manifest, car))
        told.judge(cloud, manifest)
        return line.calls

    async def main() -> None:
        calls = await one(0, False)
        assert calls > 20
        for cut_at in range(1, calls + 1, 2):
            await one(cut_at, cut_at % 4 == 1)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(10, 16))
def test_a_bucket_that_errs_beside_a_power_cut_loses_no_row_and_doubles_none(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        for _ in range(4):
            await whole_run(seed, dice.choice([0, dice.randint(1, 60)]), dice.randint(0, 25), True, ERRS)

    asyncio.run(main())


def test_a_power_cut_at_every_call_of_a_large_file_s_upload_sends_no_part_twice_that_was_stored() -> None:
    """Flash and line, each before and after; then a second life that ships."""

    made = Flash()
    first = Vehicle(Cloud(1), made)
    first.store.create_table(ROOMY)
    first.store.write("logged", noise(110_000))
    meta = first.store.flush("logged")
    assert meta is not None and meta.size > 3 * PART_BYTES

    async def one(flash_cut: int, line_cut: int, heard: bool) -> tuple[int, int]:
        cloud, flash = Cloud(1), copy.deepcopy(made)
        manifest = await opened_cloud(cloud)
        flash.calls, flash.cut_at = 0, 0
        car = Vehicle(cloud, flash)
        turn = importing(cloud, manifest, car)
        flash.calls, flash.cut_at = 0, flash_cut
        car.line.cut_at, car.line.heard = line_cut, heard
        try:
            await car.ship_all(turn)
        except PowerCut:
            pass
        calls = flash.calls, car.line.calls
        flash.cut(random.Random(flash_cut * 31 + line_cut))
        flash.cut_at = 0
        await cloud.world.settle()
        uploads = list(cloud.bucket.uploads.values())
        stored = sum(len(upload.parts) for upload in uploads)
        shipped = f"{DATABASE}/sst/logged/{meta.file_id}.parquet" in cloud.bucket.objects
        again = Vehicle(cloud, flash, seed=2)
        noted = bool(again.store.outbox.state.uploads)
        await again.ship_all(turn)
        parts = -(-meta.size // PART_BYTES)
        assert again.line.parts == (0 if shipped else parts - stored)
        assert stored == 0 or noted
        assert len(in_cloud(cloud, manifest, "logged")) == 110_000
        assert len(cloud.bucket.uploads) <= 1 and not any(upload.parts for upload in cloud.bucket.uploads.values())
        return calls

    async def main() -> None:
        flash_calls, line_calls = await one(0, 0, False)
        assert flash_calls > 5 and line_calls > 6
        for cut_at in range(1, flash_calls + 1):
            await one(cut_at, 0, False)
        for cut_at in range(1, line_calls + 1):
            for heard in (False, True):
                await one(0, cut_at, heard)

    asyncio.run(main())
