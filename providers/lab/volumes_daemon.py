"""What the volume daemon does: volumes with zones, attachments and a fence that is real.

Per volume one lock, under which check-reservation, write and fdatasync happen as one, and a preempt becomes durable: so
no write of a victim lands after its preempt has returned, and the reservation outlives the daemon. A key belongs to the
newest handle that registered it: an older handle with that key loses it before the new one is told yes, so what was
queued there is refused (drain).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from providers.base.clock import Clock
from providers.base.errors import Fenced, Full, Invalid, NotFound, Unavailable, YunheError
from providers.base.volumes import BLOCK_BYTES, Reservation
from providers.lab import volumes_protocol as wire
from providers.lab import volumes_reservations as reservations
from providers.lab.volumes_protocol import Op
from providers.lab.volumes_storage import (
    VOLUMES_MAX,
    Limits,
    Meta,
    VolumeFile,
    attached,
    detached,
    find,
    load_volumes,
    new_meta,
)

T = TypeVar("T")

REQUESTS_QUEUED_MAX = 32
"""Requests of one connection that wait; beyond it the daemon stops reading from that connection."""
QUEUED_BYTES_MAX = 2 << 20
"""Payload that waits for one connection; a longer write is taken alone."""
THREADS_MAX = 8
"""Disk operations at a time over all volumes."""
STOP_MS = 1500
"""How long a stop waits for disk operations before it leaves without them."""


@dataclass(slots=True)
class Faults:
    """What is wrong with one volume, set by `FAULT` requests and forgotten with the process."""

    slow_ms: float = 0
    """Added to each read and write."""
    errors: bool = False
    """Reads and writes fail; nothing is changed."""
    full: bool = False
    """Writes find no room."""


class Shared:
    """A volume as its handles share it."""

    def __init__(self, file: VolumeFile) -> None:
        self.file = file
        self.lock = asyncio.Lock()
        self.faults = Faults()
        self.handles: set[Connection] = set()
        self.deleted = False


@dataclass(frozen=True, slots=True)
class _Request:
    op: int
    id: int
    first: int
    second: int
    payload: bytes


class Connection:
    """One client's connection, and the device handle it may be."""

    def __init__(self, daemon: Daemon, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.daemon = daemon
        self.closed = False
        self.volume: Shared | None = None
        self.zone = ""
        self.key: int | None = None
        self.once_registered = False
        self._reader = reader
        self._writer = writer
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue(REQUESTS_QUEUED_MAX)
        self._queued_bytes = 0
        self._room = asyncio.Event()

    async def serve(self) -> None:
        """Read requests ahead, and answer them in order, until the client leaves; what is still queued then is
        dropped."""
        receiving = asyncio.create_task(self._receive())
        try:
            while (request := await self._queue.get()) is not None and not self.closed:
                self._queued_bytes -= len(request.payload)
                self._room.set()
                try:
                    status, payload = wire.OK, await self.daemon.answer(self, request)
                except YunheError as error:
                    status, payload = wire.error_status(error)
                self._writer.write(wire.REPLY.pack(len(payload), status, request.id))
                if payload:
                    self._writer.write(payload)
                await self._writer.drain()
                if request.op == Op.CLOSE:
                    break
        except ConnectionError:
            pass  # the client has gone; whatever it asked for last, it will not hear
        finally:
            self.cut()
            receiving.cancel()

    async def _receive(self) -> None:
        try:
            while True:
                length, op, request_id, first, second = wire.REQUEST.unpack(
                    await self._reader.readexactly(wire.REQUEST.size)
                )
                if length > wire.PAYLOAD_BYTES_MAX:
                    break  # not one of our clients
                while self._queued_bytes and self._queued_bytes + length > QUEUED_BYTES_MAX:
                    self._room.clear()
                    await self._room.wait()
                self._queued_bytes += length
                payload = await self._reader.readexactly(length) if length else b""
                await self._queue.put(_Request(op, request_id, first, second, payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client closed, was killed, or was cut off
        self.cut()
        if self._queue.empty():
            self._queue.put_nowait(None)  # wakes `serve`, which else sees `closed` at its next request

    def cut(self) -> None:
        """End the connection; its queued requests are dropped."""
        self.closed = True
        if self.volume is not None:
            self.volume.handles.discard(self)
        self._writer.close()


class Daemon:
    """The volumes of one cloud."""

    def __init__(self, root: Path, limits: Limits, clock: Clock) -> None:
        self._root = root
        self._limits = limits
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="disk")
        self._volumes = load_volumes(root)
        self._shared = {name: Shared(file) for name, file in self._volumes.items()}
        self._zones_down: set[str] = set()
        self._api = asyncio.Lock()
        self._connections: set[Connection] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def stop(self) -> None:
        """Cut all connections, and let disk operations end."""
        for connection in list(self._connections):
            connection.cut()
        idle = self._clock.monotonic_ms() + STOP_MS
        while self._clock.monotonic_ms() < idle and any(shared.lock.locked() for shared in self._shared.values()):
            await self._clock.sleep_ms(5)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, who: Connection, request: _Request) -> bytes:
        """Carry out one request and return the reply's payload.

        Raises:
            YunheError: what the client is to be told.
        """
        match request.op:
            case Op.READ:
                return await self._read(who, request.first, request.second)
            case Op.WRITE:
                return await self._write(who, request.first, request.payload)
            case Op.REGISTER:
                return await self._register(who, request.first)
            case Op.RESERVE:
                return await self._change(who, lambda state: reservations.reserve(state, who.key))
            case Op.PREEMPT:
                return await self._change(who, lambda state: reservations.preempt(state, who.key, request.first))
            case Op.RELEASE:
                return await self._change(who, lambda state: reservations.release(state, who.key))
            case Op.RESERVATION:
                shared = self._volume_of(who)
                async with shared.lock:  # what a preempt is just making durable is waited for
                    state = shared.file.meta.reservation
                plain = {"holder": state.holder, "registered": sorted(state.registered), "generation": state.generation}
                return wire.encode(plain)
            case Op.CLOSE:
                return b""
            case _:
                return await self._api_request(who, request.op, wire.decode(request.payload))

    # ---- data plane

    def _volume_of(self, who: Connection) -> Shared:
        if who.volume is None:
            raise Invalid("this connection has opened no volume")
        if who.closed or who.volume.deleted:
            raise NotFound("the volume is gone")
        return who.volume

    async def _read(self, who: Connection, offset: int, length: int) -> bytes:
        shared = self._volume_of(who)
        _require_inside(shared.file.meta, offset, length)
        if length > wire.PAYLOAD_BYTES_MAX:
            raise Invalid(f"one request reads at most {wire.PAYLOAD_BYTES_MAX} bytes")
        await self._faulty(shared)
        return await self._in_thread(lambda: shared.file.read(offset, length))

    async def _write(self, who: Connection, offset: int, data: bytes) -> bytes:
        shared = self._volume_of(who)
        _require_inside(shared.file.meta, offset, len(data))
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            raise Invalid(f"a write is aligned to {BLOCK_BYTES} bytes", offset=offset, length=len(data))
        async with shared.lock:
            await self._faulty(shared)
            if shared.faults.full:
                raise Full(f"the disk under volume {shared.file.meta.id} is full")
            # Checked last before the disk is touched: nothing awaits in between, and the lock is held until it is
            # durable.
            self._volume_of(who)
            reservations.require_writer(shared.file.meta.reservation, who.key, once_registered=who.once_registered)
            await self._in_thread(lambda: shared.file.write(offset, data))
        return b""

    async def _register(self, who: Connection, key: int) -> bytes:
        shared = self._volume_of(who)
        async with shared.lock:
            self._volume_of(who)
            state = reservations.register(shared.file.meta.reservation, key, earlier=who.key)
            await self._save(shared, replace(shared.file.meta, reservation=state))
            for other in shared.handles:
                if other.key == key:
                    other.key = None  # its queued writes are refused from now on
            who.key, who.once_registered = key, True
        return b""

    async def _change(self, who: Connection, step: Callable[[Reservation], Reservation]) -> bytes:
        shared = self._volume_of(who)
        async with shared.lock:
            self._volume_of(who)
            if who.once_registered and who.key is None:
                raise Fenced("this attachment's key was registered by a newer one")
            await self._save(shared, replace(shared.file.meta, reservation=step(shared.file.meta.reservation)))
        return b""

    async def _faulty(self, shared: Shared) -> None:
        if shared.faults.slow_ms:
            await self._clock.sleep_ms(shared.faults.slow_ms)
        if shared.faults.errors:
            raise Unavailable(f"volume {shared.file.meta.id} has I/O errors")

    async def _save(self, shared: Shared, meta: Meta) -> None:
        if meta != shared.file.meta:
            await self._in_thread(lambda: shared.file.save(meta))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ---- the cloud's API

    async def _api_request(self, who: Connection, op: int, plain: Any) -> bytes:
        try:
            async with self._api:
                match op:
                    case Op.OPEN:
                        return self._open(who, str(plain["volume"]), str(plain["zone"]))
                    case Op.CREATE:
                        wanted = (str(plain["volume"]), int(plain["size_bytes"]), plain["zones"], plain["share_max"])
                        return _shown(await self._create(*wanted))
                    case Op.ATTACH:
                        self._require_up(str(plain["zone"]))
                        return await self._attachments(str(plain["volume"]), lambda m: attached(m, str(plain["zone"])))
                    case Op.DETACH:
                        return await self._attachments(str(plain["volume"]), lambda m: detached(m, str(plain["zone"])))
                    case Op.DESCRIBE:
                        return wire.encode([_plain(file.meta) for file in self._volumes.values()])
                    case Op.DELETE:
                        return await self._delete(str(plain["volume"]))
                    case Op.FAULT:
                        return self._fault(str(plain["kind"]), str(plain["target"]), float(plain["value"]))
                    case _:
                        raise Invalid(f"no such request: {op}")
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid(f"the request's fields are wrong: {error}") from error

    def _open(self, who: Connection, volume_id: str, zone: str) -> bytes:
        file = find(self._volumes, volume_id)
        self._require_up(zone)
        if zone not in file.meta.attached_zones:
            raise NotFound(f"volume {volume_id} is not attached in zone {zone}", hint="attach it there first")
        if who.volume is not None or who.closed:
            raise Invalid("this connection has opened a volume already")
        who.volume, who.zone = self._shared[volume_id], zone
        who.volume.handles.add(who)
        return wire.encode({"size_bytes": file.meta.size_bytes, "preempt_aborts": True})

    async def _create(self, volume_id: str, size_bytes: int, zones: Sequence[str], share_max: int) -> Meta:
        meta = new_meta(volume_id, size_bytes, zones, share_max, self._limits)
        if volume_id in self._volumes:
            kept = self._volumes[volume_id].meta
            if (kept.size_bytes, set(kept.zones), kept.share_max) != (size_bytes, set(zones), share_max):
                raise Invalid(f"volume {volume_id} exists with another size, zones or share limit")
            return kept
        if len(self._volumes) >= VOLUMES_MAX:
            raise Invalid(f"there are {VOLUMES_MAX} volumes already", hint="delete some first")
        file = await self._in_thread(lambda: VolumeFile.create(self._root, meta))
        self._volumes[volume_id] = file
        self._shared[volume_id] = Shared(file)
        return meta

    async def _attachments(self, volume_id: str, step: Callable[[Meta], Meta]) -> bytes:
        find(self._volumes, volume_id)
        shared = self._shared[volume_id]
        async with shared.lock:
            await self._save(shared, step(shared.file.meta))
        for handle in list(shared.handles):
            if handle.zone not in shared.file.meta.attached_zones:
                handle.cut()
        return _shown(shared.file.meta)

    async def _delete(self, volume_id: str) -> bytes:
        if volume_id not in self._volumes:
            return b"null"
        shared = self._shared[volume_id]
        async with shared.lock:
            if shared.file.meta.attached_zones:
                raise Invalid(f"volume {volume_id} is attached", hint="detach it first")
            shared.deleted = True
            del self._volumes[volume_id], self._shared[volume_id]
            await self._in_thread(shared.file.delete)
        return b"null"

    def _fault(self, kind: str, target: str, value: float) -> bytes:
        if kind == "zone_down":
            (self._zones_down.add if value else self._zones_down.discard)(target)
            for handle in [h for shared in self._shared.values() for h in shared.handles if h.zone == target and value]:
                handle.cut()
            return b"null"
        find(self._volumes, target)
        faults = self._shared[target].faults
        match kind:
            case "slow_ms":
                faults.slow_ms = value
            case "errors":
                faults.errors = bool(value)
            case "full":
                faults.full = bool(value)
            case _:
                raise Invalid(f"no fault {kind!r}", hint="one of: zone_down, slow_ms, errors, full")
        return b"null"

    def _require_up(self, zone: str) -> None:
        if zone in self._zones_down:
            raise Unavailable(f"zone {zone} is down")


def _require_inside(meta: Meta, offset: int, length: int) -> None:
    if offset + length > meta.size_bytes:
        raise Invalid(f"[{offset}, {offset + length}) is outside volume {meta.id}", size_bytes=meta.size_bytes)


def _plain(meta: Meta) -> dict[str, Any]:
    return {"id": meta.id, "size_bytes": meta.size_bytes, "zones": meta.zones, "attached_zones": meta.attached_zones}


def _shown(meta: Meta) -> bytes:
    return wire.encode(_plain(meta))
