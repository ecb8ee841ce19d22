"""What a cloud's documents allow of its volumes, checked before anything is sent (VolumeApi's obligation 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from providers.base.errors import Invalid
from providers.base.volume_api import VolumeSpec

GIB = 1 << 30

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
"""1 to 63 characters, as Google's resource names, the strictest of the four."""


@dataclass(frozen=True, slots=True)
class VolumeLimits:
    """Of one class of volume. None: not published, left to the cloud."""

    zones: tuple[int, int]
    """Zones that a volume of this class names: at least, at most."""
    share_max: int
    size_gib: tuple[int, int]
    iops_max: int | None = None
    """0: this class takes no setting."""
    iops_min: int | None = None
    mib_s_max: int | None = None
    """0: this class takes no setting."""
    iops_per_gib_max: int | None = None


def check_spec(spec: VolumeSpec, classes: Mapping[str, VolumeLimits]) -> VolumeLimits:
    """The limits of the class that is asked for.

    Raises:
        Invalid: beyond them; the hint says what is possible.
    """
    limits = classes.get(spec.kind)
    if limits is None:
        raise Invalid(f"{spec.kind!r} is no class of volume here", hint=f"one of: {', '.join(sorted(classes))}")
    if not _NAME.fullmatch(spec.name):
        hint = "1 to 63 lower-case letters, digits and hyphens, a letter first, no hyphen last"
        raise Invalid(f"{spec.name!r} cannot name a volume", hint=hint)
    gib, rest = divmod(spec.size_bytes, GIB)
    low, high = limits.size_gib
    if rest or not low <= gib <= high:
        raise Invalid(f"{spec.kind}: {spec.size_bytes} bytes are not possible", hint=f"{low} to {high} whole GiB")
    fewest, most = limits.zones
    if len(set(spec.zones)) != len(spec.zones) or not fewest <= len(spec.zones) <= most:
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        named = ", ".join(spec.zones) or "none"
        raise Invalid(f"{spec.kind}: zones {named} are not possible", hint=f"{wanted} different zone(s)")
    if not 1 <= spec.share_max <= limits.share_max:
        raise Invalid(f"{spec.kind}: {spec.share_max} instances cannot share a volume", hint=f"1 to {limits.share_max}")
    _check_setting(spec.kind, "IOPS", spec.iops, limits.iops_min, limits.iops_max)
    _check_setting(spec.kind, "MiB/s", spec.mib_s, None, limits.mib_s_max)
    if spec.iops and limits.iops_per_gib_max and spec.iops > limits.iops_per_gib_max * gib:
        raise Invalid(
            f"{spec.kind}: {spec.iops} IOPS are not possible with {gib} GiB", hint=f"{limits.iops_per_gib_max} a GiB"
        )
    return limits


def _check_setting(kind: str, what: str, value: int | None, low: int | None, high: int | None) -> None:
    if value is None:
        return
    if high == 0:
        raise Invalid(f"{kind} takes no setting of {what}", hint="leave it out")
    if value < (low or 1) or (high is not None and value > high):
        raise Invalid(f"{kind}: {value} {what} are not possible", hint=f"{low or 1} to {high or 'what the cloud says'}")
