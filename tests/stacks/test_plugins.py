"""Programs over the official SDKs, unchanged, on the lab: by the real CLI, and judged through the lab's real APIs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from providers.base.buckets import open_bucket
from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import open_volume_api
from providers.lab.running import DEFAULT_CLOUDS, RunningCloud, lab
from stacks.plugins.install import install
from tests.stacks.conftest import Project

for _sdk in ("pulumi_aws", "pulumi_azure_native", "pulumi_gcp", "pulumi_alicloud"):
    pytest.importorskip(_sdk, reason=f"{_sdk} comes with `make setup-stacks`")
pytestmark = pytest.mark.timeout(900)

PROGRAM = """\
import pulumi
from stacks.cells import CellArgs, CloudCell

for name, cloud in {clouds}:
    cell = CloudCell(
        name,
        CellArgs(cloud, {{"brokers": 2}}, protect=False, tags={{"team": "rivers"}}, dns_zone=name + ".example"),
    )
    pulumi.export(name, {{"bucket": cell.bucket, "volumes": cell.volumes, "identity": cell.identity}})
"""

MACHINES = """\
from stacks.cells import CellArgs, CloudCell, KubernetesArgs

CloudCell("cell", CellArgs({cloud}, kubernetes=KubernetesArgs()))
"""


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningCloud]]:
    """One cloud of each provider, by provider, with nothing in them."""
    root = tmp_path_factory.mktemp("lab")
    wanted = [replace(one, name=one.provider) for one in DEFAULT_CLOUDS if one.provider != "private"]
    with lab(*wanted, state_dir=root) as running:
        yield running


@pytest.fixture
def rehearsal(project: Project, clouds: dict[str, RunningCloud]) -> Project:
    """A project whose plugins are the lab's."""
    root = lab_of(clouds)
    folder = install(root)
    project.more |= {"YUNHE_STATE_DIR": str(root), "PATH": f"{folder}:{project.environment['PATH']}"}
    return project


def lab_of(clouds: dict[str, RunningCloud]) -> Path:
    return Path(str(next(iter(clouds.values())).address.bucket.credentials_file)).parents[2]


def spec_of(cloud: RunningCloud) -> dict[str, Any]:
    address = cloud.address
    return {"provider": address.provider, "region": address.region, "zones": list(address.zones)}


def program(clouds: dict[str, RunningCloud], *providers: str) -> str:
    return PROGRAM.format(clouds=[(f"cell-{name}", spec_of(clouds[name])) for name in providers])


def volumes(cloud: RunningCloud) -> list[str]:
    """Names, by the cloud's own volume API."""

    async def main() -> list[str]:
        assert cloud.address.control is not None
        api = open_volume_api(cloud.address.control, clock=SystemClock(), rng=SystemRng())
        try:
            return sorted(found.name for found in await api.describe())
        finally:
            await api.close()

    return asyncio.run(main())


def delete_volume(cloud: RunningCloud, name: str) -> None:
    async def main() -> None:
        assert cloud.address.control is not None
        api = open_volume_api(cloud.address.control, clock=SystemClock(), rng=SystemRng())
        try:
            [found] = [one for one in await api.describe() if one.name == name]
            await api.delete(found.id)
        finally:
            await api.close()

    asyncio.run(main())


def has_bucket(cloud: RunningCloud, name: str) -> bool:
    async def main() -> bool:
        address = replace(cloud.address.bucket, bucket=name)
        bucket = open_bucket(address, clock=SystemClock(), rng=SystemRng())
        try:
            return await bucket.bucket_exists()
        finally:
            await bucket.close()

    return asyncio.run(main())


def zones(cloud: RunningCloud) -> list[str]:
    return [str(zone["name"]) for zone in cloud.admins()["control"].call("GET", "/-/dns")["zones"]]


def test_cells_on_four_clouds_come_up_are_mended_and_go(rehearsal: Project, clouds: dict[str, RunningCloud]) -> None:
    rehearsal.write("", program(clouds, *clouds))
    shown = rehearsal.pulumi("preview")
    assert "to create" in shown
    for name, cloud in clouds.items():
        assert volumes(cloud) == [] and not has_bucket(cloud, f"yunhe-cell-{name}")
    rehearsal.pulumi("up", "--yes", "--skip-preview")
    for name, cloud in clouds.items():
        assert volumes(cloud) == [f"cell-{name}-b-1-wal", f"cell-{name}-b-2-wal"]
        assert has_bucket(cloud, f"yunhe-cell-{name}") and f"cell-{name}.example" in zones(cloud)
    for name, cloud in clouds.items():
        delete_volume(cloud, f"cell-{name}-b-2-wal")
    mended = rehearsal.pulumi("up", "--yes", "--skip-preview", "--refresh")
    # What nobody touched stays as it is: for all of it an `up` has nothing to do.
    # What nobody touched stays as it is; the SDKs' providers are not counted.
    every = [one for one in rehearsal.every() if not one["type"].startswith("pulumi:providers:")]
    assert "4 created" in mended and f"{len(every) - 4} unchanged" in mended
    for name, cloud in clouds.items():
        assert volumes(cloud) == [f"cell-{name}-b-1-wal", f"cell-{name}-b-2-wal"]
    rehearsal.pulumi("destroy", "--yes", "--skip-preview")
    for name, cloud in clouds.items():
        assert volumes(cloud) == [] and not has_bucket(cloud, f"yunhe-cell-{name}")
        assert zones(cloud) == ["lab.test"]
        assert json.loads((lab_of(clouds) / "lab" / name / "pulumi.json").read_text()) == {"resources": {}}


def test_what_the_lab_has_not_is_refused_by_name_before_anything_is_made(
    project: Project, clouds: dict[str, RunningCloud]
) -> None:
    # This time the plugin is found by the project's file, and the PATH knows none.
    root = lab_of(clouds)
    project.more["YUNHE_STATE_DIR"] = str(root)
    with (project.folder / "Pulumi.yaml").open("a") as file:
        file.write(f"\nplugins: {{providers: [{{name: aws, path: {install(root)}}}]}}\n")
    project.write("", "import pulumi_aws as aws\n\nbucket = aws.s3.Bucket('b')\naws.sqs.Queue('q', name=bucket.id)\n")
    refused = project.pulumi("up", "--yes", ok=False)
    assert "the lab's plugin of aws does not serve aws:sqs/queue:Queue" in refused
    assert "it serves Bucket, " in refused
    project.write("", MACHINES.format(cloud=spec_of(clouds["aws"])))
    refused = project.pulumi("preview", ok=False)
    assert "the lab has no Kubernetes service: rehearse cells without `kubernetes`" in refused
    kept = root / "lab" / "aws" / "pulumi.json"
    assert not project.resources()
    assert not kept.exists() or json.loads(kept.read_text())["resources"] == {}


REAL = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: east}
spec: {provider: aws, region: us-east-1, zones: [use1-az4], target: real, real: {bucket: our-east}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: brokers}
spec: {cloud: east, brokers: 1}
"""


def test_the_stack_of_a_real_cloud_is_rehearsed_and_its_data_is_protected(
    rehearsal: Project, clouds: dict[str, RunningCloud]
) -> None:
    rehearsal.write(REAL)
    rehearsal.pulumi("stack", "init", "aws")
    rehearsal.more["PULUMI_STACK"] = "aws"
    rehearsal.set("spec", str(rehearsal.folder / "spec.yaml"), stack="aws")
    rehearsal.pulumi("up", "--yes", "--skip-preview")
    assert has_bucket(clouds["aws"], "our-east")
    shown = json.loads(rehearsal.run("pulumi", "stack", "output", "--json").stdout)
    assert shown["east"]["bucket"] == "our-east" and shown["east"]["volumes"] == {}
    refused = rehearsal.pulumi("destroy", "--yes", "--skip-preview", ok=False)
    assert "protected" in refused and has_bucket(clouds["aws"], "our-east")
