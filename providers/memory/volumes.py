"""Block volumes in memory: `MemoryDisk` is the truth, each process opens its `MemoryBlockDevice` onto it.

A write is accepted (the reservation is checked) and lands some time later. In between, a preempt may abort it or not,
and the death of its process may tear it: those are the two ways in which clouds' volumes differ from a plain file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from providers.base.errors import Full, Invalid, NotFound, OutcomeUnknown
from providers.base.volumes import BLOCK_BYTES, BlockDevice, Reservation, Volume, Written
from providers.lab import volumes_reservations as reservations
from providers.lab.volumes_storage import UNLIMITED, Limits, Meta, attached, detached, new_meta
from providers.memory.faults import CALM, Faults, Place, Process, World
from providers.memory.started import StartedTasks

SECTOR_BYTES = 512
"""What a torn write keeps whole."""
LANDING_MS = (0.0, 2.0)
"""Between a write's acceptance and its durability."""


@dataclass(eq=False, slots=True)
class _Flight:
    """An accepted write that has not landed. `landed` ends True (durable) or False (aborted or torn)."""

    handle: MemoryBlockDevice
    key: int | None
    offset: int
    data: bytes
    landed: asyncio.Future[bool]


def _is_of(handle: MemoryBlockDevice, flight: _Flight) -> bool:
    return flight.handle is handle


class MemoryDisk(Place):
    """A volume: bytes, attachments, reservation, and the writes in flight."""

    def __init__(self, world: World, meta: Meta, *, preempt_aborts: bool, faults: Faults = CALM) -> None:
        super().__init__(world, meta.id, faults)
        self.meta = meta
        self.preempt_aborts = preempt_aborts
        self.full = False
        """Writes find no room."""
        self.gone = False
        self.data = bytearray(meta.size_bytes)
        self.flights: list[_Flight] = []
        self.handles: list[MemoryBlockDevice] = []

    @property
    def reservation(self) -> Reservation:
        return self.meta.reservation

    @reservation.setter
    def reservation(self, state: Reservation) -> None:
        self.meta = replace(self.meta, reservation=state)

    def register(self, handle: MemoryBlockDevice, key: int) -> None:
        self.reservation = reservations.register(self.reservation, key, earlier=handle.key)
        for other in self.handles:
            if other is not handle and other.key == key:
                other.key = None  # a key belongs to the newest handle that registered it
                self._end(partial(_is_of, other), self.preempt_aborts)
        handle.key, handle.once_registered = key, True

    def preempt(self, handle: MemoryBlockDevice, victim: int) -> None:
        before = self.reservation
        self.reservation = reservations.preempt(before, handle.key, victim)
        if self.reservation != before:
            self._end(lambda flight: flight.key == victim, self.preempt_aborts)

    def accept(self, handle: MemoryBlockDevice, offset: int, data: bytes) -> _Flight:
        if self.full:
            raise Full(f"the space under {self.name} has run out")
        reservations.require_writer(self.reservation, handle.key, once_registered=handle.once_registered)
        flight = _Flight(handle, handle.key, offset, data, asyncio.get_running_loop().create_future())
        self.flights.append(flight)
        # With some luck, none at all of what the sender believes about time is true for this write.
        slow = self.world.rng.uniform(0, 1) < self.faults.delayed
        delay_ms = self.world.rng.uniform(*((0, self.faults.delayed_ms_max) if slow else LANDING_MS))

        async def land() -> None:
            await self.world.clock.sleep_ms(delay_ms)
            if flight in self.flights:
                self.flights.remove(flight)
                self.data[offset : offset + len(data)] = data
                self.world.note(f"{self.name} write {offset} lands")
                flight.landed.set_result(True)

        task = asyncio.create_task(land())
        self.world.late.add(task)
        task.add_done_callback(self.world.late.discard)
        return flight

    def process_killed(self, process: Process) -> None:
        """Of each write in flight any sectors land, and nothing outside it."""
        for flight in [flight for flight in self.flights if flight.handle.process is process]:
            self.flights.remove(flight)
            for at in range(0, len(flight.data), SECTOR_BYTES):
                if self.world.rng.uniform(0, 1) < 0.5:
                    start = flight.offset + at
                    self.data[start : start + SECTOR_BYTES] = flight.data[at : at + SECTOR_BYTES]
            flight.landed.set_result(False)

    def _end(self, chosen: Callable[[_Flight], bool], aborts: bool) -> None:
        if not aborts:
            return  # they land later, and the owner's rules (design §5) have to cope
        for flight in [flight for flight in self.flights if chosen(flight)]:
            self.flights.remove(flight)
            flight.landed.set_result(False)


class MemoryBlockDevice:
    """`BlockDevice` of one process."""

    def __init__(self, process: Process, disk: MemoryDisk, zone: str) -> None:
        self.process = process
        self.key: int | None = None
        """As the disk knows it; None once another handle has registered the same key."""
        self.once_registered = False
        self._disk = disk
        self.zone = zone
        self.cut = False
        """Its zone went down: it reaches the volume never again."""
        self._closed = False
        disk.handles.append(self)
        self._started = StartedTasks()

    @property
    def size_bytes(self) -> int:
        return self._disk.meta.size_bytes

    @property
    def preempt_aborts(self) -> bool:
        return self._disk.preempt_aborts

    async def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        disk = self._disk

        def apply() -> bytes:
            self._reach()
            return bytes(disk.data[offset : offset + length])

        return await self.process.call(disk, f"read {offset}+{length}", apply, changes=False)

    async def allocate(self, size: int) -> memoryview:
        return memoryview(bytearray(size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        self._check(offset, len(data))
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            raise Invalid(f"a write is aligned to {BLOCK_BYTES} bytes", offset=offset, length=len(data))
        disk, kept = self._disk, bytes(data)

        def apply() -> _Flight:
            self._reach()
            return disk.accept(self, offset, kept)

        flight = await self.process.call(disk, f"write {offset}+{len(data)}", apply, changes=True)
        timeout_s = disk.faults.timeout_ms / 1000
        done, _ = await asyncio.wait({flight.landed}, timeout=timeout_s)
        await self.process.running()
        if not done or not flight.landed.result():
            raise OutcomeUnknown(f"write {offset}: {'dropped' if done else 'not answered'} by {disk.name}")

    def start_write(self, offset: int, data: memoryview, done: Written) -> None:
        self._started.start(self.write(offset, data), done)

    async def register(self, key: int) -> None:
        await self._ask(f"register {key:#x}", lambda: self._disk.register(self, key))

    async def reserve(self) -> None:
        def apply() -> None:
            self._disk.reservation = reservations.reserve(self._disk.reservation, self.key)

        await self._ask("reserve", apply)

    async def preempt(self, victim: int) -> None:
        await self._ask(f"preempt {victim:#x}", lambda: self._disk.preempt(self, victim))

    async def release(self) -> None:
        def apply() -> None:
            self._disk.reservation = reservations.release(self._disk.reservation, self.key)

        await self._ask("release", apply)

    async def reservation(self) -> Reservation:
        def apply() -> Reservation:
            self._reach()
            return self._disk.reservation

        return await self.process.call(self._disk, "reservation", apply, changes=False)

    async def close(self) -> None:
        """Accepted writes are over when this returns; requests still on their way are dropped."""
        self._closed = True
        mine = [flight.landed for flight in self._disk.flights if flight.handle is self]
        if mine:
            await asyncio.wait(mine)
        if self in self._disk.handles:
            self._disk.handles.remove(self)

    async def _ask(self, what: str, apply: Callable[[], None]) -> None:
        def reached() -> None:
            self._reach()
            apply()

        self._check(0, 0)
        await self.process.call(self._disk, what, reached, changes=True)

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise Invalid("this handle is closed")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise Invalid(f"[{offset}, {offset + length}) is outside the volume", size_bytes=self.size_bytes)

    def _reach(self) -> None:
        """At the disk: is the path there still?"""
        if self.cut or self._closed or self._disk.gone or self.zone not in self._disk.meta.attached_zones:
            raise NotFound(f"volume {self._disk.name} is gone from zone {self.zone}")


class MemoryCloud:
    """The volumes of one cloud."""

    def __init__(
        self, world: World, *, limits: Limits = UNLIMITED, preempt_aborts: bool = True, faults: Faults = CALM
    ) -> None:
        self.world = world
        self.limits = limits
        self.preempt_aborts = preempt_aborts
        self.faults = faults
        self.disks: dict[str, MemoryDisk] = {}
        self.zones_down: set[str] = set()

    def zone_down(self, zone: str) -> None:
        """Handles opened from `zone` lose their volume for good; `zones_down.discard` lets new ones open again."""
        self.zones_down.add(zone)
        for disk in self.disks.values():
            for handle in [handle for handle in disk.handles if handle.zone == zone]:
                handle.cut = True
                disk.handles.remove(handle)


class MemoryBlockVolumes:
    """`BlockVolumes` of one process. The API answers at once and is never faulty: it is not used during a failover."""

    def __init__(self, process: Process, cloud: MemoryCloud) -> None:
        self._process = process
        self._cloud = cloud

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        cloud = self._cloud
        meta = new_meta(volume_id, size_bytes, zones, share_max, cloud.limits)
        if volume_id not in cloud.disks:
            cloud.disks[volume_id] = MemoryDisk(
                cloud.world, meta, preempt_aborts=cloud.preempt_aborts, faults=cloud.faults
            )
        kept = cloud.disks[volume_id].meta
        if (kept.size_bytes, set(kept.zones), kept.share_max) != (size_bytes, set(zones), share_max):
            raise Invalid(f"volume {volume_id} exists with another size, zones or share limit")
        return kept.volume()

    async def attach(self, volume_id: str, zone: str) -> Volume:
        disk = self._find(volume_id)
        disk.meta = attached(disk.meta, zone)
        return disk.meta.volume()

    async def detach(self, volume_id: str, zone: str) -> Volume:
        disk = self._find(volume_id)
        disk.meta = detached(disk.meta, zone)
        return disk.meta.volume()

    async def describe(self) -> Sequence[Volume]:
        return [disk.meta.volume() for disk in self._cloud.disks.values()]

    async def delete(self, volume_id: str) -> None:
        disk = self._cloud.disks.get(volume_id)
        if disk is not None:
            if disk.meta.attached_zones:
                raise Invalid(f"volume {volume_id} is attached", hint="detach it first")
            disk.gone = True
            del self._cloud.disks[volume_id]

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        disk = self._find(volume_id)
        if zone in self._cloud.zones_down or zone not in disk.meta.attached_zones:
            raise NotFound(f"volume {volume_id} is not attached in zone {zone}", hint="attach it there first")
        return MemoryBlockDevice(self._process, disk, zone)

    async def close(self) -> None:
        """Nothing to release."""

    def _find(self, volume_id: str) -> MemoryDisk:
        if volume_id not in self._cloud.disks:
            raise NotFound(f"no volume {volume_id}")
        return self._cloud.disks[volume_id]
