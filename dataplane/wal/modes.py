"""From a WAL's spec to its parts: which sides each mode has, for the owner and for a recoverer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from dataplane.contract.assignment import WalMode, WalSpec
from dataplane.wal.base import MembershipChange, Side, WalIdentity, WalReader
from dataplane.wal.commit import CommitSettings, GroupCommit
from dataplane.wal.lane_reader import LaneReader
from dataplane.wal.lanes import LaneSettings, LaneSide
from dataplane.wal.object_reader import ObjectReader
from dataplane.wal.objects import ObjectSettings, ObjectSide
from dataplane.wal.rejoin import Rejoiner, RejoinSettings
from dataplane.wal.ring import RingSide
from dataplane.wal.ring_reader import RingReader
from dataplane.wal.sides import RetrySettings
from providers.base.clock import Clock
from providers.base.errors import Invalid, YunheError
from providers.base.objects import ObjectStore
from providers.base.volumes import BlockDevice

SIDES: dict[WalMode, tuple[str, ...]] = {
    WalMode.REGIONAL_BLOCK: ("volume",),
    WalMode.ZONAL_BLOCK: ("volume",),
    WalMode.BLOCK_EXPRESS: ("volume", "express"),
    WalMode.OBJECT: ("object",),
}
"""The membership that each mode starts an epoch with."""


@dataclass(frozen=True, slots=True)
class WalSettings:
    """Settings of all parts."""

    commit: CommitSettings = field(default_factory=CommitSettings)
    object_linger_ms: float = 20
    """`commit.linger_ms` in mode `object`: two thirds of the requests of a busy broker for a twentieth of their
    latency."""
    object_block_bytes: int = 8 << 20
    """`commit.block_bytes` in mode `object`, where a request costs money."""
    ring: RetrySettings = field(default_factory=RetrySettings)
    ring_window_max: int = 8
    """Writes in flight on a volume: what a fast one takes at once. More only divide the group commits further."""
    objects: ObjectSettings = field(default_factory=ObjectSettings)
    lanes: LaneSettings = field(default_factory=LaneSettings)
    rejoin: RejoinSettings = field(default_factory=RejoinSettings)


@dataclass(frozen=True, slots=True)
class WalPlaces:
    """The opened places that a mode may need. Devices are closed with the WAL or reader that gets them; stores are
    shared, and stay open."""

    device: BlockDevice | None = None
    express: ObjectStore | None = None
    bucket: ObjectStore | None = None


async def open_wal(
    spec: WalSpec,
    identity: WalIdentity,
    places: WalPlaces,
    *,
    clock: Clock,
    change: MembershipChange | None = None,
    on_dead: Callable[[YunheError], None] | None = None,
    drained: bool = False,
    again: Callable[[str], Awaitable[WalPlaces]] | None = None,
    settings: WalSettings | None = None,
) -> GroupCommit:
    """Open a new epoch's WAL. `drained`: see `RingSide`. `again`: opens the place of a lost side anew, by name; without
    it one that was lost stays away for the epoch. When this fails, the device is closed: try again with another.

    Raises:
        Invalid: a place that the mode needs is missing.
        Fenced, Unavailable: see `GroupCommit.open`.
    """
    settings = settings or WalSettings()
    commit = replace(settings.commit, bytes_max=spec.bytes_max)
    sides = [
        _side(name, spec, identity, places, clock=clock, drained=drained, start=1, settings=settings)
        for name in SIDES[spec.mode]
    ]
    if spec.mode is WalMode.OBJECT:
        commit = replace(commit, linger_ms=settings.object_linger_ms, block_bytes=settings.object_block_bytes)
    wal = GroupCommit(identity, sides, clock=clock, change=change, on_dead=on_dead, settings=commit)
    try:
        await wal.open()
    except BaseException:
        await wal.close()
        raise
    if again is not None and len(sides) > 1:

        async def reopen(name: str, instance: int, start: int) -> Side:
            new = replace(identity, instance=instance)
            side = _side(name, spec, new, await again(name), clock=clock, drained=False, start=start, settings=settings)
            try:
                await side.open()
            except BaseException:
                await side.close()
                raise
            return side

        wal.keep(Rejoiner(wal, reopen, clock=clock, settings=settings.rejoin).run())
    return wal


def _side(
    name: str,
    spec: WalSpec,
    identity: WalIdentity,
    places: WalPlaces,
    *,
    clock: Clock,
    drained: bool,
    start: int,
    settings: WalSettings,
) -> Side:
    """A side of the owner's, not opened yet."""
    if name == "volume" and places.device is not None:
        return RingSide(
            places.device,
            identity,
            clock=clock,
            bytes_max=spec.bytes_max,
            drained=drained,
            start=start,
            window_max=settings.ring_window_max,
            retry=settings.ring,
        )
    if name == "express" and places.express is not None:
        return LaneSide(places.express, identity, clock=clock, settings=settings.lanes)
    if name == "object" and places.bucket is not None:
        return ObjectSide(places.bucket, identity, clock=clock, settings=settings.objects)
    raise Invalid(f"the WAL mode {spec.mode.value} needs a place for its side {name}")


def open_readers(
    spec: WalSpec,
    victim: WalIdentity,
    places: WalPlaces,
    *,
    own_key: int,
    floor: int,
    instances: Mapping[str, int] | None = None,
    clock: Clock,
    settings: WalSettings | None = None,
) -> dict[str, WalReader]:
    """Readers of the sides whose places are given, by side name. `own_key`: `victim.recovery_key(...)`. `floor`: the
    ledger's, read after `BrokerFenced` was accepted. `instances`: of sides that had come back, as the ledger names
    them."""
    settings = settings or WalSettings()
    readers: dict[str, WalReader] = {}
    for name in SIDES[spec.mode]:
        named = replace(victim, instance=(instances or {}).get(name, 0))
        if name == "volume" and places.device is not None:
            readers[name] = RingReader(places.device, named, own_key=own_key, clock=clock, retry=settings.ring)
        elif name == "express" and places.express is not None:
            readers[name] = LaneReader(places.express, named, own_key=own_key, clock=clock, settings=settings.lanes)
        elif name == "object" and places.bucket is not None:
            readers[name] = ObjectReader(
                places.bucket, victim, own_key=own_key, floor=floor, clock=clock, settings=settings.objects
            )
    return readers
