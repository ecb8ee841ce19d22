"""Whether a regional disk acks with one replica only. Compute Engine's API does not say; Cloud Monitoring does.

Metric `compute.googleapis.com/disk/regional/replica_state`, once a minute a replica while the disk is attached:
`Synced`, `CatchingUp` or `OutOfSync` (page monitor-regional-persistent-disk-replica-state). In the outage of a zone the
metric may be missing for both replicas, so that no sample is no news: unknown, never "in step".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from providers.base.volume_api import CloudVolume
from providers.gcp.compute import Compute


async def degraded_disks(compute: Compute, volumes: Sequence[CloudVolume]) -> Mapping[str, bool]:
    """By volume id, for those that are known."""
    return {}
