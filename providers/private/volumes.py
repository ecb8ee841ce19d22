"""A private cloud has no volume API here. Its capabilities name no class of volume either, so no mode that needs one is
chosen for it; whoever asks all the same is told."""

from __future__ import annotations

from typing import NoReturn

from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.registry import AccountAddress


def open_volume_api(address: AccountAddress, *, clock: Clock, rng: Rng) -> NoReturn:
    """
    Raises:
        Invalid: always.
    """
    raise Invalid(
        "a private cloud has no block-volume API",
        hint="use the object WAL there: an S3-compatible store with conditional puts is all that it needs",
    )
