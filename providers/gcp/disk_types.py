"""What Compute Engine's documents allow of each type of disk: checked before anything is sent.

Sources: `providers/gcp/capabilities.py`; the pages hyperdisk-balanced-ha, hyperdisk-balanced, repd-failover and
sharing-disks-between-vms; google-cloud-compute 1.57 for what its v1 API can say (`Disk` has `accessMode`, for Hyperdisk
only, and no `multiWriter`, which is of the beta API).
"""

from __future__ import annotations

import re

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec
from providers.base.volume_limits import VolumeLimits, check_spec

LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
LABELS_MAX = 64

DISK_TYPES = {
    "hyperdisk-balanced-high-availability": VolumeLimits((2, 2), 8, (4, 65536), 100_000, 3_000, 2_400),
    "hyperdisk-balanced": VolumeLimits((1, 1), 8, (4, 65536), 160_000, 3_000, 2_400),
    "pd-balanced": VolumeLimits((1, 2), 1, (10, 65536), iops_max=0, mib_s_max=0),
    "pd-ssd": VolumeLimits((1, 2), 1, (10, 65536), iops_max=0, mib_s_max=0),
}


def check(spec: VolumeSpec, region: str) -> VolumeLimits:
    """
    Raises:
        Invalid: a name, class, size, zone, share count, performance or label that the documents do not allow.
    """
    if "multi-writer" in spec.kind:
        raise Invalid(
            f"{spec.kind} is made by the beta API only",
            hint="hyperdisk-balanced in one zone or hyperdisk-balanced-high-availability in two can be shared",
        )
    limits = check_spec(spec, DISK_TYPES)
    for zone in spec.zones:
        if re.fullmatch(rf"{re.escape(region)}-[a-z]", zone) is None:
            raise Invalid(f"zone {zone!r} is not of region {region}", hint=f"as {region}-a", zone=zone)
    if len(spec.tags) > LABELS_MAX:
        raise Invalid(f"{len(spec.tags)} labels are more than {LABELS_MAX}")
    for key, value in spec.tags:
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            hint = "lower-case letters, digits, _ and -, up to 63 each; the key begins with a letter"
            raise Invalid(f"{key}={value} is no label", hint=hint)
    return limits
