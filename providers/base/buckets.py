"""A bucket as what creates and removes it sees it. A data plane at work needs none of this."""

from __future__ import annotations

from typing import Protocol, cast

from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress, open_store


class Bucket(ObjectStore, Protocol):
    """An object store whose bucket comes and goes. Each cloud's adapter is one."""

    async def bucket_exists(self) -> bool:
        """Whether there is such a bucket, and these credentials may see it."""
        ...

    async def remove_bucket(self) -> None:
        """Remove the bucket; one that is gone is passed over. Never what is in it.

        Raises:
            Conflict: it is not empty.
        """
        ...


def open_bucket(address: StoreAddress, *, clock: Clock, rng: Rng) -> Bucket:
    """Open the bucket at `address`; nothing is sent yet.

    Raises:
        Invalid: as `open_store`.
    """
    return cast(Bucket, open_store(address, clock=clock, rng=rng))


def not_empty(bucket: str) -> Conflict:
    """What every cloud's refusal to remove a bucket with objects becomes."""
    return Conflict(f"bucket {bucket} is not empty", hint="delete what it holds first", bucket=bucket)
