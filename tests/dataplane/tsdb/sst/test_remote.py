"""Promises of reading some columns of a file in a bucket: little is asked for, and no damage is served."""

from __future__ import annotations

import asyncio
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataplane.tsdb.bench.signals import SIGNALS, WIDE, wide
from dataplane.tsdb.schema.files import sst_key
from dataplane.tsdb.schema.tables import Column, ColumnType, with_columns
from dataplane.tsdb.sst.encoding import Chooser
from dataplane.tsdb.sst.reader import checked_footer
from dataplane.tsdb.sst.remote import read_columns
from dataplane.tsdb.sst.writer import Sst, write_sst
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Corrupt, NotFound
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.dataplane.tsdb.cloud_import.bucket import AT_ONCE


class Asked(MemoryObjectStore):
    """Remembers how many bytes each request asked for."""

    def __init__(self) -> None:
        world = World(LoopClock(), SeededRng(1))
        super().__init__(Process(world, "reader"), MemoryBucket(world, "fleet", faults=AT_ONCE))
        self.lengths: list[int] = []

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, start=start, length=length)
        self.lengths.append(len(data))
        return data


@pytest.fixture(scope="module")
def sst() -> Sst:
    return write_sst(WIDE, wide(1, "v-1", 0, 2_000), file_id="ab" * 16, origin="car-1", chooser=Chooser())


KEY = sst_key("fleet", WIDE.name, "ab" * 16)
"""Where it lies."""
WANTED = ["ts", "walk_3", "status_7"]


def test_of_a_wide_file_only_the_footer_and_the_wanted_columns_are_asked_for(sst: Sst) -> None:
    async def main() -> tuple[pa.Table, list[int]]:
        store = Asked()
        await store.put(KEY, sst.data)
        return await read_columns(store, KEY, sst.meta, WIDE, WANTED), store.lengths

    found, lengths = asyncio.run(main())
    assert found.equals(wide(1, "v-1", 0, 2_000).select(WANTED)) and SIGNALS == 100
    assert lengths[0] == sst.meta.footer_bytes and sum(lengths[1:]) < 0.25 * sst.meta.size


def test_a_column_that_the_file_has_not_is_null_and_costs_no_request(sst: Sst) -> None:
    async def main() -> tuple[pa.Table, int]:
        store = Asked()
        await store.put(KEY, sst.data)
        newer = with_columns(WIDE, (Column(0, "late", ColumnType.INT16),))
        return await read_columns(store, KEY, sst.meta, newer, ["late"]), len(store.lengths)

    found, requests = asyncio.run(main())
    assert found.column("late").null_count == 2_000 and requests == 1


def test_no_flipped_bit_of_a_footer_passes(sst: Sst) -> None:
    footer = sst.data[-sst.meta.footer_bytes :]
    rng = random.Random(2)
    assert checked_footer(footer, sst.meta).num_rows == 2_000
    for at in range(len(footer)):
        flipped = bytearray(footer)
        flipped[at] ^= 1 << rng.randrange(8)
        with pytest.raises(Corrupt):
            checked_footer(bytes(flipped), sst.meta)


def test_a_file_that_changed_or_went_is_said_and_not_served(sst: Sst) -> None:
    async def main() -> None:
        store = Asked()
        with pytest.raises(NotFound):
            await read_columns(store, KEY, sst.meta, WIDE, WANTED)
        chunk = (
            pq.read_metadata(pa.BufferReader(sst.data))
            .row_group(0)
            .column([column.name for column in WIDE.columns].index("walk_3"))
        )
        for at in (chunk.data_page_offset + chunk.total_compressed_size // 2, sst.meta.size - 100):
            damaged = bytearray(sst.data)
            damaged[at] ^= 4
            await store.put(KEY, bytes(damaged))
            with pytest.raises(Corrupt):
                await read_columns(store, KEY, sst.meta, WIDE, WANTED)
        await store.put(KEY, sst.data[:-1])
        with pytest.raises(Corrupt):
            await read_columns(store, KEY, sst.meta, WIDE, WANTED)

    asyncio.run(main())
