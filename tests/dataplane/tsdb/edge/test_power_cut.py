"""Promises of an edge's rows through power cuts, full flash and flash that errs: what was acked as durable is there
once, and nothing that was never written.

The judge is the list of writes itself. Rows carry numbers, so that a row lost, doubled or made up is seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest

from dataplane.tsdb.edge.files import DiskFiles, Files
from dataplane.tsdb.edge.intake import Put
from dataplane.tsdb.edge.store import EdgeStore
from dataplane.tsdb.edge.wal import PACKED_FROM_BYTES, PACKED_TO_BYTES, Part, decode_parts, encode_parts
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    TableOptions,
    TableSchema,
    WalSync,
    with_columns,
)
from providers.base.clock import SeededRng
from providers.base.errors import Corrupt, Full, Invalid, Unavailable
from tests.dataplane.tsdb.edge.flash import Flash, PowerCut

COLUMNS = (
    Column(1, "ts", ColumnType.TIMESTAMP_MS, ColumnRole.TIME, nullable=False),
    Column(2, "n", ColumnType.INT64, nullable=False),
)
LOGGED = TableSchema("logged", COLUMNS, options=TableOptions(append_mode=True))
UNLOGGED = TableSchema("unlogged", COLUMNS, options=TableOptions(append_mode=True, wal=WalSync.OFF))


def rows(*numbers: int, at: int | None = None) -> pa.Table:
    times = [at if at is not None else n for n in numbers]
    return pa.table({"ts": pa.array(times, pa.timestamp("ms")), "n": pa.array(numbers, pa.int64())})


def opened(files: Files, seed: int = 1, segment_bytes: int = 2_000) -> EdgeStore:
    return EdgeStore(files, "car-1", SeededRng(seed), segment_bytes=segment_bytes)


def begun(schema: TableSchema) -> tuple[Flash, EdgeStore]:
    flash = Flash()
    store = opened(flash)
    store.create_table(schema)
    return flash, store


def numbers(store: EdgeStore, table: str) -> list[int]:
    found: list[int] = store.scan(table, ["n"]).column("n").to_pylist()
    return sorted(found)


@dataclass
class Drive:
    """One life of an application on a flash, and what it was told."""

    written: dict[str, set[int]] = field(default_factory=lambda: {"logged": set(), "unlogged": set()})
    durable: dict[str, set[int]] = field(default_factory=lambda: {"logged": set(), "unlogged": set()})
    trying: dict[str, set[int]] = field(default_factory=lambda: {"logged": set(), "unlogged": set()})
    next: int = 0

    def live(self, store: EdgeStore, rng: random.Random, steps: int) -> None:
        for schema in (LOGGED, UNLOGGED):
            if schema.name not in {table.name for table in store.tables}:
                store.create_table(schema)
        for _ in range(steps):
            table = rng.choice(["logged", "unlogged"])
            match rng.random():
                case x if x < 0.6:
                    batch = list(range(self.next, self.next + rng.randint(1, 8)))
                    self.next = batch[-1] + 1
                    self.trying[table] |= set(batch)
                    store.write(table, rows(*batch))
                    self.written[table] |= set(batch)
                case x if x < 0.8:
                    store.sync()
                    self.durable["logged"] |= self.written["logged"]
                case _:
                    store.flush(table)
                    self.durable[table] |= self.written[table]

    def judge(self, store: EdgeStore) -> None:
        present = {table.name for table in store.tables}
        for name in ("logged", "unlogged"):
            found = numbers(store, name) if name in present else []
            assert len(found) == len(set(found)), f"{name}: rows appear twice"
            assert self.durable[name] <= set(found), f"{name}: lost {sorted(self.durable[name] - set(found))[:5]}"
            assert set(found) <= self.trying[name], f"{name}: nobody wrote {sorted(set(found) - self.trying[name])[:5]}"
            # What came through the cut is part of the past now, and has to stay.
            self.written[name], self.durable[name], self.trying[name] = set(found), set(found), set(found)


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_at_every_call_loses_nothing_durable_and_doubles_nothing(seed: int) -> None:
    def life(flash: Flash, drive: Drive, cut_at: int) -> bool:
        rng = random.Random(seed * 1_000)
        flash.cut_at = cut_at
        try:
            drive.live(opened(flash, seed), rng, 60)
        except PowerCut:
            return True
        return False

    dry = Flash()
    assert not life(dry, Drive(), 0)
    assert dry.calls > 60
    for cut_at in range(1, dry.calls + 1):
        flash, drive, rng = Flash(), Drive(), random.Random(seed * 7_919 + cut_at)
        assert life(flash, drive, cut_at)
        # A second cut soon after, in the recovery itself or a little later.
        for again in (rng.randint(1, 30), 0):
            # Or the process alone died: what it wrote is there, and not durable yet.
            if rng.random() < 0.7:
                flash.cut(rng)
            flash.calls, flash.cut_at = 0, again
            try:
                store = opened(flash, rng.randint(1, 10**9))
                drive.judge(store)
                drive.live(store, rng, 8)
            except PowerCut:
                continue
        flash.cut(rng)
        drive.judge(opened(flash, 5))


@dataclass
class Changes:
    """One application that changes a table, and what it was told. `tried`: numbers that may be there."""

    acked: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    emptying: bool = False
    life: int = 1

    def live(self, store: EdgeStore, rng: random.Random) -> None:
        for step in range(14):
            if "logged" not in store:
                store.create_table(LOGGED)
            match rng.choice(["write", "write", "truncate", "drop", "flush", "grow"]):
                case "write":
                    self.tried.add(100 * self.life + step)
                    store.write("logged", rows(100 * self.life + step))
                    store.sync()
                    self.acked.add(100 * self.life + step)
                case "truncate" | "drop" as change:
                    self.emptying = True
                    store.empty_table("logged", drop=change == "drop")
                    self.acked, self.tried, self.emptying = set(), set(), False
                case "grow":
                    schema = store.table("logged")
                    store.change_table(with_columns(schema, (Column(0, f"x{schema.version}", ColumnType.INT8),)))
                case _:
                    store.flush("logged")

    def judge(self, store: EdgeStore) -> None:
        found = set(numbers(store, "logged")) if "logged" in store else set()
        assert found <= self.tried, f"rows came back: {found - self.tried}"
        if found or not self.emptying:
            assert self.acked <= found, f"lost {self.acked - found}"
        self.acked, self.tried, self.emptying, self.life = set(found), set(found), False, self.life + 1


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_every_call_of_a_change_of_tables_leaves_the_old_or_the_new(seed: int) -> None:
    """A table is written, grows, is emptied, dropped and made anew: rows that a finished change removed stay away, and
    others are there."""
    cut_at, ended = 0, False
    while not ended:
        cut_at += 1
        flash, changes, rng = Flash(), Changes(), random.Random(seed * 7_919 + cut_at)
        for first, at in ((True, cut_at), (False, rng.randint(1, 40))):
            flash.calls, flash.cut_at = 0, at
            try:
                changes.live(opened(flash, 100 + first, segment_bytes=600), random.Random(seed) if first else rng)
                ended = ended or first
            except PowerCut:
                flash.cut(rng)
            flash.cut_at = 0
            changes.judge(opened(flash, 77, segment_bytes=600))
    assert cut_at > 40


def test_without_a_log_a_power_cut_loses_exactly_what_was_not_flushed() -> None:
    flash, store = begun(UNLOGGED)
    store.write("unlogged", rows(1, 2))
    store.flush("unlogged")
    store.write("unlogged", rows(3))
    store.sync()
    flash.cut(random.Random(1))
    assert numbers(opened(flash), "unlogged") == [1, 2]


def test_a_full_flash_refuses_and_takes_up_again_when_there_is_room() -> None:
    flash, store = begun(LOGGED)
    store.write("logged", rows(1))
    flash.full_at = {flash.calls + 1}
    with pytest.raises(Full):
        store.write("logged", rows(2))
    store.write("logged", rows(3))
    store.sync()
    flash.full_at = {flash.calls + 1}
    with pytest.raises(Full):
        store.flush("logged")
    assert numbers(store, "logged") == [1, 3] and store.files() == []
    store.write("logged", rows(4))
    assert store.flush("logged") is not None
    flash.cut(random.Random(1))
    assert numbers(opened(flash), "logged") == [1, 3, 4]


def test_after_a_sync_that_failed_nothing_is_acked_until_the_store_is_opened_anew() -> None:
    flash, store = begun(LOGGED)
    store.write("logged", rows(1))
    flash.sync_fails_at = {flash.calls + 1}
    for _ in range(2):
        with pytest.raises(Unavailable, match="in doubt"):
            store.sync()
    with pytest.raises(Unavailable):
        store.write("logged", rows(2))
    again = opened(flash)
    assert set(numbers(again, "logged")) <= {1}
    again.write("logged", rows(3))
    again.sync()


def test_memory_is_bounded_and_says_which_tables_to_flush() -> None:
    small = replace(LOGGED, options=replace(LOGGED.options, memtable_bytes_max=20_000))
    store = opened(Flash(), segment_bytes=1 << 20)
    store.create_table(small)
    written = 0
    with pytest.raises(Full):
        for written in range(10_000):
            store.write("logged", rows(*range(written * 10, written * 10 + 10)))
    assert store.due() == ["logged"] and 40_000 <= store.memory_bytes < 45_000
    store.flush("logged")
    assert (store.due(), store.memory_bytes, len(numbers(store, "logged"))) == ([], 0, written * 10)


def test_segments_of_the_log_go_when_their_rows_are_in_files_and_not_before() -> None:
    flash = Flash()
    store = opened(flash, segment_bytes=500)
    for name in ("logged", "other"):
        store.create_table(replace(LOGGED, name=name))
    store.write("other", rows(0))
    for number in range(1, 40):
        store.write("logged", rows(number))
    store.flush("logged")
    assert len([name for name in flash.names() if name.startswith("wal-")]) > 10, (
        "the other table's row needs the first"
    )
    store.flush("other")
    assert len([name for name in flash.names() if name.startswith("wal-")]) == 1


def test_deletes_and_later_writes_win_over_files_and_memory() -> None:
    flash = Flash()
    store = opened(flash)
    store.create_table(replace(LOGGED, options=TableOptions()))
    store.write("logged", rows(1, 2, 3))
    store.flush("logged")
    store.write("logged", rows(20, at=2))
    store.write("logged", rows(3).select(["ts"]), deletes=True)
    store.sync()
    assert numbers(store, "logged") == [1, 20]
    store.flush("logged")
    flash.cut(random.Random(3))
    assert numbers(opened(flash), "logged") == [1, 20]
    with pytest.raises(Invalid, match="appends"):
        appends = opened(Flash())
        appends.create_table(LOGGED)
        appends.write("logged", rows(1).select(["ts"]), deletes=True)


def test_a_table_grows_and_its_older_rows_stay() -> None:
    flash, store = begun(LOGGED)
    store.write("logged", rows(1))
    store.change_table(with_columns(LOGGED, (Column(0, "more", ColumnType.STRING),)))
    store.write("logged", rows(2).append_column("more", pa.array(["x"])))
    store.sync()
    flash.cut(random.Random(2))
    assert opened(flash).scan("logged").select(["n", "more"]).to_pylist() == [
        {"n": 1, "more": None},
        {"n": 2, "more": "x"},
    ]
    with pytest.raises(Invalid, match="cannot change"):
        store.change_table(replace(LOGGED, columns=COLUMNS[:1], version=3))


def test_a_turn_of_many_tables_is_packed_in_the_log_and_whole_after_a_power_cut() -> None:
    flash = Flash()
    store = opened(flash, segment_bytes=1 << 20)
    names = [f"t{at}" for at in range(40)]
    for name in names:
        store.create_table(replace(LOGGED, name=name))
    for first in (0, 20):
        turn = [Put(name, rows(*range(first, first + 20))) for name in names]
        assert store.take([turn]) == [None]
        store.sync()
    store.write("t0", rows(40))
    store.sync()
    assert store.logged_bytes < store.taken_bytes / 3
    flash.cut(random.Random(5))
    again = opened(flash)
    assert [numbers(again, name) for name in names] == [list(range(41 if name == "t0" else 40)) for name in names]


def test_what_packing_does_not_make_smaller_is_logged_as_it_is() -> None:
    rng = random.Random(6)
    for size, packed in ((100, False), (PACKED_FROM_BYTES, True), (PACKED_TO_BYTES, False)):
        part = Part("t", "f" * 16, True, pa.py_buffer(bytes(size)))
        payload = b"".join(map(bytes, encode_parts([part])))
        assert (len(payload) < size) is packed and list(decode_parts(payload)) == [part]
    noise = Part("t", "f" * 16, False, pa.py_buffer(rng.randbytes(PACKED_FROM_BYTES)))
    payload = b"".join(map(bytes, encode_parts([noise])))
    assert len(payload) > PACKED_FROM_BYTES and list(decode_parts(payload)) == [noise]


@pytest.mark.parametrize("segment_bytes", [1_000, 1 << 20], ids=["a closed segment", "the last one"])
def test_a_damaged_record_of_the_log_costs_no_other_and_is_said(
    segment_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    flash = Flash()
    store = opened(flash, segment_bytes=segment_bytes)
    store.create_table(LOGGED)
    for number in range(6):
        store.write("logged", rows(number))
    store.sync()
    flash.inodes["wal-00000000000000000001"].data[450] ^= 1
    assert numbers(opened(flash), "logged") == [0, 2, 3, 4, 5]
    assert "records 2 to 2 cannot be read" in caplog.text


def test_damage_in_the_catalog_is_said_and_in_a_file_never_served() -> None:
    flash, store = begun(LOGGED)
    store.write("logged", rows(*range(50)))
    meta = store.flush("logged")
    assert meta is not None
    name = f"{meta.file_id}.parquet"
    flash.inodes[name].data[meta.size // 3] ^= 1
    with pytest.raises(Corrupt):
        opened(flash).scan("logged")
    flash.inodes[name].data[meta.size // 3] ^= 1
    flash.inodes["catalog"].data[30] ^= 1
    with pytest.raises(Corrupt, match="catalog"):
        opened(flash)


def test_on_a_real_disk_a_shipped_file_is_forgotten_and_the_rest_is_found_again(tmp_path: Path) -> None:
    files = DiskFiles(tmp_path / "db")
    store = opened(files)
    store.create_table(LOGGED)
    store.write("logged", rows(1, 2))
    first = store.flush("logged")
    store.write("logged", rows(3))
    second = store.flush("logged")
    store.write("logged", rows(4))
    store.sync()
    assert first is not None and second is not None and second.sequence > first.sequence
    store.forget([first.file_id])
    files.close()
    again = opened(DiskFiles(tmp_path / "db"))
    assert numbers(again, "logged") == [3, 4] and [m.file_id for m in again.files()] == [second.file_id]
    assert not (tmp_path / "db" / f"{first.file_id}.parquet").exists()
