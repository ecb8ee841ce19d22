"""Errors are told apart by the cloud's own code: the same status means "again" in one cloud and "exists" in another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import AlreadyExists, Conflict, Internal, Invalid, NotFound, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.base.registry import open_store
from tests.conformance.stores import KINDS, Kind, start_object_server

WIRE = {kind.name: kind for kind in KINDS if kind.dialect is not None}


def with_fault(kind: Kind, tmp_path: Path, status: int, code: str, ask: Callable[[ObjectStore], Any]) -> YunheError:
    """What `ask` raises when the server answers every request so."""
    assert kind.dialect is not None
    with start_object_server(kind.dialect, tmp_path) as server:

        async def main() -> YunheError:
            store = open_store(server.address(kind.bucket, kind.provider), clock=SystemClock(), rng=SystemRng())
            await store.ensure_bucket()
            server.set_faults({"error_status": status, "error_code": code})
            try:
                with pytest.raises(YunheError) as caught:
                    await ask(store)
                return caught.value
            finally:
                await store.close()

        return asyncio.run(main())


def create(store: ObjectStore) -> Any:
    return store.put("k", b"x", if_absent=True)


@pytest.mark.parametrize(
    ("name", "status", "code", "expected"),
    [
        ("aws", 409, "ConditionalRequestConflict", Unavailable),
        ("aws", 412, "PreconditionFailed", AlreadyExists),
        ("azure", 409, "BlobAlreadyExists", AlreadyExists),
        ("azure", 409, "SnapshotsPresent", Invalid),
        ("aliyun", 409, "FileAlreadyExists", AlreadyExists),
        ("aliyun", 409, "ObjectNotAppendable", Invalid),
        ("gcp", 412, "conditionNotMet", AlreadyExists),
    ],
)
def test_refusal_of_a_create_is_decided_by_code(
    name: str, status: int, code: str, expected: type[YunheError], tmp_path: Path
) -> None:
    error = with_fault(WIRE[name], tmp_path, status, code, create)
    assert isinstance(error, expected)
    assert isinstance(error, Conflict) == issubclass(expected, Conflict)


@pytest.mark.parametrize("name", ["aliyun", "azure", "gcp", "aws", "aws-express"])
def test_missing_bucket_is_never_taken_for_a_missing_object(name: str, tmp_path: Path) -> None:
    kind = WIRE[name]
    assert kind.dialect is not None
    with start_object_server(kind.dialect, tmp_path) as server:

        async def main() -> None:
            store = open_store(server.address(kind.bucket, kind.provider), clock=SystemClock(), rng=SystemRng())
            for ask in (store.get("k"), create(store), store.list("")):
                with pytest.raises(Invalid) as caught:
                    await ask
                assert not isinstance(caught.value, NotFound | Internal)
            await store.close()

        asyncio.run(main())
