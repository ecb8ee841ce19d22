"""What the volume daemon does: volumes with zones, attachments and a fence that is real.

Writes overlap; changes of a volume's reservation or attachments happen alone: one waits until every write that was
begun is over, and no write begins before it is durable. So no write of a victim lands after its preempt has returned,
and the reservation outlives the daemon. A key belongs to the
newest handle that registered it: an older handle with that key loses it before the new one is told yes, so what was
queued there is refused (drain).
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from providers.base.clock import Clock
from providers.base.errors import Fenced, Full, Invalid, NotFound, Unavailable, YunheError
from providers.base.volumes import BLOCK_BYTES, Reservation
from providers.lab import volumes_protocol as wire
from providers.lab import volumes_reservations as reservations
from providers.lab.gate import Gate
from providers.lab.volumes_connection import Connection, Request
from providers.lab.volumes_faults import VolumeGate
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

THREADS_MAX = 8
"""Reads and changes of metadata at a time over all volumes."""
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

    def any(self) -> bool:
        return bool(self.slow_ms or self.errors or self.full)


class Shared:
    """A volume as its handles share it."""

    def __init__(self, file: VolumeFile) -> None:
        self.file = file
        self.faults = Faults()
        self.handles: set[Connection] = set()
        self.deleted = False
        self.writes = 0
        self._changing = asyncio.Lock()
        self._written: asyncio.Event = asyncio.Event()

    @property
    def changing(self) -> bool:
        """A change is under way, or waits: no write may begin."""
        return self._changing.locked()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While no write is under way, and none begins."""
        async with self._changing:
            while self.writes:
                self._written.clear()
                await self._written.wait()
            yield

    async def changed(self) -> None:
        """Once no change is under way."""
        async with self._changing:
            pass

    def write_over(self) -> None:
        """A write that was begun is over."""
        self.writes -= 1
        if not self.writes:
            self._written.set()


class Daemon:
    """The volumes of one cloud."""

    def __init__(self, root: Path, limits: Limits, clock: Clock, gate: Gate | None = None) -> None:
        self._root = root
        self._gate = VolumeGate(gate or Gate("private", clock=clock, admin_token=None), clock)
        self._limits = limits
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="disk")
        self._volumes = load_volumes(root)
        self._shared = {name: Shared(file) for name, file in self._volumes.items()}
        self._zones_down: set[str] = set()
        self._api = asyncio.Lock()
        self._connections: set[Connection] = set()

    def connection(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self, self._connections.add, self._connections.discard)

    async def stop(self) -> None:
        """Cut all connections, and let disk operations end."""
        for connection in list(self._connections):
            connection.cut()
        idle = self._clock.monotonic_ms() + STOP_MS
        while self._clock.monotonic_ms() < idle and any(s.changing or s.writes for s in self._shared.values()):
            await self._clock.sleep_ms(5)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for shared in self._shared.values():
            if not shared.writes:
                shared.file.close()

    def standing(self) -> dict[str, int]:
        """Bytes of volumes, by how far they reach."""
        made = {"volume:regional": 0, "volume:zonal": 0}
        for file in self._volumes.values():
            made["volume:regional" if len(file.meta.zones) > 1 else "volume:zonal"] += file.meta.size_bytes
        return made

    def cut_severed(self) -> None:
        """Cut the handles of zones that are lost."""
        if self._gate.gate.faults.any():
            for handle in [h for shared in self._shared.values() for h in shared.handles]:
                if self._gate.severed(handle.zone):
                    handle.cut()

    def stops(self, who: Connection, request: Request) -> bool:
        return self._gate.stops(who, request)

    def begin(self, who: Connection, request: Request) -> bool:
        shared = who.volume
        if shared is None or shared.changing or shared.deleted or who.closed:
            return False
        if request.op == Op.RESERVATION:
            who.reply(request.id, wire.OK, _reservation(shared.file.meta.reservation))
            return True
        if request.op not in (Op.WRITE, Op.WRITE_SHARED) or shared.faults.any():
            return False
        try:
            self._start_write(who, shared, request)
        except YunheError as error:
            who.reply(request.id, *wire.error_status(error))
        return True

    async def answer(self, who: Connection, request: Request) -> bytes:
        match request.op:
            case Op.READ:
                return await self._read(who, request.first, request.second)
            case Op.WRITE | Op.WRITE_SHARED:
                return await self._write(who, request)
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
                await shared.changed()  # what a preempt is just making durable is waited for
                return _reservation(shared.file.meta.reservation)
            case Op.SHARE:
                plain = wire.decode(request.payload)
                who.share(str(plain.get("path")), int(plain.get("size", 0)))
                return b""
            case Op.CLOSE:
                await who.quiet()
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

    async def _write(self, who: Connection, request: Request) -> bytes:
        """A write that has to wait: for a change, or because something is wrong with the volume."""
        shared = self._volume_of(who)
        await self._faulty(shared)
        if shared.faults.full:
            raise Full(f"the disk under volume {shared.file.meta.id} is full")
        while shared.changing:
            await shared.changed()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start_write(who, self._volume_of(who), request, over)
        await over
        return b""

    def _start_write(
        self, who: Connection, shared: Shared, request: Request, over: asyncio.Future[None] | None = None
    ) -> None:
        """Check, and begin; nothing awaits in between. Answers by itself, or through `over`.

        Raises:
            Fenced, Invalid: refused, nothing was changed.
        """
        if request.op == Op.WRITE_SHARED:
            position, length = request.second >> 32, request.second & 0xFFFFFFFF
            data = who.shared(position, length)
            if data is None:
                raise Invalid(f"[{position}, {position + length}) is not shared memory")
        else:
            length = len(request.payload)
            data = memoryview(mmap.mmap(-1, max(length, 1)))[:length]  # aligned, as direct I/O wants it
            data[:] = request.payload
        offset = request.first
        _require_inside(shared.file.meta, offset, length)
        if offset % BLOCK_BYTES or length % BLOCK_BYTES:
            raise Invalid(f"a write is aligned to {BLOCK_BYTES} bytes", offset=offset, length=length)
        reservations.require_writer(shared.file.meta.reservation, who.key, once_registered=who.once_registered)
        shared.writes += 1
        who.writes += 1

        def done(error: YunheError | None) -> None:
            shared.write_over()
            who.write_over()
            if over is not None:
                if not over.done():
                    over.set_result(None) if error is None else over.set_exception(error)
            elif error is None:
                who.reply(request.id, wire.OK, b"")
            else:
                who.reply(request.id, *wire.error_status(error))

        shared.file.write(offset, data, done)

    async def _register(self, who: Connection, key: int) -> bytes:
        shared = self._volume_of(who)
        async with shared.alone():
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
        async with shared.alone():
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
                        return wire.encode([self._described(file.meta) for file in self._volumes.values()])
                    case Op.DELETE:
                        return await self._delete(str(plain["volume"]))
                    case Op.ADMIN:
                        return self._admin(plain)
                    case Op.FAULT:
                        return self._fault(str(plain["kind"]), str(plain["target"]), float(plain["value"]))
                    case _:
                        raise Invalid(f"no such request: {op}")
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid(f"the request's fields are wrong: {error}") from error

    def _described(self, meta: Meta) -> dict[str, Any]:
        return {**_plain(meta), "open_zones": sorted({handle.zone for handle in self._shared[meta.id].handles})}

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
        self._gate.gate.observe()
        return meta

    async def _attachments(self, volume_id: str, step: Callable[[Meta], Meta]) -> bytes:
        find(self._volumes, volume_id)
        shared = self._shared[volume_id]
        async with shared.alone():
            await self._save(shared, step(shared.file.meta))
        for handle in list(shared.handles):
            if handle.zone not in shared.file.meta.attached_zones:
                handle.cut()
        return _shown(shared.file.meta)

    async def _delete(self, volume_id: str) -> bytes:
        if volume_id not in self._volumes:
            return b"null"
        shared = self._shared[volume_id]
        async with shared.alone():
            if shared.file.meta.attached_zones:
                raise Invalid(f"volume {volume_id} is attached", hint="detach it first")
            shared.deleted = True
            del self._volumes[volume_id], self._shared[volume_id]
            await self._in_thread(shared.file.delete)
            shared.file.close()
        self._gate.gate.observe()
        return b"null"

    def _admin(self, plain: Any) -> bytes:
        gate = self._gate.gate
        if not gate.allowed(str(plain["token"])):
            raise Invalid("the admin token of the credentials file is needed")
        body = plain.get("body")
        given = b"" if body is None else wire.encode(body)
        status, answer = gate.admin(str(plain["method"]), str(plain["target"]), given)
        return wire.encode({"status": status, "answer": answer})

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
        if zone in self._zones_down or self._gate.severed(zone):
            raise Unavailable(f"zone {zone} is down")


def _require_inside(meta: Meta, offset: int, length: int) -> None:
    if offset + length > meta.size_bytes:
        raise Invalid(f"[{offset}, {offset + length}) is outside volume {meta.id}", size_bytes=meta.size_bytes)


def _plain(meta: Meta) -> dict[str, Any]:
    return {"id": meta.id, "size_bytes": meta.size_bytes, "zones": meta.zones, "attached_zones": meta.attached_zones}


def _reservation(state: Reservation) -> bytes:
    return wire.encode({"holder": state.holder, "registered": sorted(state.registered), "generation": state.generation})


def _shown(meta: Meta) -> bytes:
    return wire.encode(_plain(meta))
