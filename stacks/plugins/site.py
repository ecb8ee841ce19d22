"""The emulated cloud that a plugin works on: found by provider and region in the lab of a state directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from providers.base.buckets import Bucket, open_bucket
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable
from providers.base.registry import AccountAddress, StoreAddress, open_volume_api
from providers.base.volume_api import VolumeApi
from providers.lab.admin import Admin
from providers.lab.running import RunningCloud, RunningLab
from stacks.plugins.shelf import Shelf

T = TypeVar("T")

EXAMPLES = {
    "aws": "aws-use1=aws:us-east-1:use1-az4,use1-az5",
    "azure": "azure-eus=azure:eastus:1,2",
    "gcp": "gcp-usc1=gcp:us-central1:us-central1-a,us-central1-b",
    "aliyun": "aliyun-hz=aliyun:cn-hangzhou:cn-hangzhou-h,cn-hangzhou-i",
}
"""What to write where a provider's cloud is missing."""


@dataclass(frozen=True, slots=True)
class Site:
    """One emulated cloud, and what the plugins keep beside it."""

    cloud: RunningCloud
    shelf: Shelf
    clock: Clock
    rng: Rng

    @property
    def region(self) -> str:
        return self.cloud.address.region

    @property
    def zones(self) -> tuple[str, ...]:
        return self.cloud.address.zones

    @property
    def control(self) -> AccountAddress:
        """
        Raises:
            Unavailable: the cloud's control API was never started.
        """
        address = self.cloud.address.control
        if address is None:
            hint = f"yunhe lab up --cloud {EXAMPLES[self.cloud.address.provider]}"
            raise Unavailable(f"the control API of {self.cloud.name} does not run", hint=hint)
        return address

    @property
    def account(self) -> str:
        """The subscription or project; of the others a number that looks like one."""
        return self.control.account or "000000000000"

    @property
    def admin(self) -> Admin:
        """
        Raises:
            Unavailable: the control API does not run.
        """
        found = self.cloud.admins().get("control")
        if found is None:
            raise Unavailable(f"the control API of {self.cloud.name} does not run", hint="start it with yunhe lab up")
        return found

    def own_buckets(self) -> set[str]:
        """Those that the lab has from the start."""
        address = self.cloud.address
        return {address.bucket.bucket, *(store.bucket for store in address.express.values())}

    def with_bucket(self, name: str, ask: Callable[[Bucket], Awaitable[T]]) -> T:
        """Ask the cloud's object store, by its own SDK."""
        address: StoreAddress = replace(self.cloud.address.bucket, bucket=name)

        async def main() -> T:
            bucket = open_bucket(address, clock=self.clock, rng=self.rng)
            try:
                return await ask(bucket)
            finally:
                await bucket.close()

        return asyncio.run(main())

    def with_volumes(self, ask: Callable[[VolumeApi], Awaitable[T]]) -> T:
        """Ask the cloud's volume API, by its own SDK."""

        async def main() -> T:
            volumes = open_volume_api(self.control, clock=self.clock, rng=self.rng)
            try:
                return await ask(volumes)
            finally:
                await volumes.close()

        return asyncio.run(main())


def find_site(provider: str, state_dir: Path, region: str | None) -> Site:
    """The emulated cloud of that provider; with several, that of the region, or the one that
    `YUNHE_LAB_CLOUD_<PROVIDER>` names.

    Raises:
        Invalid: there is none, or more than one fits.
    """
    clock, rng = SystemClock(), SystemRng()
    chosen = os.environ.get(f"YUNHE_LAB_CLOUD_{provider.upper()}")
    every = [one for one in RunningLab(state_dir, clock=clock, rng=rng).clouds() if one.address.provider == provider]
    found = [one for one in every if one.name == chosen] if chosen else every
    if region and not chosen and len(found) > 1:
        found = [one for one in found if one.address.region == region]
    if not found:
        asked = f" named {chosen}" if chosen else f" in {region}" if every and region else ""
        hint = f"yunhe lab up --cloud {EXAMPLES[provider]}, or set YUNHE_STATE_DIR to where the lab is"
        raise Invalid(f"the lab in {state_dir} has no cloud of {provider}{asked}", hint=hint)
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise Invalid(
            f"the lab in {state_dir} has several clouds of {provider}: {names}",
            hint=f"set the region in the stack's configuration, or YUNHE_LAB_CLOUD_{provider.upper()}",
        )
    return Site(found[0], Shelf(state_dir.absolute() / "lab" / found[0].name), clock, rng)
