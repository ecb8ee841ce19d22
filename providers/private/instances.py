"""A private cloud has no compute API here: its hosts are those that are named in the spec, and agents answer for
themselves."""

from __future__ import annotations

from typing import NoReturn

from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid
from providers.base.registry import AccountAddress


def open_instances(address: AccountAddress, *, clock: Clock, rng: Rng) -> NoReturn:
    """
    Raises:
        Invalid: always.
    """
    raise Invalid("a private cloud has no compute API", hint="name its hosts in the spec")
