"""The race that tells whether a bucket keeps create-if-absent, run against buckets that break it as some have."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from controlplane.apply.probe import WRITERS, probe_conditional_create
from providers.base.clock import SeededRng
from providers.base.errors import AlreadyExists, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectInfo
from tests.sim.virtualtime import run


class Bucket:
    """A right bucket; subclasses break one thing each."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = 0

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self.puts += 1
        await asyncio.sleep(0)
        if if_absent and key in self.objects:
            raise AlreadyExists(key)
        self.objects[key] = data

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(await self.get(key)))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        return []

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        raise Invalid("cannot append")

    async def close(self) -> None:
        pass


class ChecksThenWrites(Bucket):
    """A gateway that checks, and writes later: concurrent writers all win."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        taken = key in self.objects
        await asyncio.sleep(0.01)
        if if_absent and taken:
            raise AlreadyExists(key)
        self.objects[key] = data


class IgnoresTheCondition(Bucket):
    """OSS with versioning on."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self.objects[key] = data


class OverwritesAndDenies(Bucket):
    """Says that the name was taken, and has written all the same."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        taken = key in self.objects
        self.objects[key] = data
        if if_absent and taken:
            raise AlreadyExists(key)


class LosesAnswers(Bucket):
    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await super().put(key, data, if_absent=if_absent)
        raise OutcomeUnknown("the answer was lost")


class Missing(Bucket):
    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        raise NotFound("no such bucket")


def test_a_right_bucket_passes_and_nothing_is_left_in_it() -> None:
    bucket = Bucket()
    assert "one winner of 8" in run(probe_conditional_create(bucket, rng=SeededRng(1)))
    assert bucket.puts >= 2 * WRITERS
    assert bucket.objects == {}


@pytest.mark.parametrize("broken", [ChecksThenWrites, IgnoresTheCondition, OverwritesAndDenies])
def test_a_bucket_that_breaks_create_if_absent_is_refused(broken: type[Bucket]) -> None:
    with pytest.raises(Invalid, match=r"does not keep create-if-absent"):
        run(probe_conditional_create(broken(), rng=SeededRng(1)))


def test_lost_answers_prove_nothing_and_are_tried_again_rather_than_judged() -> None:
    with pytest.raises(Unavailable):
        run(probe_conditional_create(LosesAnswers(), rng=SeededRng(1)))


def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(Invalid, match="no such bucket"):
        run(probe_conditional_create(Missing(), rng=SeededRng(1)))
