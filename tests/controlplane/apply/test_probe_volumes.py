"""Probing a cloud's volumes through the real SDKs, against control servers that behave as one or the other of two
documents says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.apply.probe_volumes import PROBE_NAME, VolumeFinding, probe_two_zones
from controlplane.cli.main import run
from controlplane.plan.wal import Wants, choose_wal
from providers.base.capabilities import capabilities_of, overlay
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable
from providers.base.registry import StoreAddress, open_store
from providers.base.volume_api import CloudVolume
from tests.conformance.control import KINDS, ControlKind, ControlServer, start_control_server
from tests.conformance.stores import start_object_server

REGIONAL = {kind.provider: kind for kind in KINDS if kind.provider in ("aliyun", "azure", "gcp")}


def probe(server: ControlServer, zones: Sequence[str]) -> tuple[VolumeFinding, Sequence[CloudVolume]]:
    """The finding, and the volumes that are there afterwards."""
    kind = server.kind
    block = capabilities_of(kind.provider, kind.region, tuple(zones)).regional_blocks[0]

    async def main() -> tuple[VolumeFinding, Sequence[CloudVolume]]:
        api, instances = server.open_volumes(), server.open_instances()
        try:
            return await probe_two_zones(api, instances, block, zones, rng=SystemRng()), await api.describe()
        finally:
            await instances.close()
            await api.close()

    return asyncio.run(main())


def refusing() -> ControlKind:
    """Aliyun as its ECS page has it: several instances, in one zone."""
    kind = REGIONAL["aliyun"]
    return replace(kind, credentials={**kind.credentials, "cross_zone_sharing": False})


@pytest.mark.parametrize("provider", REGIONAL)
def test_a_cloud_that_shares_across_zones_is_found_to_and_nothing_stays(provider: str, tmp_path: Path) -> None:
    kind = REGIONAL[provider]
    with start_control_server(kind, tmp_path) as server:
        found, volumes = probe(server, kind.zones[:2])
    assert (found.probed.regional_block, found.probed.cross_zone_multi_attach, found.left) == (True, True, None)
    assert list(volumes) == []


def test_a_refused_second_zone_is_a_finding_that_leads_to_row_2(tmp_path: Path) -> None:
    kind = refusing()
    with start_control_server(kind, tmp_path) as server:
        found, volumes = probe(server, kind.zones[:2])
    assert found.probed.cross_zone_multi_attach is False
    assert "refused in zone" in found.sentence
    assert list(volumes) == []
    facts = capabilities_of(kind.provider, kind.region, kind.zones[:2])
    choice = choose_wal(overlay(facts, found.probed, "probed"), Wants())
    assert (choice.row, choice.failover_needs_cloud_api) == ("2", True)


def test_an_api_that_does_not_answer_is_no_finding(tmp_path: Path) -> None:
    kind = REGIONAL["aliyun"]
    with start_control_server(kind, tmp_path) as server:
        status, code = kind.failing
        server.set_faults({**kind.attaches, "error_status": status, "error_code": code})
        with pytest.raises(Unavailable):
            probe(server, kind.zones[:2])
        server.set_faults()

        async def left() -> Sequence[CloudVolume]:
            api = server.open_volumes()
            try:
                return await api.describe()
            finally:
                await api.close()

        assert [volume.name for volume in asyncio.run(left()) if volume.name.startswith(PROBE_NAME)] == []


def test_without_machines_in_two_zones_nothing_is_made(tmp_path: Path) -> None:
    kind = REGIONAL["azure"]
    with start_control_server(kind, tmp_path) as server, pytest.raises(Invalid, match="two of the zones"):
        probe(server, kind.zones[:1])


def test_probe_command_ends_with_what_to_write_into_the_cloud(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = refusing()
    with (
        start_control_server(kind, tmp_path / "control") as control,
        start_object_server("aliyun", tmp_path / "objects") as objects,
    ):
        spec = tmp_path / "cloud.yaml"
        spec.write_text(
            json.dumps(
                {
                    "apiVersion": "yunhe.io/v1alpha1",
                    "kind": "Cloud",
                    "metadata": {"name": "hz"},
                    "spec": {
                        "provider": "aliyun",
                        "region": kind.region,
                        "zones": list(kind.zones[:2]),
                        "target": "real",
                        "real": {
                            "bucket": "yunhe-hz",
                            "endpoint": objects.endpoint,
                            "controlEndpoint": control.endpoint,
                            "credentialsFile": str(control.credentials),
                        },
                    },
                }
            )
        )
        make_bucket(objects.address("yunhe-hz"))
        assert run(["probe", "hz", "--spec", str(spec), "-o", "json"]) == 0
        found = json.loads(capfd.readouterr().out)
    assert found["capabilities"] == {"createIfAbsent": True, "regionalBlock": True, "crossZoneMultiAttach": False}
    assert run(["probe", "other", "--spec", str(spec)]) == 1
    assert "hint" in capfd.readouterr().err


def make_bucket(address: StoreAddress) -> None:
    async def main() -> None:
        store = open_store(address, clock=SystemClock(), rng=SystemRng())
        try:
            await store.ensure_bucket()
        finally:
            await store.close()

    asyncio.run(main())
