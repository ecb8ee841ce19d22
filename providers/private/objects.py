"""An S3-compatible store of one's own: the S3 implementation at the given endpoint."""

from __future__ import annotations

from providers.aws.objects import open_store as open_s3
from providers.base.blocking import StoreSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.objects import ObjectStore
from providers.base.registry import StoreAddress


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng, settings: StoreSettings | None = None) -> ObjectStore:
    """Open the bucket at `address`; nothing is sent yet.

    Raises:
        Invalid: no endpoint, or unreadable credentials.
    """
    if address.endpoint is None:
        raise Invalid("a private cloud's object store needs an endpoint", hint="for example https://s3.example.org")
    return open_s3(address, clock=clock, rng=rng, settings=settings, conditional_copies=False)
