"""A private cloud: an S3-compatible store of one site, and no volumes that reach beyond a host."""

from __future__ import annotations

from providers.base.capabilities import Capabilities, Economics, ObjectClass, ObjectPrice, Scope

S3_COMPATIBLE = ObjectClass(
    name="s3-compatible",
    scope=Scope.SITE,
    offered=True,
    create_if_absent=None,  # Ceph RGW, Ozone and MinIO differ, and so do their versions
    fence="If-None-Match: *",
    append=None,
    latency="milliseconds to tens of ms on a local network",
    price=ObjectPrice(gib=None, put=0.0, get=0.0),
    confidence="medium",
    source="HDDS-13919 and a survey of S3-compatible stores, June 2026",
    note="Durability is the site's erasure coding.",
)


def capabilities(region: str, zones: tuple[str, ...]) -> Capabilities:
    """Facts for any site; regions and zones are named by their owner."""
    return Capabilities(
        provider="private",
        region=region,
        zones=zones,
        objects=(S3_COMPATIBLE,),
        economics=Economics(0.0, "own", None, None, "the owner's"),
    )
