"""Promises of an edge's upload queue."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.cloud.ingest import ImportSettings
from dataplane.tsdb.cloud.manifest_commands import orphans_condemned, table_created
from dataplane.tsdb.edge import catalog
from dataplane.tsdb.edge.keys import public_hex
from dataplane.tsdb.schema.files import ShippedBatch, batch_key, opened, sst_key
from dataplane.tsdb.schema.tables import Column, ColumnType, TableOptions, TableSchema
from providers.base.errors import Corrupt, OutcomeUnknown
from tests.dataplane.tsdb.cloud_import.bucket import DATABASE, NOW_MS, Cloud, Edge
from tests.dataplane.tsdb.edge.both_sides import EDGE, QUICK, Vehicle, importing, in_cloud, opened_cloud
from tests.dataplane.tsdb.edge.flash import Flash, PowerCut
from tests.dataplane.tsdb.edge.test_power_cut import COLUMNS, LOGGED, rows

DAY_MS = 86_400_000
LATER = replace(QUICK, batch_files_max=100, files_at_once=100, interval_ms=1_000)


class Both:
    """An edge with one table, and the cloud."""

    def __init__(self, **settings: Any) -> None:
        self.cloud, self.flash = Cloud(), Flash()
        self.settings = replace(LATER, **settings)

    async def begin(self, *schemas: TableSchema) -> None:
        self.manifest = await opened_cloud(self.cloud)
        self.car = self.life()
        for schema in schemas or (LOGGED,):
            self.car.store.create_table(schema)
        self.turn = importing(self.cloud, self.manifest, self.car)

    def life(self, seed: int = 1) -> Vehicle:
        """The next one, on the same flash."""
        return Vehicle(self.cloud, self.flash, self.settings, seed)

    def flushed(self, *numbers: int, table: str = "logged", at: int | None = None) -> str:
        """The id of a file with these rows."""
        self.car.store.write(table, rows(*numbers, at=at))
        meta = self.car.store.flush(table)
        assert meta is not None
        return meta.file_id

    async def ship(self, turns: int = 1, step_ms: float = 20_000) -> None:
        for _ in range(turns):
            self.cloud.clock.now_ms += step_ms
            await self.car.shipper.turn()

    def found(self, table: str = "logged") -> list[int]:
        return in_cloud(self.cloud, self.manifest, table)

    def batches(self) -> list[ShippedBatch]:
        """Those in the bucket that are this edge's."""
        found = []
        for number in range(1, 1_000):
            data = self.cloud.bucket.objects.get(batch_key(DATABASE, EDGE, number))
            if data is None:
                return found
            found.append(opened(data, self.car.key.public_key(), DATABASE, EDGE, number))
        raise AssertionError("a thousand batches")


def test_files_reach_the_cloud_and_leave_the_flash() -> None:
    async def main() -> None:
        both = Both(batch_files_max=4)
        await both.begin()
        for n in range(10):
            both.flushed(2 * n, 2 * n + 1)
        await both.car.ship_all(both.turn)
        assert both.found() == list(range(20))
        await both.ship()
        assert both.car.store.files() == []
        assert not [name for name in both.flash.names() if name.endswith(".parquet")]
        counters = both.car.shipper.counters
        assert (counters.files_sent, counters.files_acked, counters.files_renamed) == (10, 10, 0)
        assert counters.batches == counters.batches_imported == len(both.batches())
        assert counters.waiting_files == counters.open_batches == counters.retries == 0
        sent = sum(len(data) for key, data in both.cloud.bucket.objects.items() if "/acked/" not in key)
        assert (
            sum(len(d) for k, d in both.cloud.bucket.objects.items() if "/sst/" in k) < counters.bytes_sent < 4 * sent
        )

    asyncio.run(main())


def test_a_batch_is_closed_by_count_by_bytes_and_by_age() -> None:
    async def main() -> None:
        for settings, sizes in (
            ({"batch_files_max": 4, "files_at_once": 4, "interval_ms": 1e9}, [4, 4, 2]),
            ({"batch_bytes_max": 1_000, "files_at_once": 1, "interval_ms": 1e9}, [2, 2, 2, 2, 2]),
            ({"files_at_once": 1, "interval_ms": 30_000.0}, [3, 3, 3, 1]),
        ):
            both = Both(**settings)
            await both.begin()
            for n in range(10):
                both.flushed(n)
            size = both.car.store.files()[0].size
            assert 350 < size < 500, "two files are as many bytes as a batch may have"
            await both.ship(10)
            await both.ship(1)
            assert [len(batch.files) for batch in both.batches()] == sizes, settings

    asyncio.run(main())


def test_files_of_a_higher_priority_go_first_and_then_the_oldest() -> None:
    async def main() -> None:
        both = Both(files_at_once=1, interval_ms=1e9, batch_files_max=1)
        urgent = TableSchema("urgent", COLUMNS, options=TableOptions(append_mode=True, upload_priority=5))
        await both.begin(LOGGED, urgent)
        plain = [both.flushed(n) for n in range(3)]
        await both.ship()
        first = [both.flushed(n, table="urgent") for n in range(2)]
        both.cloud.clock.now_ms += 2e9
        await both.ship(5)
        sent = [meta.file_id for batch in both.batches() for meta in batch.files]
        assert sent == [plain[0], *first, *plain[1:]]

    asyncio.run(main())


def test_rows_of_one_key_are_taken_in_the_order_in_which_they_were_written() -> None:
    """A batch's files have one sequence in the cloud: of a table that merges no two overlap, and none overtakes."""

    async def main() -> None:
        both = Both()
        merged = replace(LOGGED, name="merged", options=TableOptions())
        await both.begin(LOGGED, merged)
        for n in range(4):
            both.flushed(n, table="merged", at=7)
            both.flushed(100 + n, table="merged", at=100 + n)
            both.flushed(n)
        await both.ship(3)
        [batch] = both.batches()
        assert [(m.table, m.time_min) for m in batch.files].count(("merged", 7)) == 1
        assert sum(m.table == "logged" for m in batch.files) == 4, "a table that appends has no order"
        await both.car.ship_all(both.turn)
        order = sorted(
            (m for m in both.manifest.state.tables["merged"].files.values() if m.time_min == 7),
            key=lambda meta: meta.sequence,
        )
        values = [_only(both, meta.file_id) for meta in order]
        assert values == [0, 1, 2, 3] and len({meta.sequence for meta in order}) == 4

    asyncio.run(main())


def _only(both: Both, file_id: str) -> int:
    data = both.cloud.bucket.objects[sst_key(DATABASE, "merged", file_id)]
    [value] = pq.read_table(io.BytesIO(data)).column("n").to_pylist()
    return int(value)


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("earlier", [0, 1, 2, 3, 4, 5, 21])
def test_an_edge_that_lost_its_flash_finds_its_next_number_and_overwrites_nothing(earlier: int) -> None:
    async def main() -> None:
        both = Both(batch_files_max=1)
        await both.begin()
        for n in range(earlier):
            both.flushed(n)
        await both.car.ship_all(both.turn)
        before = dict(both.cloud.bucket.objects)
        key = both.flash.read("edge.key")
        both.flash = Flash()
        both.flash.append("edge.key", 0, key)
        both.car = both.life(seed=2)
        both.car.store.create_table(LOGGED)
        both.flushed(100)
        await both.car.ship_all(both.turn)
        assert both.found() == [*range(earlier), 100]
        assert [batch.number for batch in both.batches()] == list(range(1, earlier + 2))
        assert both.car.shipper.counters.requests < 25, "by halving, not by counting"
        assert all(both.cloud.bucket.objects[name] == data for name, data in before.items() if "/ledger/" not in name)

    asyncio.run(main())


def test_a_number_that_another_took_is_passed_over_and_an_ack_to_it_is_not_taken_for_ours() -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        both.flushed(1)
        thief = Edge(both.cloud, EDGE)  # the same name, another key
        thief.ship(thief.upload(*thief.sst()))
        both.car.store.outbox.note({"next": 1})
        await both.ship(2)
        await both.car.ship_all(both.turn)
        assert both.found() == [1] and both.manifest.state.edges[EDGE] == 2
        assert "not signed with that edge's key" in both.manifest.state.refusals[0].reason

    asyncio.run(main())


def test_a_batch_whose_answer_was_lost_is_found_and_adopted_even_if_options_changed_meanwhile() -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        both.flushed(1)
        both.car.line.cut_at, both.car.line.heard = 5, True  # the file, two looks for the number, the batch
        with pytest.raises(PowerCut):
            await both.ship(3)
        assert [batch.number for batch in both.batches()] == [1]
        both.car = both.life(seed=2)
        changed = replace(LOGGED, version=2, options=replace(LOGGED.options, upload_priority=3))
        both.car.store.change_table(changed)
        await both.car.ship_all(both.turn)
        assert both.found() == [1] and len(both.batches()) == 1

    asyncio.run(main())


def test_a_file_whose_answer_was_lost_is_looked_at_and_not_sent_again() -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        both.flushed(1)
        put = both.cloud.bucket.put

        def lost(key: str, data: bytes, if_absent: bool) -> None:
            put(key, data, if_absent)
            both.cloud.bucket.put = put  # type: ignore[method-assign]
            raise OutcomeUnknown("no answer")

        both.cloud.bucket.put = lost  # type: ignore[method-assign]
        await both.car.ship_all(both.turn)
        counters = both.car.shipper.counters
        batch = both.cloud.bucket.objects[batch_key(DATABASE, EDGE, 1)]
        assert counters.retries == 1 and both.found() == [1]
        assert counters.bytes_sent - 1_000 * counters.requests == counters.bytes_acked + len(batch)

    asyncio.run(main())


def test_what_is_noted_of_shipping_outlives_the_rewriting_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        both = Both(keep_local_ms=10**12)
        await both.begin()
        both.flushed(1)
        both.flushed(2, at=NOW_MS + 3 * DAY_MS)
        await both.car.ship_all(both.turn)
        lost = both.flushed(3)
        await both.ship()
        del both.cloud.bucket.objects[sst_key(DATABASE, "logged", lost)]
        await both.turn()
        await both.ship()
        both.flushed(4)
        await both.ship()
        state = both.car.store.outbox.state
        assert state.open and state.acked and state.aside and state.copies and state.next_number > 3
        monkeypatch.setattr(catalog, "REWRITE_BYTES", 1)
        sizes = [len(both.flash.read("catalog")), (both.flushed(5), len(both.flash.read("catalog")))[1]]
        assert sizes[1] < sizes[0], "it was rewritten"
        assert both.life(seed=3).store.outbox.state == state

    asyncio.run(main())


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_file_is_set_aside_with_its_reason_and_the_others_go_again() -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        good = [both.flushed(n) for n in range(3)]
        bad = both.flushed(9, at=NOW_MS + 3 * DAY_MS)
        await both.car.ship_all(both.turn)
        assert both.found() == [0, 1, 2]
        outbox = both.car.store.outbox
        assert list(outbox.state.aside) == [bad] and "ahead of the cloud's clock" in outbox.state.aside[bad]
        assert [meta.file_id for meta in both.car.store.files()] == [bad], "it is kept"
        assert both.car.store.scan("logged").column("n").to_pylist() == [9]
        assert [len(batch.files) for batch in both.batches()] == [4, 3] and good
        both.car = both.life(seed=2)
        both.flushed(10)
        await both.car.ship_all(both.turn)
        assert len(both.batches()) == 3, "and not sent again by a later life"
        counters = both.car.shipper.counters
        assert (counters.aside_files, counters.aside_bytes > 0, counters.waiting_files) == (1, True, 0)

    asyncio.run(main())


def test_files_set_aside_are_bounded_the_oldest_go_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        both = Both(aside_bytes_max=1_250)
        await both.begin()
        bad = [both.flushed(n, at=NOW_MS + (3 + n) * DAY_MS) for n in range(4)]
        await both.car.ship_all(both.turn)
        assert [meta.file_id for meta in both.car.store.files()] == bad[2:]
        assert both.car.shipper.counters.files_dropped == 2
        assert all(f"ship-dropped: file {file_id}" in caplog.text for file_id in bad[:2])

    asyncio.run(main())


@pytest.mark.parametrize("harm", ["lost", "other bytes", "longer", "condemned"])
def test_what_the_bucket_lost_or_the_cloud_gave_up_is_sent_again_under_a_fresh_id(harm: str) -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        ids = [both.flushed(n) for n in range(3)]
        await both.ship(2)
        key = sst_key(DATABASE, "logged", ids[1])
        data = both.cloud.bucket.objects[key]
        match harm:
            case "lost":
                del both.cloud.bucket.objects[key]
            case "other bytes":
                both.cloud.bucket.objects[key] = data[:50] + bytes([data[50] ^ 1]) + data[51:]
            case "longer":
                both.cloud.bucket.objects[key] = data + b"x"
            case "condemned":
                await both.manifest.commit_one(lambda state: orphans_condemned(1, {ids[1]: "logged"}, NOW_MS))
        await both.car.ship_all(both.turn)
        assert both.found() == [0, 1, 2]
        assert both.car.shipper.counters.files_renamed == 1
        assert ids[1] not in both.manifest.state.tables["logged"].files
        await both.ship()
        assert not [name for name in both.flash.names() if name.endswith(".parquet")]
        assert both.car.store.outbox.state.aside == {}

    asyncio.run(main())


def test_a_file_that_is_damaged_on_the_flash_is_never_sent_and_holds_up_no_other() -> None:
    async def main() -> None:
        both = Both()
        await both.begin()
        ids = [both.flushed(n) for n in range(3)]
        both.flash.inodes[f"{ids[1]}.parquet"].data[40] ^= 1
        await both.car.ship_all(both.turn)
        assert both.found() == [0, 2]
        assert sst_key(DATABASE, "logged", ids[1]) not in both.cloud.bucket.objects
        assert "damaged on the flash" in both.car.store.outbox.state.aside[ids[1]]

    asyncio.run(main())


def test_a_key_that_the_cloud_does_not_know_costs_time_and_no_file_and_bounded_batches() -> None:
    async def main() -> None:
        both = Both(interval_ms=1_000.0, refused_ms_max=300_000.0)
        await both.begin()
        stranger = Edge(both.cloud, EDGE)
        for n in range(20):
            both.flushed(n)
        mistaken = both.cloud.importer(both.manifest, stranger, settings=ImportSettings(create_tables=True)).turn
        for _ in range(3_600):
            both.cloud.clock.now_ms += 1_000
            await both.car.shipper.turn()
            await mistaken()
        counters = both.car.shipper.counters
        assert 5 < counters.batches_refused < 40, "an hour: pauses grow to five minutes"
        assert counters.waiting_files == 20 and counters.aside_files == 0
        await both.car.ship_all(both.turn, turns_max=2_000)
        assert both.found() == list(range(20))

    asyncio.run(main())


def test_a_table_that_the_cloud_does_not_have_yet_holds_up_no_other_and_is_taken_when_it_is_there() -> None:
    async def main() -> None:
        both = Both()
        early = replace(LOGGED, name="early")
        await both.begin(early, LOGGED)
        await both.manifest.commit_one(lambda state: table_created(1, LOGGED))
        edge = Edge(both.cloud, EDGE)
        edge.key = both.car.key
        strict = both.cloud.importer(both.manifest, edge).turn
        for n in range(6):
            both.flushed(n, table="early")
            both.flushed(n)
        for _ in range(60):
            await both.ship()
            await strict()
        assert both.found() == list(range(6)) and both.found("early") == []
        await both.manifest.commit_one(lambda state: table_created(1, early))
        await both.car.ship_all(strict)
        assert both.found("early") == list(range(6))

    asyncio.run(main())


def test_a_file_of_a_schema_that_is_no_relative_is_set_aside_alone() -> None:
    async def main() -> None:
        both = Both()
        other = TableSchema("other", (*COLUMNS, Column(3, "x", ColumnType.STRING)), options=LOGGED.options)
        await both.begin(other, LOGGED)
        theirs = replace(other, columns=(*COLUMNS, Column(3, "x", ColumnType.INT8)))
        await both.manifest.commit_one(lambda state: table_created(1, theirs))
        strange = both.flushed(1, table="other")
        both.flushed(2)
        await both.car.ship_all(both.turn)
        assert both.found() == [2] and both.found("other") == []
        assert "column 'x'" in both.car.store.outbox.state.aside[strange]

    asyncio.run(main())


# ── keeping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_leaves_the_flash_before_its_ack_and_files_stay_as_long_as_asked() -> None:
    async def main() -> None:
        both = Both(keep_local_ms=60_000)
        await both.begin()
        both.flushed(1)
        await both.ship(5)
        assert len(both.batches()) == 1 and len(both.car.store.files()) == 1, "no ack, no removal"
        await both.turn()
        await both.ship()
        assert both.car.shipper.counters.files_acked == 1 and len(both.car.store.files()) == 1
        both.car = both.life(seed=2)
        both.cloud.clock.wall += 59_000
        await both.ship()
        assert len(both.car.store.files()) == 1
        both.cloud.clock.wall += 2_000
        await both.ship()
        assert both.car.store.files() == []

    asyncio.run(main())


def test_while_the_cloud_imports_nothing_batches_and_what_is_sent_are_bounded() -> None:
    async def main() -> None:
        both = Both(batch_files_max=2, files_at_once=2, batches_open_max=3)
        await both.begin()
        for n in range(20):
            both.flushed(n)
        await both.ship(60, step_ms=1_000)
        counters = both.car.shipper.counters
        assert (counters.open_batches, counters.files_sent, counters.waiting_files) == (3, 8, 20)
        assert counters.requests < 40, "and it asks ever more seldom"
        assert counters.oldest_unacked_ms == 59_000
        await both.car.ship_all(both.turn)
        assert both.found() == list(range(20))

    asyncio.run(main())


class _SmallFlash(Flash):
    """With room for so many bytes."""

    room = 1 << 40

    def used(self) -> int:
        return sum(len(inode.data) for inode in self.inodes.values())

    def append(self, name: str, at: int, data: bytes | bytearray) -> None:
        held = len(self.inodes[name].data) if name in self.inodes else 0
        if self.used() + max(0, at + len(data) - held) > self.room:
            self.full_at = {self.calls + 1}
        super().append(name, at, data)


def test_a_full_flash_loses_no_unacked_file_and_gets_room_by_acks() -> None:
    async def main() -> None:
        both = Both(keep_local_ms=10**12)
        both.flash = _SmallFlash()
        await both.begin()
        for n in range(4):
            both.flushed(n)
        await both.car.ship_all(both.turn)
        kept = both.car.store.files()
        assert len(kept) == 4
        ids = [both.flushed(9)]
        both.flash.room = both.flash.used() + 200  # type: ignore[attr-defined]
        ids.append(both.flushed(10))
        assert [meta.file_id for meta in both.car.store.files()] == ids, "what the cloud has gives way"
        both.flash.room = both.flash.used()  # type: ignore[attr-defined]
        await both.car.ship_all(both.turn)
        assert both.found() == [0, 1, 2, 3, 9, 10], "shipping needs notes, for which room is kept"

    asyncio.run(main())


# ── the key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_key_is_said_and_never_used() -> None:
    flash = Flash()
    car = Vehicle(Cloud(), flash)
    assert public_hex(car.key.public_key()) == public_hex(Vehicle(Cloud(), flash).key.public_key())
    data = flash.read("edge.key")
    for at in (15, 40, len(data) - 10):
        flash.inodes["edge.key"].data[at] ^= 2
        with pytest.raises(Corrupt, match="damaged"):
            Vehicle(Cloud(), flash)
        flash.inodes["edge.key"].data[at] ^= 2
