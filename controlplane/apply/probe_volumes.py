"""Whether a cloud's zone-redundant volume can be attached in two zones at once: tried, where the provider's own pages
disagree or say nothing (design §5; row 1 or row 2 of the decision table).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from providers.base.capabilities import BlockClass, Probed
from providers.base.clock import Rng
from providers.base.errors import Conflict, Invalid, YunheError
from providers.base.instances import Instance, Instances
from providers.base.volume_api import VolumeApi, VolumeSpec

log = logging.getLogger(__name__)

PROBE_NAME = "yunhe-probe-"
"""Names of the volumes that a probe makes, and removes, begin so."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class VolumeFinding:
    """What the probe found, and one sentence that says how. `left`: a volume that could not be removed."""

    probed: Probed
    sentence: str
    left: str | None = None


async def probe_two_zones(
    api: VolumeApi, instances: Instances, block: BlockClass, zones: Sequence[str], *, rng: Rng
) -> VolumeFinding:
    """Create the smallest volume of `block` over two of `zones`, attach it to a machine in each, and remove it.

    A refusal by the cloud is a finding; that it does not answer, or is short of quota, is none.

    Raises:
        Invalid: no running machine in two of the zones.
        Unavailable, Full: the API did not answer or had no room; nothing is concluded.
    """
    first, second = _machines(await instances.describe(), zones)
    spec = VolumeSpec(
        name=f"{PROBE_NAME}{rng.token()[:12]}",
        kind=block.kind,
        size_bytes=block.size_gib[0] * GIB,
        zones=(first.zone, second.zone),
        share_max=2,
    )
    try:
        volume = await api.create(spec)
    except Invalid as error:
        return VolumeFinding(Probed(regional_block=False), f"{block.name} is refused here: {error}")
    try:
        await api.attach(volume.id, first.id)
        try:
            await api.attach(volume.id, second.id)
        except (Invalid, Conflict) as error:
            probed = Probed(regional_block=True, cross_zone_multi_attach=False)
            said = f"{block.name} attached in zone {first.zone} is refused in zone {second.zone}: {error}"
        else:
            probed = Probed(regional_block=True, cross_zone_multi_attach=True)
            said = f"{block.name} is attached in zones {first.zone} and {second.zone} at once"
    finally:
        left = await _remove(api, volume.id, (first.id, second.id))
    return VolumeFinding(probed, said, left)


def _machines(running: Sequence[Instance], zones: Sequence[str]) -> tuple[Instance, Instance]:
    """A machine in each of two zones, those that are known to share volumes first."""
    found: list[Instance] = []
    for zone in zones:
        here = [one for one in running if one.running and one.zone == zone and one.shares_volumes is not False]
        if here:
            found.append(min(here, key=lambda one: (one.shares_volumes is not True, one.id)))
    if len(found) < 2:
        where = ", ".join(one.zone for one in found) or "none"
        raise Invalid(
            f"the probe needs a running machine that can share volumes in two of the zones {', '.join(zones)}; "
            f"there is one in: {where}",
            hint="start one in another zone, or state `capabilities.crossZoneMultiAttach` in the Cloud",
        )
    return found[0], found[1]


async def _remove(api: VolumeApi, volume_id: str, machines: Sequence[str]) -> str | None:
    """Detach and delete; the id when it could not be done, for whoever has to do it by hand."""
    try:
        for machine in machines:
            await api.detach(volume_id, machine)
        await api.delete(volume_id)
    except (YunheError, TimeoutError) as error:
        log.warning("probe volume %s stays: %s", volume_id, error)
        return volume_id
    return None
