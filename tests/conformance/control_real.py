"""A real cloud's control API as the subject: `make conformance CLOUD=aws`, beside what `judges/real.py` asks for.

    YUNHE_CLOUD                      aliyun, azure, gcp or aws
    YUNHE_CONFORMANCE_REGION         where
    YUNHE_CONFORMANCE_CREDENTIALS    optional: as `AccountAddress.credentials_file` takes it
    YUNHE_CONFORMANCE_ENDPOINT       optional: another endpoint than the cloud's own
    YUNHE_CONFORMANCE_ACCOUNT        Azure: subscription, GCP: project
    YUNHE_CONFORMANCE_GROUP          Azure: resource group
    YUNHE_CONFORMANCE_ZONES          three zones of the region, divided by commas; without them no volumes are made
    YUNHE_CONFORMANCE_INSTANCES      ids of machines that volumes may be attached to for a while, divided by commas: two
                                     in the first zone or, where the cloud has zone-redundant volumes, in the first two
    YUNHE_CONFORMANCE_DNS_ZONE       a zone that records may be set in, all under a name of the run's own

Volumes and records of a run carry its id in their names; nothing else is changed, and they are removed after each test,
whatever became of it. Faults, quotas and killed servers cannot be had there: those clauses skip.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from providers.base.blocking import StoreSettings
from providers.base.instances import Instance
from providers.base.registry import AccountAddress
from providers.base.volume_api import VolumeSpec
from providers.base.waiting import WaitSettings
from tests.conformance.control import DOMAIN, KINDS, REAL, RUN, ZONE, ControlKind, ControlServer, apart

PATIENT = WaitSettings(wait_timeout_ms=300_000, poll_ms=500, poll_ms_max=5_000)
_NEEDS = {
    "volumes": "YUNHE_CONFORMANCE_INSTANCES",
    "instances": "YUNHE_CONFORMANCE_ZONES",
    "dns": "YUNHE_CONFORMANCE_DNS_ZONE",
}


def _given(name: str) -> str:
    return os.environ.get(f"YUNHE_CONFORMANCE_{name}", "")


def kinds(what: str) -> list[ControlKind]:
    """The account that the environment describes, if it says enough for that part."""
    like = next((kind for kind in KINDS if kind.provider == REAL), None)
    if like is None or not os.environ.get(_NEEDS[what]):
        return []
    zones = tuple(_given("ZONES").split(",")) if _given("ZONES") else like.zones
    if len(zones) != 3:
        raise ValueError("YUNHE_CONFORMANCE_ZONES names three zones, divided by commas")

    def moved(spec: VolumeSpec) -> VolumeSpec:
        return replace(spec, zones=tuple(zones[like.zones.index(zone)] for zone in spec.zones))

    account, group = _given("ACCOUNT") or like.account, _given("GROUP") or like.group
    return [
        replace(
            like,
            region=_given("REGION") or like.region,
            zones=(zones[0], zones[1], zones[2]),
            shared=moved(like.shared),
            single=moved(like.single),
            account=account,
            group=group,
            judge="real",
        )
    ]


class RealCloud(ControlServer):
    """The face of the lab's server over an account: nothing to start, and nothing to end."""

    settings = StoreSettings()
    wait = PATIENT

    def address(self, credentials: Path | None = None) -> AccountAddress:
        kind = self.kind
        file = str(credentials) if credentials else _given("CREDENTIALS") or None
        return AccountAddress(kind.provider, kind.region, kind.account, kind.group, _given("ENDPOINT") or None, file)

    async def machines(self, zone: int) -> list[Instance]:
        instances = self.open_instances()
        try:
            found = await instances.describe(_given("INSTANCES").split(","))
        finally:
            await instances.close()
        return sorted((i for i in found if i.zone == self.kind.zones[zone]), key=lambda i: i.id)

    def disks(self) -> list[dict[str, Any]]:
        async def look() -> list[dict[str, Any]]:
            api = self.open_volumes()
            try:
                found = [volume for volume in await api.describe() if volume.name.startswith(f"{RUN}-")]
            finally:
                await api.close()
            return [
                {
                    "spec": {"id": volume.id, "name": volume.name},
                    "links": [{"instance": each.instance} for each in volume.attachments],
                }
                for volume in found
            ]

        return list(apart(look()))

    def requests(self) -> list[tuple[str, str, int]]:
        return []  # what is sent to a cloud is not listed anywhere

    def set_faults(self, *rules: dict[str, Any], seed: int = 0) -> None:
        if rules:
            pytest.skip("a real cloud takes no fault rules")

    def admin(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        pytest.skip(f"a real cloud has no {what} to set")

    def kill(self) -> None:
        pytest.skip("a real cloud is not killed")

    def close(self) -> None:
        apart(self._sweep())

    async def _sweep(self) -> None:
        """Remove what this run has made, and nothing else."""
        if _given("INSTANCES"):
            api = self.open_volumes()
            try:
                for volume in [volume for volume in await api.describe() if volume.name.startswith(f"{RUN}-")]:
                    for attachment in volume.attachments:
                        await api.detach(volume.id, attachment.instance, force=self.kind.forced_detach)
                    await api.delete(volume.id)
            finally:
                await api.close()
        if ZONE:
            dns = self.open_dns()
            try:
                for record in [record for record in await dns.list() if record.name.endswith(DOMAIN)]:
                    await dns.delete(record)
            finally:
                await dns.close()


def start(tmp_path: Path) -> RealCloud:
    """The account."""
    for what in ("volumes", "instances", "dns"):
        for kind in kinds(what):
            return RealCloud(kind, tmp_path)
    raise AssertionError("no part of a real cloud's run is configured")
