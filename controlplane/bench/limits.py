"""What the machine itself can do, measured beside each benchmark: the disk with durable writes, loopback, memory."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from pathlib import Path

from providers.base.clock import Clock

FILE_BYTES = 256 << 20
LOOPBACK_BYTES = 2 << 30


def durable_write_mb_s(folder: Path, size: int, clock: Clock, *, seconds: float = 1.0) -> float:
    """MB/s of durable writes of `size` bytes one after the other, past the page cache (O_DIRECT, O_DSYNC) into a file
    whose blocks exist: what `fio --direct=1 --sync=dsync --iodepth=1 --rw=write` measures.
    """
    path = folder / "bench.dsync"
    buffer = mmap.mmap(-1, size)  # page-aligned
    buffer.write(os.urandom(size))  # noqa: TID251 -- content only; nothing depends on it
    try:
        with path.open("wb") as file:
            for _ in range(FILE_BYTES >> 20):
                file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        try:
            began_ms, written = clock.monotonic_ms(), 0
            while clock.monotonic_ms() - began_ms < seconds * 1000:
                written += os.pwrite(descriptor, buffer, written % (FILE_BYTES - size) // mmap.PAGESIZE * mmap.PAGESIZE)
            return written / 1e3 / (clock.monotonic_ms() - began_ms)
        finally:
            os.close(descriptor)
    finally:
        path.unlink(missing_ok=True)


def syncs_s(folder: Path, size: int, clock: Clock, *, seconds: float = 1.0) -> float:
    """How many times a second `size` bytes are written at the end of what is there, in a file whose room is reserved,
    and made durable by fdatasync, one after the other: what a log without group commit could do at best.
    """
    path = folder / "bench.sync"
    data = os.urandom(size)  # noqa: TID251 -- content only; nothing depends on it
    try:
        with path.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            os.fsync(file.fileno())
            began_ms, count = clock.monotonic_ms(), 0
            while clock.monotonic_ms() - began_ms < seconds * 1000:
                os.pwrite(file.fileno(), data, count * size % FILE_BYTES)
                os.fdatasync(file.fileno())
                count += 1
            return count * 1000 / (clock.monotonic_ms() - began_ms)
    finally:
        path.unlink(missing_ok=True)


def loopback_mb_s(size: int, clock: Clock) -> float:
    """MB/s through one TCP connection on loopback, sent in pieces of `size` bytes and read as fast as they come."""
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    receiver, _ = listener.accept()
    listener.close()
    payload = bytes(size)

    def send() -> None:
        for _ in range(LOOPBACK_BYTES // size):
            sender.sendall(payload)
        sender.close()

    thread = threading.Thread(target=send)
    buffer = bytearray(4 << 20)
    began_ms, received = clock.monotonic_ms(), 0
    thread.start()
    while count := receiver.recv_into(buffer):
        received += count
    took_ms = clock.monotonic_ms() - began_ms
    thread.join()
    receiver.close()
    return received / 1e3 / took_ms
