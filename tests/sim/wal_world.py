"""A hostile world for WALs: object stores and volumes behind a network that loses, delays and repeats, used by
processes that freeze.

Written against the contracts in `providers/base` alone, and sharing no code with the WAL: what it stores is what the
checker believes. Everything random comes from one seed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from providers.base.errors import (
    AlreadyExists,
    Conflict,
    Fenced,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongOffset,
    YunheError,
)
from providers.base.objects import ObjectInfo
from providers.base.volumes import BLOCK_BYTES, Reservation, Written
from providers.memory.started import StartedTasks

T = TypeVar("T")
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Faults:
    """Probabilities a request, and times in milliseconds."""

    lost_request: float = 0.0
    lost_response: float = 0.0
    late: float = 0.0
    """The answer is lost and the request is carried out later, up to `late_ms`."""
    repeated: float = 0.0
    """The request is carried out again later."""
    refused: float = 0.0
    latency_ms: tuple[float, float] = (0.5, 3.0)
    late_ms: float = 30_000.0
    timeout_ms: float = 1000.0


CALM = Faults()
HOSTILE = Faults(lost_request=0.02, lost_response=0.03, late=0.02, repeated=0.03, refused=0.02)


class World:
    """What all processes share: randomness and the trace."""

    def __init__(self, seed: int, faults: Faults = CALM) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.trace: list[str] = []

    def note(self, event: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time() * 1000:.3f} {event}")

    def late(self, action: Callable[[], Any]) -> None:
        """Carry `action` out at some later time; its outcome interests nobody."""

        def go() -> None:
            try:
                action()
            except YunheError:
                pass

        asyncio.get_running_loop().call_later(self.random.uniform(0, self.faults.late_ms) / 1000, go)


class Host:
    """A process's machine: it may freeze (nothing of it runs, and its clock stands still), and be cut off from places
    by name."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.cut_from: set[str] = set()
        self._running = asyncio.Event()
        self._running.set()

    def freeze(self) -> None:
        self.world.note(f"{self.name} freezes")
        self._running.clear()

    def thaw(self) -> None:
        self.world.note(f"{self.name} thaws")
        self._running.set()

    async def running(self) -> None:
        await self._running.wait()

    # Clock

    def monotonic_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1000

    def wall_ms(self) -> int:
        return int(self.monotonic_ms())

    async def sleep_ms(self, duration_ms: float) -> None:
        await asyncio.sleep(duration_ms / 1000)
        await self.running()

    async def call(self, place: str, what: str, apply: Callable[[], T], *, changes: bool, repeats: bool = True) -> T:
        """One request to `place`: `apply` is its effect, made there, at one moment. `repeats`: something on the way may
        deliver it twice (HTTP; a device's commands are never completed and then carried out again)."""
        world, faults = self.world, self.world.faults
        await self.running()
        await asyncio.sleep(world.random.uniform(*faults.latency_ms) / 1000)
        unanswered = OutcomeUnknown if changes else Unavailable
        fate = world.random.random()
        if place in self.cut_from:
            await asyncio.sleep(faults.timeout_ms / 1000)
            await self.running()
            raise Unavailable(f"{place} cannot be reached")
        chances = (
            ("refused", faults.refused),
            ("lost request", faults.lost_request),
            ("lost response", faults.lost_response),
            ("late", faults.late if changes else 0.0),
            ("repeated", faults.repeated if changes and repeats else 0.0),
        )
        happens = "well"
        for kind, chance in chances:
            if fate < chance:
                happens = kind
                break
            fate -= chance
        if happens != "well":
            world.note(f"{self.name} {what} {happens}")
        if happens == "refused":
            raise Unavailable(f"{place} refuses for now")
        if happens == "late":
            world.late(apply)
        if happens in ("lost request", "late"):
            await asyncio.sleep(faults.timeout_ms / 1000)
            await self.running()
            raise unanswered(f"{what}: no answer")
        result: T | None = None
        failure: YunheError | None = None
        try:
            result = apply()
        except YunheError as error:
            failure = error
        if happens == "repeated":
            world.late(apply)
        await asyncio.sleep(world.random.uniform(*faults.latency_ms) / 1000)
        if happens == "lost response" or place in self.cut_from:
            await asyncio.sleep(faults.timeout_ms / 1000)
            await self.running()
            raise unanswered(f"{what}: answer lost")
        await self.running()
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]


@dataclass
class Bucket:
    """An object store's content. `appends`: as S3 Express, where an append at offset 0 creates the object."""

    name: str
    appends: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)

    def put(self, key: str, data: bytes, if_absent: bool) -> None:
        if if_absent and key in self.objects:
            raise AlreadyExists(f"{key} exists")
        self.objects[key] = data

    def append(self, key: str, offset: int, data: bytes) -> None:
        if key not in self.objects:
            raise NotFound(f"no object {key}")
        if len(self.objects[key]) != offset:
            raise WrongOffset(f"{key} has {len(self.objects[key])} bytes, not {offset}")
        self.objects[key] += data

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"no object {key}")
        return self.objects[key]


class StoreClient:
    """`ObjectStore` of one host."""

    def __init__(self, host: Host, bucket: Bucket) -> None:
        self.host = host
        self.bucket = bucket

    def _call(self, what: str, apply: Callable[[], T], *, changes: bool) -> Any:
        return self.host.call(self.bucket.name, what, apply, changes=changes)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._call(f"put {key}", lambda: self.bucket.put(key, data, if_absent), changes=True)

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes], *, if_absent: bool = False) -> None:
        data = b"".join([chunk async for chunk in chunks])
        await self.put(key, data, if_absent=if_absent)

    async def collect_uploads(self, prefix: str, older_than_ms: int) -> int:
        return 0

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data: bytes = await self._call(f"get {key}", lambda: self.bucket.read(key), changes=False)
        return data[start:] if length is None else data[start : start + length]

    async def head(self, key: str) -> ObjectInfo:
        data: bytes = await self._call(f"head {key}", lambda: self.bucket.read(key), changes=False)
        return ObjectInfo(key, len(data))

    async def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Sequence[ObjectInfo]:
        raise AssertionError("a WAL lists nothing")

    async def delete(self, keys: Sequence[str]) -> None:
        def apply() -> None:
            for key in keys:
                self.bucket.objects.pop(key, None)

        await self._call(f"delete {keys[0]} and {len(keys) - 1} more", apply, changes=True)

    async def append(self, key: str, offset: int, data: bytes) -> None:
        await self._call(f"append {key} at {offset}", lambda: self.bucket.append(key, offset, data), changes=True)

    async def close(self) -> None:
        pass


@dataclass(eq=False)
class _InFlight:
    key: int
    offset: int
    data: bytes
    landed: asyncio.Future[None]


class Disk:
    """A shared volume: accepts writes of the reservation's holder, and lands them some time later."""

    def __init__(self, world: World, name: str, size_bytes: int, *, preempt_aborts: bool) -> None:
        self.world = world
        self.name = name
        self.data = bytearray(size_bytes)
        self.preempt_aborts = preempt_aborts
        self.holder: int | None = None
        self.registered: set[int] = set()
        self.in_flight: list[_InFlight] = []
        self.slow_ms = 0.0
        """What each write takes longer than it should."""

    def accept(self, key: int | None, offset: int, data: bytes) -> _InFlight:
        assert offset % BLOCK_BYTES == 0 and len(data) % BLOCK_BYTES == 0 and offset + len(data) <= len(self.data)
        if key is None or key not in self.registered or self.holder != key:
            raise Fenced(f"reservation conflict: {self.holder} holds {self.name}")
        flight = _InFlight(key, offset, data, asyncio.get_running_loop().create_future())
        self.in_flight.append(flight)
        chance, faults = self.world.random.random(), self.world.faults
        longest_ms = 5.0
        if chance < faults.late:
            longest_ms = faults.late_ms
        elif chance < 4 * faults.late:
            longest_ms = 0.9 * faults.timeout_ms  # long enough to be overtaken by a whole recovery, and yet answered
        delay_ms = self.world.random.uniform(0, longest_ms) + self.slow_ms
        asyncio.get_running_loop().call_later(delay_ms / 1000, self._land, flight)
        return flight

    def _land(self, flight: _InFlight) -> None:
        if flight in self.in_flight:
            self.in_flight.remove(flight)
            self.data[flight.offset : flight.offset + len(flight.data)] = flight.data
            flight.landed.set_result(None)

    def tear(self, key: int) -> None:
        """The machine of `key` dies: of each write in flight any sectors land now."""
        for flight in [flight for flight in self.in_flight if flight.key == key]:
            self.in_flight.remove(flight)
            for at in range(0, len(flight.data), SECTOR_BYTES):
                if self.world.random.random() < 0.5:
                    self.data[flight.offset + at : flight.offset + at + SECTOR_BYTES] = flight.data[
                        at : at + SECTOR_BYTES
                    ]
            flight.landed.cancel()

    def preempt(self, key: int | None, victim: int) -> None:
        if key is None or key not in self.registered:
            raise Conflict("not registered")
        if self.holder == key:
            return
        if self.holder != victim:
            raise Conflict(f"{victim:#x} does not hold {self.name}")
        self.registered.discard(victim)
        self.holder = key
        if self.preempt_aborts:
            for flight in [flight for flight in self.in_flight if flight.key == victim]:
                self.in_flight.remove(flight)
                flight.landed.cancel()

    def reserve(self, key: int | None) -> None:
        if key is None or key not in self.registered or self.holder not in (None, key):
            raise Conflict(f"{self.holder} holds {self.name}")
        self.holder = key

    def quiet(self) -> bool:
        """Whether no accepted write is still to land."""
        return not self.in_flight


class DeviceClient:
    """`BlockDevice` of one host. Requests on their way when a process is gone still arrive, as they do on a fabric."""

    def __init__(self, host: Host, disk: Disk) -> None:
        self.host = host
        self.disk = disk
        self.key: int | None = None
        self._started = StartedTasks()

    def _call(self, what: str, apply: Callable[[], T], *, changes: bool) -> Any:
        return self.host.call(self.disk.name, f"{self.disk.name} {what}", apply, changes=changes, repeats=False)

    @property
    def size_bytes(self) -> int:
        return len(self.disk.data)

    @property
    def preempt_aborts(self) -> bool:
        return self.disk.preempt_aborts

    async def read(self, offset: int, length: int) -> bytes:
        data: bytes = await self._call(
            f"read {offset}", lambda: bytes(self.disk.data[offset : offset + length]), changes=False
        )
        return data

    async def allocate(self, size: int) -> memoryview:
        return memoryview(bytearray(size))

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        key = self.key
        flight = await self._call(f"write {offset}", lambda: self.disk.accept(key, offset, data), changes=True)
        try:
            async with asyncio.timeout(self.host.world.faults.timeout_ms / 1000):
                await asyncio.shield(flight.landed)
        except TimeoutError:
            await self.host.running()
            raise OutcomeUnknown("no answer from the volume") from None
        except asyncio.CancelledError:
            if flight.landed.cancelled():
                raise OutcomeUnknown("the volume dropped the write") from None
            raise
        await self.host.running()

    def start_write(self, offset: int, data: memoryview, done: Written) -> None:
        self._started.start(self.write(offset, data), done)

    async def register(self, key: int) -> None:
        def apply() -> None:
            self.disk.registered.add(key)

        await self._call(f"register {key:#x}", apply, changes=False)
        self.key = key

    async def reserve(self) -> None:
        key = self.key
        await self._call("reserve", lambda: self.disk.reserve(key), changes=False)

    async def preempt(self, victim: int) -> None:
        key = self.key
        await self._call(f"preempt {victim:#x}", lambda: self.disk.preempt(key, victim), changes=False)

    async def release(self) -> None:
        raise AssertionError("a WAL never gives a reservation up")

    async def reservation(self) -> Reservation:
        state: Reservation = await self._call(
            "reservation",
            lambda: Reservation(self.disk.holder, frozenset(self.disk.registered), 0),
            changes=False,
        )
        return state

    async def close(self) -> None:
        pass
