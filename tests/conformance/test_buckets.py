"""A bucket comes and goes by `providers.base.buckets`, with each cloud's own SDK, over the lab and over the judges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from providers.base.buckets import Bucket, open_bucket
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Conflict
from tests.conformance.stores import Subject

pytestmark = pytest.mark.needs("wire")

Body = Callable[[Bucket], Awaitable[None]]


def run(subject: Subject, body: Body) -> None:
    """Over a bucket of its own: that of the other tests is not touched."""
    if not subject.kind.creates_bucket:
        pytest.skip("the bucket is given, and others are not made there")
    address = replace(subject.address, bucket=f"other-{subject.kind.bucket}")

    async def main() -> None:
        bucket = open_bucket(address, clock=SystemClock(), rng=SystemRng())
        try:
            await body(bucket)
        finally:
            await bucket.close()

    asyncio.run(main())


def test_a_bucket_is_removed_when_it_is_empty_and_can_be_made_again(subject: Subject) -> None:
    async def body(bucket: Bucket) -> None:
        assert not await bucket.bucket_exists()
        await bucket.ensure_bucket()
        assert await bucket.bucket_exists()
        await bucket.put("folder/k", b"kept")
        with pytest.raises(Conflict, match="is not empty"):
            await bucket.remove_bucket()
        assert await bucket.get("folder/k") == b"kept"
        await bucket.delete(["folder/k"])
        await bucket.remove_bucket()
        assert not await bucket.bucket_exists()
        await bucket.remove_bucket()
        await bucket.ensure_bucket()
        assert await bucket.list("") == []
        await bucket.remove_bucket()

    run(subject, body)
