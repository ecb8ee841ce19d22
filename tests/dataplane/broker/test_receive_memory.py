"""What is read stays as it was read for as long as anybody looks at it, whoever reads next."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from dataplane.broker import receive_memory
from dataplane.broker.caller import Caller
from dataplane.broker.framing import HEAD_BYTES, FrameReceiver
from dataplane.broker.receive_memory import HOLDERS_MAX, LOOKS_MAX, READ_BYTES_MAX, SPACE_BYTES_MIN, ReceiveMemory
from dataplane.broker.receiving import FrameMemory
from dataplane.broker.server_settings import ServerSettings
from dataplane.broker.wire_primitives import Malformed

CHUNK = 2 << 20


class AnyCaller:
    """Nobody has to log in."""

    gate = None


class Client(FrameReceiver):
    """A connection whose frames the test keeps, as batches are kept, and which it blocks at will."""

    def __init__(self, memory: ReceiveMemory, frames: FrameMemory) -> None:
        super().__init__(memory, frames, ServerSettings(), cast(Caller, AnyCaller()))
        self.kept: list[tuple[memoryview, bytes]] = []
        self.handled: list[bytes] = []
        self.room = 1 << 30
        self.stalled = False

    def abort(self) -> None:
        raise AssertionError("nobody is cut off here")

    def _handle(self, frame: memoryview, *, kept: bool) -> None:
        self.room -= 1
        self.handled.append(bytes(frame))
        if kept:
            self.kept.append((frame, bytes(frame)))

    def _blocked(self) -> bool:
        return self.room <= 0

    def _waits_for_wal(self) -> bool:
        return self.stalled

    def _throttle(self) -> None: ...

    def _refuse(self, error: Malformed) -> None:
        raise error

    def go_on(self) -> None:
        self._take_frames()

    def gone(self) -> None:
        self._forget_frames()

    def read(self, data: bytes, most: int = 1 << 30) -> int:
        """As a socket that has `data` does it; how many bytes it took."""
        buffer = self.get_buffer(-1)
        size = min(len(buffer), len(data), most)
        buffer[:size] = data[:size]
        self.buffer_updated(size)
        return size


def frame(rng: random.Random, size: int) -> bytes:
    """A Produce frame with its length, of random content."""
    body = b"\0\0" + rng.randbytes(size - 2)
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("seed", range(20))
def test_frames_arrive_whole_and_stay_as_they_were(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        memory = ReceiveMemory(CHUNK)
        clients = [Client(memory, FrameMemory(64 << 20, 100, 100)) for _ in range(rng.choice([1, 3, HOLDERS_MAX + 9]))]
        sent: list[list[bytes]] = [[] for _ in clients]
        left = [b"" for _ in clients]
        for _ in range(600):
            i = rng.randrange(len(clients))
            client = clients[i]
            if not left[i]:
                sizes = (8, 100, 9_000, HEAD_BYTES - 4, HEAD_BYTES, 40_000, 70_000, 200_000, 250_000, 300_000)
                frames = [frame(rng, rng.choice(sizes)) for _ in range(rng.randrange(1, 6))]
                sent[i] += frames
                left[i] = b"".join(frames)
            if client.room <= 0:  # it was not read meanwhile
                client.room = 1 << 30
                client.go_on()
            if rng.random() < 0.2:
                client.room = rng.randrange(4)
            left[i] = left[i][client.read(left[i], rng.choice([5, 1_000, 50_000, 1 << 30])) :]
            if rng.random() < 0.1 and client.kept:  # the cache evicts
                del client.kept[: rng.randrange(len(client.kept)) + 1]
        for i, client in enumerate(clients):
            client.room = 1 << 30
            client.go_on()
            while left[i]:
                left[i] = left[i][client.read(left[i]) :]
            assert client.handled == [one[4:] for one in sent[i]]
            assert all(view == was for view, was in client.kept), "what is kept was written over"

    asyncio.run(main())


def test_a_chunk_is_used_again_only_when_nobody_looks_at_it() -> None:
    memory = ReceiveMemory(CHUNK)
    space = memory.space()
    assert space is not None
    space[:4] = b"kept"
    view = space[:4]
    memory.keep(CHUNK - SPACE_BYTES_MIN + 1)
    del space
    for _ in range(8):  # chunk after chunk
        assert memory.space() is not None
        memory.keep(CHUNK - SPACE_BYTES_MIN + 1)
    assert view == b"kept"
    mapped = len(memory._retired)
    assert mapped <= 2, "those that nobody uses are used again"
    del view
    memory.give_back_unused()
    memory.give_back_unused()
    assert not memory._retired


def test_chunks_that_stay_in_use_keep_no_other_from_being_used_again() -> None:
    memory = ReceiveMemory(CHUNK)
    held = [_whole_chunk(memory) for _ in range(2 * LOOKS_MAX)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(piece)) for piece in held]
    free = addresses[-2]
    held[-2].release()
    again = [_whole_chunk(memory) for _ in range(3)]  # looks at some of them each time
    assert free in [ctypes.addressof(ctypes.c_char.from_buffer(piece)) for piece in again]


def _whole_chunk(memory: ReceiveMemory) -> memoryview:
    pieces = 0
    while pieces < CHUNK:
        memory.space()
        piece, _ = memory.keep(READ_BYTES_MAX)
        pieces += READ_BYTES_MAX
    return piece


def test_few_bytes_that_nobody_keeps_take_no_room() -> None:
    async def main() -> None:
        memory = ReceiveMemory(CHUNK)
        client = Client(memory, FrameMemory(64 << 20, 100, 100))
        small = frame(random.Random(1), 500)
        for _ in range(10_000):
            client.read(small)
        assert len(client.handled) == 10_000
        assert memory._at == memory._base, "the same space is read into again and again"

    asyncio.run(main())


def test_those_who_hold_memory_up_are_few() -> None:
    async def main() -> None:
        memory = ReceiveMemory(CHUNK)
        slow = [Client(memory, FrameMemory(64 << 20, 100, 100)) for _ in range(HOLDERS_MAX + 20)]
        begun = frame(random.Random(1), 30_000)
        for client in slow:
            client.read(begun[:20_000])
        assert memory.space() is None
        assert len(memory._holders) == HOLDERS_MAX
        for client in slow:
            sent = 20_000 if client in memory._holders else HEAD_BYTES
            while sent < len(begun):
                sent += client.read(begun[sent:])
            assert client.handled == [begun[4:]], "the others are served from memory of their own"
        assert memory.space() is not None

        slow = [Client(memory, FrameMemory(64 << 20, 100, 100)) for _ in range(HOLDERS_MAX)]
        for client in slow:
            client.read(begun[:20_000])
        assert memory.space() is None
        slow[3].gone()
        assert memory.space() is not None, "who leaves holds nothing up"

    asyncio.run(main())


def test_who_reads_nothing_keeps_nothing() -> None:
    async def main() -> None:
        memory = ReceiveMemory(CHUNK)
        idle = [Client(memory, FrameMemory(64 << 20, 100, 100)) for _ in range(50)]
        for client in idle:
            client.get_buffer(-1)  # and there was nothing to read
            memory.space()
            memory.keep(CHUNK - SPACE_BYTES_MIN + 1)  # by somebody else
        assert len(memory._retired) <= 2

    asyncio.run(main())


def test_a_read_is_bounded() -> None:
    memory = ReceiveMemory(receive_memory.CHUNK_BYTES)
    space = memory.space()
    assert space is not None and len(space) == READ_BYTES_MAX


def test_a_chunk_is_cleared_ahead_and_counts_as_any_other() -> None:
    def resident(memory: mmap.mmap) -> int:
        """Bytes of it that have a page, as the kernel says (proc_pid_pagemap(5))."""
        address, count = ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory) // mmap.PAGESIZE
        with Path("/proc/self/pagemap").open("rb") as pages:
            pages.seek(address // mmap.PAGESIZE * 8)
            entries = struct.unpack(f"={count}Q", pages.read(count * 8))
        return sum(entry >> 63 for entry in entries) * mmap.PAGESIZE

    with ThreadPoolExecutor(1) as clearer:
        memory = ReceiveMemory(clearer=clearer)
        assert memory.space() is not None
        spare = memory._spare
        assert spare is not None
        cleared = spare.result(10)
        assert resident(cleared) == receive_memory.CHUNK_BYTES
        view = memory.keep(receive_memory.CHUNK_BYTES)[0]
        assert memory.space() is not None
        assert memory._memory is cleared
        del view, cleared
    memory = ReceiveMemory(clearer=None)
    assert memory.space() is not None
    assert memory._memory is not None
    assert resident(memory._memory) < receive_memory.CHUNK_BYTES
