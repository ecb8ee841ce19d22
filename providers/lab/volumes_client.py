"""Block volumes of an emulated cloud, through its volume daemon. A handle is one connection; one that is lost stays
lost, and its user opens another."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from providers.base.clock import Clock
from providers.base.errors import Invalid, OutcomeUnknown, Unavailable, YunheError
from providers.base.registry import VolumesAddress
from providers.base.volumes import BlockDevice, BlockVolumes, Reservation, Volume, Written
from providers.lab import volumes_protocol as wire
from providers.lab.volumes_protocol import Op

READ_BYTES_MAX = 4 << 20
"""Longer reads are made of several requests."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Bounds of the calls to the daemon."""

    call_timeout_ms: float = 5_000
    """Milliseconds until a call without an answer fails. Above the slowest disk that a drill sets, below what a
    person takes for a hang."""
    requests_in_flight_max: int = 64
    """Requests of one handle under way; more are refused. A WAL has a few."""


def open_volumes(address: VolumesAddress, *, clock: Clock) -> BlockVolumes:
    """The volumes at `address`.

    Raises:
        Invalid: no daemon's address.
    """
    return LabBlockVolumes(address, clock=clock)


Answered = Callable[[bytes, YunheError | None], None]
"""The end of a request: the reply's payload, or why there is none."""


class _Channel(asyncio.Protocol):
    """One connection: requests go out as they come, replies are matched by id."""

    def __init__(self, address: str, settings: ClientSettings) -> None:
        self._address = address
        self._settings = settings
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, tuple[Op, Answered]] = {}
        self._next_id = 0
        self._deadlines: deque[tuple[float, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = False
        self._received = bytearray()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    @staticmethod
    async def connect(address: str, settings: ClientSettings) -> _Channel:
        """Raises:
        Unavailable: nobody answers there.
        """
        where = wire.parse_address(address)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(settings.call_timeout_ms / 1000):
                if isinstance(where, Path):
                    _, channel = await loop.create_unix_connection(lambda: _Channel(address, settings), str(where))
                else:
                    _, channel = await loop.create_connection(lambda: _Channel(address, settings), *where)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the volume daemon at {address} cannot be reached", hint="is the lab up?") from error
        return channel

    def send(
        self, op: Op, answered: Answered, first: int = 0, second: int = 0, payload: bytes | memoryview = b""
    ) -> int:
        """Send one request, whose end `answered` is told: OutcomeUnknown if it changes something and no answer came,
        Unavailable if it does not, or what the daemon says. Returns its id.

        Raises:
            Unavailable: it was not sent.
        """
        if self._lost or self._transport is None:
            raise Unavailable(f"the connection to {self._address} is lost", hint="open the volume again")
        if len(self._waiting) >= self._settings.requests_in_flight_max:
            raise Unavailable(f"{len(self._waiting)} requests to {self._address} are under way already")
        self._next_id = request_id = (self._next_id + 1) & 0xFFFFFFFF
        self._waiting[request_id] = (op, answered)
        self._deadlines.append((self._loop.time() + self._settings.call_timeout_ms / 1000, request_id))
        if self._timer is None:
            self._time_out()
        self._transport.write(wire.REQUEST.pack(len(payload), op, request_id, first, second))
        if payload:
            self._transport.write(payload)
        return request_id

    async def call(self, op: Op, first: int = 0, second: int = 0, payload: bytes | memoryview = b"") -> bytes:
        """One request and its reply.

        Raises:
            OutcomeUnknown: it changes something, was sent, and no answer came.
            Unavailable: no answer came.
            YunheError: what the daemon says.
        """
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def answered(reply: bytes, error: YunheError | None) -> None:
            if not answer.done():
                answer.set_result(reply) if error is None else answer.set_exception(error)

        request_id = self.send(op, answered, first, second, payload)
        try:
            return await answer
        finally:
            self._take(request_id)  # its caller may have given up

    def _take(self, request_id: int) -> tuple[Op, Answered] | None:
        """Who waits for this reply, and does not any more."""
        taken = self._waiting.pop(request_id, None)
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            self._deadlines.popleft()
        return taken

    def _unanswered(self, request_id: int, why: str) -> None:
        if (waiting := self._take(request_id)) is not None:
            op, answered = waiting
            answered(b"", (OutcomeUnknown if op in wire.CHANGES else Unavailable)(why))

    def _time_out(self) -> None:
        """One timer for all requests: they wait equally long, and so are due in the order in which they were made."""
        self._timer = None
        now = self._loop.time()
        while self._deadlines:
            due, request_id = self._deadlines[0]
            if due > now:
                self._timer = self._loop.call_at(due, self._time_out)
                return
            self._unanswered(request_id, f"the volume daemon at {self._address} did not answer in time")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at, end, head = 0, len(received), wire.REPLY.size
        replies: list[tuple[int, int, bytes]] = []
        while end - at >= head:
            length, status, request_id = wire.REPLY.unpack_from(received, at)
            if end - at < head + length:
                break
            replies.append((status, request_id, bytes(received[at + head : at + head + length]) if length else b""))
            at += head + length
        del received[:at]
        for status, request_id, payload in replies:
            if (waiting := self._take(request_id)) is not None:
                waiting[1](payload, None if status == wire.OK else wire.to_error(status, payload))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        for request_id in list(self._waiting):
            self._unanswered(request_id, f"the connection to {self._address} was lost")
        if not self._ended.done():
            self._ended.set_result(None)

    async def close(self) -> None:
        """End the connection and wait until that is done."""
        self._lost = True
        if self._transport is not None:
            self._transport.abort()
            await asyncio.shield(self._ended)


class LabBlockDevice:
    """`BlockDevice` over one connection."""

    def __init__(self, channel: _Channel, size_bytes: int, preempt_aborts: bool) -> None:
        self._channel = channel
        self._size_bytes = size_bytes
        self._preempt_aborts = preempt_aborts
        self._memory: mmap.mmap | None = None
        self._memory_at = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def preempt_aborts(self) -> bool:
        return self._preempt_aborts

    async def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size_bytes:
            raise Invalid(f"[{offset}, {offset + length}) is outside the volume", size_bytes=self._size_bytes)
        parts = [
            await self._channel.call(Op.READ, start, min(READ_BYTES_MAX, offset + length - start))
            for start in range(offset, offset + length, READ_BYTES_MAX)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def allocate(self, size: int) -> memoryview:
        if self._memory is not None:
            return memoryview(mmap.mmap(-1, size))
        descriptor = os.memfd_create("yunhe-volume", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)
            named = {"path": f"/proc/{os.getpid()}/fd/{descriptor}", "size": size}
            await self._channel.call(Op.SHARE, payload=wire.encode(named))
        except Invalid:
            return memoryview(mmap.mmap(-1, size))  # the daemon cannot see it: payloads travel
        finally:
            os.close(descriptor)
        self._memory = memory
        self._memory_at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        return memoryview(memory)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        op, second, payload = self._write_request(offset, data)
        await self._channel.call(op, offset, second, payload)

    def start_write(self, offset: int, data: memoryview, done: Written) -> None:
        op, second, payload = self._write_request(offset, data)
        self._channel.send(op, lambda _, error: done(error), offset, second, payload)

    def _write_request(self, offset: int, data: bytes | memoryview) -> tuple[Op, int, bytes | memoryview]:
        """What carries the bytes: their place in memory that the daemon has too, or themselves."""
        if offset < 0 or len(data) > wire.PAYLOAD_BYTES_MAX:
            raise Invalid(f"a write is at most {wire.PAYLOAD_BYTES_MAX} bytes, from offset 0 on", offset=offset)
        if self._memory is not None and isinstance(data, memoryview) and not data.readonly:
            position = ctypes.addressof(ctypes.c_char.from_buffer(data)) - self._memory_at
            if 0 <= position <= len(self._memory) - len(data):
                return Op.WRITE_SHARED, position << 32 | len(data), b""
        return Op.WRITE, 0, data

    async def register(self, key: int) -> None:
        await self._channel.call(Op.REGISTER, _key(key))

    async def reserve(self) -> None:
        await self._channel.call(Op.RESERVE)

    async def preempt(self, victim: int) -> None:
        await self._channel.call(Op.PREEMPT, _key(victim))

    async def release(self) -> None:
        await self._channel.call(Op.RELEASE)

    async def reservation(self) -> Reservation:
        plain = wire.decode(await self._channel.call(Op.RESERVATION))
        return Reservation(plain["holder"], frozenset(plain["registered"]), plain["generation"])

    async def close(self) -> None:
        """Queued writes are over when this returns; if the daemon does not answer, its connection is cut instead,
        and it drops them."""
        try:
            await self._channel.call(Op.CLOSE)
        except Unavailable:
            pass  # lost already
        finally:
            await self._channel.close()


class LabBlockVolumes:
    """`BlockVolumes` of one daemon. Its API calls are few, so each makes a connection of its own."""

    def __init__(self, address: VolumesAddress, *, clock: Clock, settings: ClientSettings | None = None) -> None:
        if address.endpoint is None:
            raise Invalid("these volumes need the address of a volume daemon")
        wire.parse_address(address.endpoint)
        self._endpoint = address.endpoint
        self._clock = clock
        self._settings = settings or ClientSettings()

    async def create(self, volume_id: str, *, size_bytes: int, zones: Sequence[str], share_max: int) -> Volume:
        wanted = {"volume": volume_id, "size_bytes": size_bytes, "zones": list(zones), "share_max": share_max}
        return _volume(await self._ask(Op.CREATE, wanted))

    async def attach(self, volume_id: str, zone: str) -> Volume:
        return _volume(await self._ask(Op.ATTACH, {"volume": volume_id, "zone": zone}))

    async def detach(self, volume_id: str, zone: str) -> Volume:
        return _volume(await self._ask(Op.DETACH, {"volume": volume_id, "zone": zone}))

    async def describe(self) -> Sequence[Volume]:
        return [_volume(plain) for plain in await self._ask(Op.DESCRIBE, {})]

    async def open_zones(self, volume_id: str) -> frozenset[str]:
        """Zones in which somebody holds the volume open; none where there is no such volume."""
        rows = await self._ask(Op.DESCRIBE, {})
        return frozenset(zone for plain in rows if plain["id"] == volume_id for zone in plain["open_zones"])

    async def delete(self, volume_id: str) -> None:
        """Idempotent.

        Raises:
            Invalid: it is attached.
        """
        await self._ask(Op.DELETE, {"volume": volume_id})

    async def open(self, volume_id: str, zone: str) -> BlockDevice:
        channel = await _Channel.connect(self._endpoint, self._settings)
        try:
            plain = wire.decode(await channel.call(Op.OPEN, payload=wire.encode({"volume": volume_id, "zone": zone})))
        except BaseException:
            await channel.close()
            raise
        return LabBlockDevice(channel, plain["size_bytes"], plain["preempt_aborts"])

    async def set_fault(self, kind: str, target: str, value: float) -> None:
        """Make something go wrong, or, with value 0, right again. `zone_down`: target a zone; its handles are cut.
        `slow_ms` (added to each read and write), `errors`, `full`:
        target a volume. Forgotten when the daemon restarts.

        Raises:
            Invalid: no such fault.
            NotFound: no such volume.
        """
        await self._ask(Op.FAULT, {"kind": kind, "target": target, "value": value})

    async def close(self) -> None:
        """Nothing to release: handles are closed by whoever opened them."""

    async def _ask(self, op: Op, plain: dict[str, Any]) -> Any:
        channel = await _Channel.connect(self._endpoint, self._settings)
        try:
            return wire.decode(await channel.call(op, payload=wire.encode(plain)))
        finally:
            await channel.close()


def _volume(plain: dict[str, Any]) -> Volume:
    return Volume(plain["id"], plain["size_bytes"], tuple(plain["zones"]), tuple(plain["attached_zones"]))


def _key(key: int) -> int:
    if not 0 < key < 1 << 64:
        raise Invalid(f"{key} is not a registration key", hint="keys are 64 bit and not zero")
    return key
