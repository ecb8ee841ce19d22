"""Outages that happened, as faults of the lab: each names the event, its source, and what of it is not emulated.

An outage is a function of the cloud's zones and of how long it is to last; real ones took hours or weeks, a rehearsal
takes the time that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from providers.base.errors import Invalid

Parts = Callable[[Sequence[str], float], list[dict[str, Any]]]
"""(zones that are hit, all of it in ms) to faults, without ids, seeds and ends."""


@dataclass(frozen=True, slots=True)
class Outage:
    """One named outage."""

    name: str
    what: str
    event: str
    """What happened, when, and for how long."""
    source: str
    parts: Parts
    provider: str = ""
    """Whose outage it was; empty: could be anybody's. It may be rehearsed on any cloud."""
    zones: int = 0
    """How many zones it hits: the first ones, unless others are named."""
    lacks: str = ""
    """What of the event the lab does not emulate."""


def _error(service: str, status: int, *, verb: str = "", rate: float = 1.0, code: str = "") -> dict[str, Any]:
    return {"kind": "error", "service": service, "verb": verb, "status": status, "rate": rate, "code": code}


def _lost(zones: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "zone-loss", "zone": zone, **more} for zone in zones]


def _cooling(zones: Sequence[str], for_ms: float) -> list[dict[str, Any]]:
    """The zone dies slowly: 1 to 50 times slower over six tenths of the time, then it is off."""
    ramp_ms = 0.6 * for_ms
    slow = {"kind": "latency", "zone": zones[0], "latency": f"2ms,ramp=50x/{ramp_ms:.0f}ms", "for_ms": ramp_ms}
    return [
        slow,
        *_lost(zones, after_ms=ramp_ms, for_ms=for_ms - ramp_ms),
        _error("compute", 503, verb="create", rate=0.8),
        _error("compute", 503, verb="attach", rate=0.8),
    ]


def _gatekeeper(zones: Sequence[str], for_ms: float) -> list[dict[str, Any]]:
    """All APIs 503, then a tenth of the capacity while everybody comes back at once."""
    dark_ms = 0.7 * for_ms
    later = {"after_ms": dark_ms, "for_ms": for_ms - dark_ms}
    return [
        {**_error("objects", 503), "for_ms": dark_ms},
        {**_error("control", 503), "for_ms": dark_ms},
        {**_error("objects", 503, rate=0.9), **later},
        {**_error("control", 503, rate=0.9), **later},
    ]


_ALL = (
    Outage(
        "ali-ak",
        "control APIs refuse every key, OSS every second one; compute and volumes go on",
        "Aliyun, 2023-11-12 17:39-19:20 CST, 101 minutes, all regions: the access-key service's whitelist",
        "51cto and viplao copies of Aliyun's report",
        lambda zones, for_ms: [_error("control", 403), _error("objects", 403, rate=0.5)],
        provider="aliyun",
    ),
    Outage(
        "ali-cooling",
        "a zone grows slow, then is gone; creating and attaching mostly fail",
        "Aliyun, Hong Kong zone C, 2022-12-18 08:56-22:50, parts for more than a day: cooling",
        "besthub copy of the report, SCMP, The Register",
        _cooling,
        provider="aliyun",
        zones=1,
        lacks="single-zone OSS of that zone",
    ),
    Outage(
        "ali-zone-fire",
        "a zone is gone for good",
        "Aliyun, Singapore zone C, 2024-09-10 10:20 SGT, more than a week for some hardware: battery fire",
        "copies in Tribune and The Register",
        lambda zones, for_ms: _lost(zones),
        provider="aliyun",
        zones=1,
    ),
    Outage(
        "aws-use1-netctl",
        "control APIs time out, nine of ten; what runs goes on",
        "AWS, us-east-1, 2021-12-07 from 07:30 PST, about 7 hours: congestion of the internal network",
        "aws.amazon.com/message/12721",
        lambda zones, for_ms: [{"kind": "timeout", "service": "control", "rate": 0.9}],
        provider="aws",
        lacks="frozen metrics",
    ),
    Outage(
        "aws-dns-empty",
        "no instance can be created or started",
        "AWS, us-east-1, 2025-10-19 23:48 to 10-20 14:20 PDT: an endpoint's DNS record was empty",
        "aws.amazon.com/message/101925",
        lambda zones, for_ms: [_error("compute", 503, verb="create"), _error("compute", 503, verb="start")],
        provider="aws",
        lacks="the missing DNS record itself, and health checks that flap",
    ),
    Outage(
        "aws-2az-loss",
        "two zones are gone, regional objects fail seven times of ten",
        "AWS, me-central-1, 2026-03-01: two of three zones down; S3 withstood one",
        "tomshardware, apistatuscheck, thetechportal",
        lambda zones, for_ms: [*_lost(zones), _error("objects", 503, rate=0.7)],
        provider="aws",
        zones=2,
    ),
    Outage(
        "ebs-api-frozen",
        "volumes can be neither attached nor detached",
        "AWS, us-east-1, 2011-04: AWS itself disabled the calls in the zone",
        "aws.amazon.com/message/65648",
        lambda zones, for_ms: [_error("compute", 503, verb="attach"), _error("compute", 503, verb="detach")],
        provider="aws",
    ),
    Outage(
        "express-az-loss",
        "the S3 Express bucket of a zone is gone, everything else goes on",
        "derived: S3 Express One Zone is lost with its zone",
        "S3 user guide, S3 Express One Zone",
        lambda zones, for_ms: [*_lost(zones, service="express"), *_lost(zones, service="sessions")],
        provider="aws",
        zones=1,
    ),
    Outage(
        "az-identity",
        "no token is handed out; those that are out stay good until they end",
        "Azure AD, 2021-03-15 19:00 to 03-16 09:25 UTC, about 14 hours: a signing key was removed",
        "practical365, BleepingComputer's quote of the report",
        lambda zones, for_ms: [_error("identity", 500)],
        provider="azure",
    ),
    Outage(
        "gcp-gatekeeper",
        "every API answers 503, object storage too, then a tenth comes through; what runs goes on",
        "GCP, 2025-06-12 10:49-13:49 PDT, to 18:18 in us-central1: Service Control, then the herd",
        "copies of Google's report",
        _gatekeeper,
        provider="gcp",
    ),
    Outage(
        "gcp-zone-flood",
        "a zone is gone for good, and the region's control API too",
        "GCP, europe-west9, 2023-04-25: water and fire; zone a for weeks, the region's console for hours",
        "The Register, exbulletin",
        lambda zones, for_ms: [*_lost(zones), {**_error("control", 503), "for_ms": 0.5 * for_ms}],
        provider="gcp",
        zones=1,
    ),
    Outage(
        "account-gone",
        "every bucket and resource of the account refuses",
        "GCP, UniSuper, 2024-05-02 to 05-15: the subscription was deleted; Railway's was blocked 2026-05-20",
        "UniSuper's log, The Pragmatic Engineer",
        lambda zones, for_ms: [_error("objects", 403), _error("control", 403), {"kind": "io-error"}],
    ),
)

OUTAGES: Mapping[str, Outage] = {outage.name: outage for outage in _ALL}
"""By name. Events of networks between clouds, of our own control plane and of a frozen writer are drills of other
parts (`yunhe drill`)."""


def outage_faults(
    name: str, *, id: str, zones: Sequence[str], chosen: Sequence[str], for_ms: float, seed: int, now_ms: float
) -> list[dict[str, Any]]:
    """The faults of a named outage, ready for `Fault.of`. `zones`: the cloud's; `chosen`: which of them are hit.

    Raises:
        Invalid: no such outage, a zone that the cloud does not have, or too few.
    """
    if name not in OUTAGES:
        raise Invalid(f"no outage is named {name!r}", hint=f"one of: {', '.join(OUTAGES)}")
    outage = OUTAGES[name]
    for zone in chosen:
        if zone not in zones:
            raise Invalid(f"the cloud has no zone {zone}", hint=f"its zones are {', '.join(zones)}")
    if chosen and not outage.zones:
        raise Invalid(f"{name} hits no zone in particular", hint="leave --zone out")
    hit = list(chosen or zones[: outage.zones])
    if len(hit) < outage.zones:
        raise Invalid(f"{name} takes {outage.zones} zone(s), and the cloud has {len(zones)}")
    made = []
    for number, part in enumerate(outage.parts(hit, for_ms), start=1):
        begin = now_ms + float(part.pop("after_ms", 0.0))
        until = begin + float(part.pop("for_ms", now_ms + for_ms - begin))
        made.append(
            {
                "id": f"{id}.{number}",
                "seed": seed + number,
                "outage": name,
                "from_ms": begin,
                "until_ms": until,
                **part,
            }
        )
    return made
