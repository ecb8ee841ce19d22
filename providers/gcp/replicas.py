"""Whether a regional disk acks with one replica only. Compute Engine's API does not say (google-cloud-compute 1.57:
`Disk.resource_status` has asynchronous replication only); Cloud Monitoring does.

Metric `compute.googleapis.com/disk/regional/replica_state`, once a minute for each replica of an attached disk:
`Synced`, `CatchingUp` or `OutOfSync` (page monitor-regional-persistent-disk-replica-state). In the outage of a zone it
may be missing for both replicas. So: no sample, no right to read it, no answer or words that are not understood mean
unknown, never "in step". The names of its labels could not be verified on a live account, which is why a disk and a
state are recognized by the labels' values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from providers.base.errors import YunheError
from providers.base.volume_api import CloudVolume
from providers.gcp.compute import Compute, ResourceName

METRIC = "compute.googleapis.com/disk/regional/replica_state"
WINDOW_MS = 5 * 60_000
"""Samples of so many milliseconds are looked at: the metric comes once a minute, some minutes late."""
ENDPOINT = "https://monitoring.googleapis.com"
PAGES_MAX = 10
REPLICAS = 2

_STATES = {"synced": "Synced", "catchingup": "CatchingUp", "outofsync": "OutOfSync"}


async def degraded_disks(compute: Compute, volumes: Sequence[CloudVolume]) -> Mapping[str, bool]:
    """By volume id, for those of the volumes of which it is known."""
    if not any(len(volume.zones) == REPLICAS and volume.attachments for volume in volumes):
        return {}
    now_ms = compute.clock.wall_ms()
    query = {
        "filter": f'metric.type = "{METRIC}"',
        "interval.startTime": _time(now_ms - WINDOW_MS),
        "interval.endTime": _time(now_ms),
    }
    try:
        series = await compute.ask("replica states", lambda: _read(compute, query))
    except YunheError:
        # Whatever keeps us from knowing, the disks are described without it.
        return {}
    return {volume.id: known for volume in volumes if (known := judge(volume, series)) is not None}


def _read(compute: Compute, query: Mapping[str, str]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    token = ""
    for _ in range(PAGES_MAX):
        more = {"pageToken": token} if token else {}
        answer = compute.get_json(ENDPOINT, f"/v3/projects/{compute.project}/timeSeries", {**query, **more})
        found += answer.get("timeSeries", ())
        token = answer.get("nextPageToken", "")
        if not token:
            break
    return found


def judge(volume: CloudVolume, series: Iterable[Mapping[str, Any]]) -> bool | None:
    """True: one replica is behind. False: both are known to be in step. None: unknown."""
    region = ResourceName.parse(volume.id, "disks").place
    states: dict[str, str] = {}
    for row in series:
        labels = {**row.get("resource", {}).get("labels", {}), **row.get("metric", {}).get("labels", {})}
        words = {str(value) for value in labels.values()}
        zone = next((zone for zone in volume.zones if zone in words), "")
        state = _state(row, words)
        if volume.name in words and state and (zone or region in words):
            states[zone or str(len(states))] = state
    if any(state != "Synced" for state in states.values()):
        return True
    return False if len(states) == REPLICAS else None


def _state(row: Mapping[str, Any], words: Iterable[str]) -> str:
    points = row.get("points", ())
    if not points:
        return ""
    value = points[0].get("value", {})
    if str(value.get("int64Value", value.get("boolValue", 1))).lower() in ("0", "false"):
        return ""
    told = [str(value.get("stringValue", "")), *words]
    return next((_STATES[key] for key in (word.replace("_", "").lower() for word in told) if key in _STATES), "")


def _time(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
