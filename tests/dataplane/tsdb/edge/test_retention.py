"""What is older than its table's `ttl` leaves the flash, and nothing else does: judged by what was written, and by the
files that are there. Rows' times are their numbers, in milliseconds.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from dataplane.tsdb.edge.outbox import SST
from dataplane.tsdb.edge.retention import expire, retain
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.engine import Rows
from dataplane.tsdb.schema.tables import TableOptions
from tests.dataplane.tsdb.edge.flash import Flash, PowerCut
from tests.dataplane.tsdb.edge.test_database import served
from tests.dataplane.tsdb.edge.test_power_cut import LOGGED, begun, numbers, opened, rows
from tests.sim.virtualtime import run

KEEPS_100 = replace(LOGGED, options=TableOptions(append_mode=True, ttl_ms=100))
MERGES = replace(KEEPS_100, options=TableOptions(ttl_ms=100))


def flushed(store: EdgeStore, *batches: tuple[int, ...]) -> None:
    for batch in batches:
        store.write("logged", rows(*batch))
        assert store.flush("logged")


def ssts(flash: Flash) -> int:
    return sum(name.endswith(SST) for name in flash.names())


def test_files_leave_once_all_of_their_rows_are_old() -> None:
    flash, store = begun(KEEPS_100)
    flushed(store, (1, 2), (3, 200), (201,))
    assert expire(store, 102, uploads=False) == 0, "row 2 is 100 ms old"
    assert expire(store, 103, uploads=False) == 1
    assert (numbers(store, "logged"), ssts(flash)) == ([3, 200, 201], 2)
    assert expire(store, 250, uploads=False) == 0, "a file that has both stays"
    assert numbers(opened(flash), "logged") == [3, 200, 201]


def test_without_a_ttl_nothing_leaves() -> None:
    flash, store = begun(LOGGED)
    flushed(store, (1,))
    assert (expire(store, 10**15, uploads=False), ssts(flash)) == (0, 1)


def test_what_the_cloud_does_not_have_stays_however_old() -> None:
    flash, store = begun(KEEPS_100)
    flushed(store, (1,), (2,), (3,))
    sent, refused, _ = (meta.file_id for meta in store.files())
    store.outbox.note({"acked": {sent: 7}})
    store.outbox.note({"aside": {refused: "a row of the future"}})
    assert expire(store, 1_000, uploads=True) == 2
    assert numbers(opened(flash), "logged") == [3]


def test_what_a_file_that_left_had_replaced_does_not_come_back() -> None:
    _, store = begun(MERGES)
    flushed(store, (5,), (5,), (300,))
    first, second, _ = (meta.file_id for meta in store.files())
    store.outbox.note({"acked": {second: 7}})
    assert expire(store, 1_000, uploads=True) == 0, "the row that it replaces is still to be sent"
    store.outbox.note({"acked": {first: 8}})
    assert expire(store, 1_000, uploads=True) == 2


def test_who_reads_meanwhile_goes_on_reading() -> None:
    flash, store = begun(KEEPS_100)
    flushed(store, (1,))
    snapshot = store.snapshot()
    assert (expire(store, 1_000, uploads=False), ssts(flash)) == (1, 1)
    store.release(snapshot)
    assert ssts(flash) == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_every_call_leaves_each_file_whole_or_gone(seed: int) -> None:
    cut_at, ended = 0, False
    while not ended:
        cut_at += 1
        flash, store = begun(KEEPS_100)
        flushed(store, (1,), (2,), (300,))
        flash.calls, flash.cut_at = 0, cut_at
        try:
            expire(store, 350, uploads=False)
            ended = True
        except PowerCut:
            flash.cut(random.Random(seed * 31 + cut_at))
        flash.cut_at = 0
        store = opened(flash)
        assert numbers(store, "logged") in ([1, 2, 300], [300])
        assert ssts(flash) == len(store.files())
    assert cut_at > 3


def test_a_database_looks_by_itself() -> None:
    async def main() -> None:
        flash = Flash()
        database = await served(flash, KEEPS_100)
        looking = asyncio.create_task(retain(database, uploads=False, clock=database._clock, interval_ms=50))
        await database.write([Rows("logged", rows(1))])
        await database.flush()
        await asyncio.sleep(0.2)
        assert ssts(flash) == 0
        assert not looking.done()
        looking.cancel()
        await database.close()

    run(main())
