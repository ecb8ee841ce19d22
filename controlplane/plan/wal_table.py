"""The decision table: provider by probed capability, to WAL mode. First row whose needs are all met wins.

Row numbers, needs, fences and bands are those of the project's own study of the four clouds. Bands are design targets
composed of published latencies; RTO counts detection, fence, replay and metadata. They are to be replaced by what
drills measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from dataplane.contract.assignment import WalMode
from providers.base.capabilities import BlockClass, Capabilities, Scope

Band = tuple[int, int]


class Drive(StrEnum):
    """What the data plane must be able to do to carry a row out."""

    PREATTACHED = "a volume attached beforehand in several zones"
    FORCED = "taking a volume over by the cloud's API"
    BLOCK_EXPRESS = "a volume together with S3 Express append lanes"
    RAPID = "append lanes in GCS Rapid buckets"
    OBJECT = "WAL objects"
    ZONAL = "a volume within one zone"


ALL_DRIVES = frozenset(Drive)


@dataclass(frozen=True, slots=True)
class Finding:
    """A need of a row and whether this cloud meets it; None: not known, which is not met."""

    need: str
    holds: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. Bands: p50 and p99 of a produce in milliseconds, RTO in seconds."""

    number: str
    mode: WalMode
    needs: Callable[[Capabilities], tuple[Finding, ...]]
    drive: Drive
    fence: str
    rto_s: Band
    p50_ms: Band
    p99_ms: Band
    api: bool
    """Whether a failover needs a call of the cloud's control API."""
    loses_tail: bool = False
    """Whether a zone's loss takes acked records that were not uploaded."""
    warnings: tuple[str, ...] = ()


def regional_block(capabilities: Capabilities) -> BlockClass | None:
    """The best zone-redundant class that the region is known to offer."""
    return next((block for block in capabilities.regional_blocks if block.offered), None)


def express_zone_for(capabilities: Capabilities, zone: str) -> str | None:
    """The express zone that a broker in `zone` writes to: another one, the same for every broker of the zone."""
    zones = capabilities.express_zones or ()
    if zone in zones:
        turned = [*zones[zones.index(zone) + 1 :], *zones[: zones.index(zone)]]
        # A zone where brokers run is taken first: what is read back there is read by neighbours.
        return next((other for other in turned if other in capabilities.zones), turned[0] if turned else None)
    return zones[0] if zones else None


def _offered(capabilities: Capabilities) -> Finding:
    block = regional_block(capabilities)
    need = "a zone-redundant volume"
    if block is not None:
        return Finding(need, True, f"{block.name} ({capabilities.origin('regional_block')})")
    if any(b.offered is None for b in capabilities.regional_blocks):
        return Finding(need, None, f"whether {capabilities.region} has one is not verified")
    return Finding(need, False, f"{capabilities.region} has none")


def _two_zones(capabilities: Capabilities) -> Finding:
    block = regional_block(capabilities)
    need = "attached in two zones at once"
    accepted = block.cross_zone_multi_attach if block else None
    origin = capabilities.origin("cross_zone_multi_attach")
    if accepted and block is not None and (block.share_max or 0) < 2:
        return Finding(need, False, f"{block.name} takes {block.share_max} host")
    why = {
        True: f"accepted, up to {block.share_max if block else '?'} hosts a volume ({origin})",
        False: f"refused ({origin})",
        None: "documents disagree or are silent, and it was not probed",
    }[accepted]
    return Finding(need, accepted, why)


def _reservations(capabilities: Capabilities) -> Finding:
    block = regional_block(capabilities)
    need = "persistent reservations on it"
    works = block.reservations_work if block else None
    kind = block.reservations.value if block and block.reservations else "none"
    origin = capabilities.origin("persistent_reservations")
    why = {
        True: f"{kind} ({origin})",
        False: f"refused ({origin})",
        None: f"{kind} not confirmed, and it was not probed",
    }
    return Finding(need, works, why[works])


def _preattached(capabilities: Capabilities) -> tuple[Finding, ...]:
    return _offered(capabilities), _two_zones(capabilities), _reservations(capabilities)


def _forced(capabilities: Capabilities) -> tuple[Finding, ...]:
    return (_offered(capabilities),)


def _object_store(capabilities: Capabilities) -> tuple[Finding, ...]:
    store = capabilities.object_class
    need = "an object store that outlives a zone"
    if store is None:
        return (Finding(need, False, "there is no object store"),)
    if store.scope is Scope.SITE:
        need = "an object store that outlives a host"
    outlives = Finding(need, store.scope is not Scope.ZONAL, f"{store.name} ({capabilities.origin('object_store')})")
    if not store.create_if_absent:
        return (outlives,)  # not known: the choice warns; known to fail: the choice has refused before
    return outlives, Finding(
        "create-if-absent on it", True, f"{store.fence} ({capabilities.origin('create_if_absent')})"
    )


def _zonal_volume(capabilities: Capabilities) -> Finding:
    block = capabilities.zonal_block
    return Finding("a zonal volume", block is not None, block.name if block else "none is known")


def _express(capabilities: Capabilities) -> tuple[Finding, ...]:
    """Every zone of ours has an express zone other than itself."""
    need = "an express bucket in another zone, for every zone"
    zones = capabilities.express_zones
    if capabilities.express is None:
        finding = Finding(need, False, f"{capabilities.provider} has no such store")
    elif zones is None:
        finding = Finding(need, None, f"the express zones of {capabilities.region} are not verified")
    else:
        alone = [zone for zone in capabilities.zones if express_zone_for(capabilities, zone) is None]
        where = (
            f"{capabilities.express.name} in {', '.join(zones) or 'no zone'} ({capabilities.origin('express_zones')})"
        )
        finding = Finding(need, not alone, where if not alone else f"{where}: none but its own for {', '.join(alone)}")
    return finding, _zonal_volume(capabilities)


def _one_express(capabilities: Capabilities) -> tuple[Finding, ...]:
    """Some zone of ours has an express zone other than itself."""
    served = [zone for zone in capabilities.zones if express_zone_for(capabilities, zone) is not None]
    zones = ", ".join(capabilities.express_zones or ()) or "no zone"
    finding = Finding("an express bucket in another zone, for some zone", bool(served), f"express in {zones}")
    return finding, _zonal_volume(capabilities), *_object_store(capabilities)


def _zonal(capabilities: Capabilities) -> tuple[Finding, ...]:
    block = capabilities.zonal_shared_block
    need = "a zonal volume that hosts of its zone share"
    return (Finding(need, block is not None, block.name if block else "none is known"),)


_RB, _DW, _OB, _ZB = WalMode.REGIONAL_BLOCK, WalMode.BLOCK_EXPRESS, WalMode.OBJECT, WalMode.ZONAL_BLOCK
_SLOW_P50, _SLOW_P99 = (150, 400), (500, 1500)
_TAIL = ("acked records that are not uploaded yet are lost with the zone",)
_REPLICA = ("GCP may acknowledge with one replica while the other zone is slow: rpo 0 holds while both are in step",)
_SESSION = (
    "an express session lasts five minutes: its renewal is part of the data plane",
    "with the volume as the only side left, fence and attach are calls of EC2's control API",
)

ROWS: dict[str, tuple[Row, ...]] = {
    "aliyun": (
        Row("1", _RB, _preattached, Drive.PREATTACHED, "nvme-pr preempt", (5, 20), (1, 5), (5, 20), api=False),
        Row("2", _RB, _forced, Drive.FORCED, "AttachDisk Force", (20, 90), (1, 5), (5, 20), api=True),
        Row("3", _OB, _object_store, Drive.OBJECT, "x-oss-forbid-overwrite", (2, 10), _SLOW_P50, _SLOW_P99, api=False),
        Row("4", _ZB, _zonal, Drive.ZONAL, "nvme-pr preempt", (5, 60), (1, 3), (3, 10), False, True, _TAIL),
    ),
    "azure": (
        Row("5", _RB, _preattached, Drive.PREATTACHED, "scsi-pr preempt", (5, 20), (3, 8), (10, 30), api=False),
        Row("6", _RB, _forced, Drive.FORCED, "ForceDetach, then attach", (30, 120), (3, 8), (10, 30), api=True),
        Row("7", _OB, _object_store, Drive.OBJECT, "If-None-Match: *", (2, 10), _SLOW_P50, _SLOW_P99, api=False),
        Row("8", _ZB, _zonal, Drive.ZONAL, "scsi-pr preempt", (5, 60), (1, 3), (3, 10), False, True, _TAIL),
    ),
    "gcp": (
        Row("9", _RB, _preattached, Drive.PREATTACHED, "pr preempt", (5, 20), (2, 6), (10, 30), False, False, _REPLICA),
        Row("10", _RB, _forced, Drive.FORCED, "forceAttach", (20, 90), (2, 8), (10, 40), True, False, _REPLICA),
        Row("11", _DW, _express, Drive.RAPID, "append takeover", (2, 15), (3, 10), (15, 50), api=False),
        Row("12", _OB, _object_store, Drive.OBJECT, "ifGenerationMatch=0", (2, 10), _SLOW_P50, _SLOW_P99, api=False),
        Row("12z", _ZB, _zonal, Drive.ZONAL, "scsi-pr preempt", (5, 60), (1, 3), (3, 10), False, True, _TAIL),
    ),
    "aws": (
        Row(
            "13",
            _DW,
            _express,
            Drive.BLOCK_EXPRESS,
            "seal of the express lane",
            (2, 15),
            (5, 10),
            (20, 50),
            False,
            False,
            _SESSION,
        ),
        Row(
            "15",
            _DW,
            _one_express,
            Drive.BLOCK_EXPRESS,
            "seal of the express lane",
            (2, 15),
            (5, 400),
            (20, 1500),
            False,
            False,
            _SESSION,
        ),
        Row("16", _OB, _object_store, Drive.OBJECT, "If-None-Match: *", (2, 10), _SLOW_P50, _SLOW_P99, api=False),
        Row("17", _ZB, _zonal, Drive.ZONAL, "nvme-pr preempt", (2, 10), (1, 1), (2, 5), False, True, _TAIL),
    ),
    "private": (
        Row("18", _OB, _object_store, Drive.OBJECT, "If-None-Match: *", (2, 10), (20, 100), (200, 800), api=False),
    ),
}

NO_ROW = {
    ("aws", _RB): "no volume of AWS reaches two zones; multi-attach of io2 stays inside one (row 17)",
    ("aliyun", _DW): "Aliyun has no zonal low-latency object store; OSS in one zone shares that zone's fate (row 4)",
    ("azure", _DW): "Azure has no zonal low-latency object store",
    ("private", _RB): "a private site has no zone-redundant volumes here",
    ("private", _DW): "a private site has no zonal low-latency object store",
    ("private", _ZB): "a private site has no shared volumes here",
}
"""Why a provider has no row for a mode."""
