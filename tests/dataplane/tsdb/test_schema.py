"""Promises of what both sides of the database agree on: tables that grow without old files becoming unreadable, and
batches that only their own edge can have made.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.contract.codec import from_json, to_json
from dataplane.tsdb.schema.files import FileMeta, ShippedBatch, batch_key, opened, signed, sst_key
from dataplane.tsdb.schema.tables import (
    Column,
    ColumnRole,
    ColumnType,
    TableSchema,
    why_not_older,
    widened,
    widens,
    with_columns,
)
from providers.base.errors import Invalid
from tests.dataplane.tsdb.cloud_import.bucket import CAN

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
FILE = FileMeta("ab" * 16, "can", CAN.fingerprint, 10, 0, 9, 4096, 512, "cd" * 32, "car-1")
BATCH = ShippedBatch("fleet", "car-1", 7, 1_700_000_000_000, (FILE,), (CAN,))


def test_a_schema_survives_its_json() -> None:
    assert from_json(TableSchema, to_json(CAN)) == CAN
    with pytest.raises(Invalid):
        from_json(TableSchema, b"{")


@pytest.mark.parametrize("narrow", ColumnType)
@pytest.mark.parametrize("wide", ColumnType)
def test_a_wider_type_holds_every_value_of_the_narrow_one(narrow: ColumnType, wide: ColumnType) -> None:
    """Judged by numpy's own table of safe casts."""
    numeric = [t for t in ColumnType if pa.types.is_integer(t.arrow) or pa.types.is_floating(t.arrow)]
    if narrow not in numeric or wide not in numeric:
        assert widens(narrow, wide) is (narrow is wide)
        return
    safe = bool(np.can_cast(narrow.arrow.to_pandas_dtype(), wide.arrow.to_pandas_dtype(), "safe"))
    if narrow in (ColumnType.INT64, ColumnType.UINT64) and wide is ColumnType.FLOAT64:
        safe = False  # numpy calls it safe; 2**53 + 1 says otherwise
    assert widens(narrow, wide) is safe


def test_a_table_grows_and_its_old_files_stay_readable() -> None:
    grown = widened(with_columns(CAN, (Column(0, "soc", ColumnType.FLOAT32),)), "speed", ColumnType.FLOAT64)
    assert why_not_older(CAN, grown) is None
    assert [column.id for column in grown.columns] == [1, 2, 3, 4]
    assert (CAN.version, grown.version) == (1, 3)
    assert why_not_older(grown, CAN) == "column 'speed' is float32 now, which does not hold every float64"


def test_a_change_that_old_files_cannot_follow_is_refused() -> None:
    with pytest.raises(Invalid, match="does not hold every float32"):
        widened(CAN, "speed", ColumnType.INT8)
    with pytest.raises(Invalid, match="not a nullable field"):
        with_columns(CAN, (Column(0, "unit", ColumnType.STRING, ColumnRole.TAG),))
    with pytest.raises(Invalid, match="names a column twice"):
        with_columns(CAN, (Column(0, "speed", ColumnType.FLOAT32),))


@pytest.mark.parametrize("name", ["", "a/b", 'a"b', "a\nb", "__own", "x" * 201])
def test_a_name_that_files_or_sql_could_not_carry_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="not allowed"):
        replace(CAN, name=name)


def test_a_batch_of_the_right_edge_opens() -> None:
    assert opened(signed(BATCH, KEY), KEY.public_key(), "fleet", "car-1", 7) == BATCH


def test_a_flipped_bit_in_any_byte_of_a_batch_is_found() -> None:
    data = signed(BATCH, KEY)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(Invalid):
                opened(bytes(flipped), KEY.public_key(), "fleet", "car-1", 7)


@pytest.mark.parametrize(
    ("database", "edge", "number"), [("other", "car-1", 7), ("fleet", "car-2", 7), ("fleet", "car-1", 8)]
)
def test_a_batch_under_anothers_name_is_refused(database: str, edge: str, number: int) -> None:
    with pytest.raises(Invalid, match="lies under the name of"):
        opened(signed(BATCH, KEY), KEY.public_key(), database, edge, number)


def test_another_vehicles_signature_is_refused() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
    with pytest.raises(Invalid, match="not signed with that edge's key"):
        opened(signed(BATCH, stranger), KEY.public_key(), "fleet", "car-1", 7)


def test_names_stay_within_what_every_cloud_takes() -> None:
    assert sst_key("fleet", "räder 1", "ab") == "fleet/sst/r=C3=A4der=201/ab.parquet"
    assert batch_key("fleet", "car-1", 7) == "fleet/shipped/car-1/00000000000000000007"
    assert json.loads(signed(BATCH, KEY).split(b"\n")[1])["number"] == 7
