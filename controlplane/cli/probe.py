"""`yunhe probe CLOUD --spec FILE`: what an account's cloud really does, where documents disagree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import output
from controlplane.cli.output import Format
from controlplane.cli.plans import read_texts
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, NotFound

if TYPE_CHECKING:
    from controlplane.api.kinds import CloudSpec
    from controlplane.apply.probe_volumes import VolumeFinding

_WRITTEN = {
    "regional_block": "regionalBlock",
    "cross_zone_multi_attach": "crossZoneMultiAttach",
    "create_if_absent": "createIfAbsent",
}
"""Findings as `Cloud.spec.capabilities` writes them."""


def probe(cloud: str, spec: Sequence[Path], *, volumes: bool, form: Format) -> None:
    """Race writers for a name in the bucket; attach a small volume in two zones, where the cloud sells such volumes.

    Raises:
        NotFound: no such Cloud in the spec.
        Invalid: it is the lab's; credentials refused; the bucket cannot carry a ledger.
        Unavailable: no clear answer; nothing is concluded.
    """
    from controlplane.api.load import load_texts

    specs = load_texts(read_texts(spec))
    found = specs.clouds.get(cloud)
    if found is None:
        raise NotFound(f"no Cloud is named {cloud}", hint=f"the spec has: {', '.join(specs.clouds) or 'none'}")
    if found.spec.real is None:
        raise Invalid(
            f"Cloud {cloud} is the lab's, whose answers are known",
            hint="write `target: real` and `real: {bucket: …}` to probe an account",
        )
    sentences, findings = asyncio.run(_probe(found.spec, volumes=volumes))
    stated = {written: findings[name] for name, written in _WRITTEN.items() if findings.get(name) is not None}
    lines = [*sentences, "", "write into the Cloud's spec:", "  capabilities:"]
    lines += [f"    {name}: {str(value).lower()}" for name, value in stated.items()]
    output.data({"cloud": cloud, "said": sentences, "capabilities": stated}, form, "\n".join(lines))


async def _probe(spec: CloudSpec, *, volumes: bool) -> tuple[list[str], dict[str, Any]]:
    from controlplane.apply.probe import probe_conditional_create
    from providers.base.registry import StoreAddress, open_store

    assert spec.real is not None
    clock, rng = SystemClock(), SystemRng()
    real = spec.real
    address = StoreAddress(spec.provider, real.bucket, spec.region, real.endpoint, real.credentials_file)
    output.progress(f"racing writers for a name in {real.bucket}")
    store = open_store(address, clock=clock, rng=rng)
    try:
        sentences = [await probe_conditional_create(store, rng=rng)]
    finally:
        await store.close()
    findings: dict[str, Any] = {"create_if_absent": True}
    if volumes:
        found = await _probe_volumes(spec)
        if found is not None:
            sentences.append(found.sentence)
            if found.left is not None:
                sentences.append(f"volume {found.left} could not be removed: remove it by hand")
            findings |= asdict(found.probed) | findings
    return sentences, findings


async def _probe_volumes(spec: CloudSpec) -> VolumeFinding | None:
    """None where the provider sells no zone-redundant volume."""
    from controlplane.apply.probe_volumes import probe_two_zones
    from providers.base.capabilities import capabilities_of
    from providers.base.registry import AccountAddress, open_instances, open_volume_api

    blocks = capabilities_of(spec.provider, spec.region, spec.zones).regional_blocks
    if not blocks or spec.real is None:
        return None
    clock, rng, real = SystemClock(), SystemRng(), spec.real
    account = AccountAddress(
        spec.provider,
        spec.region,
        spec.account or "",
        real.resource_group or "",
        real.control_endpoint,
        real.credentials_file,
    )
    output.progress(f"attaching a {blocks[0].name} of {blocks[0].size_gib[0]} GiB in two zones")
    api = open_volume_api(account, clock=clock, rng=rng)
    instances = open_instances(account, clock=clock, rng=rng)
    try:
        return await probe_two_zones(api, instances, blocks[0], spec.zones, rng=rng)
    finally:
        await instances.close()
        await api.close()
