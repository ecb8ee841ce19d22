"""A flash in memory that loses what was not synced, torn as it likes, when the power is cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from providers.base.errors import Full, Unavailable


class PowerCut(BaseException):
    """The process is gone from here on."""


@dataclass
class Inode:
    """`durable`: what a cut leaves for sure. `writes`: since then, in order; a cut leaves any part of any of them."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writes: list[Callable[[bytearray, float], None]] = field(default_factory=list)


class Flash:
    """`Files`. `cut_at`: the number of the call that the power is cut in; `full_at`, `sync_fails_at` likewise."""

    def __init__(self) -> None:
        self.inodes: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.name_changes: list[Callable[[dict[str, Inode]], None]] = []
        self.calls = 0
        self.cut_at = 0
        self.full_at: set[int] = set()
        self.sync_fails_at: set[int] = set()

    def _call(self) -> bool:
        """Whether the power is cut in this call."""
        self.calls += 1
        return self.calls == self.cut_at

    def cut(self, rng: random.Random) -> None:
        """The state in which the next life finds it."""
        names = dict(self.durable_names)
        for change in self.name_changes[: rng.randint(0, len(self.name_changes))]:
            change(names)
        for inode in {id(i): i for i in names.values()}.values():
            data = bytearray(inode.durable)
            for write in inode.writes:
                write(data, rng.choice([0.0, rng.random(), 1.0]))
            inode.data, inode.durable, inode.writes = data, bytes(data), []
        self.inodes, self.durable_names, self.name_changes = dict(names), dict(names), []
        self.cut_at = 0

    def names(self) -> list[str]:
        return sorted(self.inodes)

    def read(self, name: str) -> bytes:
        return bytes(self.inodes[name].data)

    def part(self, name: str, at: int, length: int) -> bytes:
        return bytes(self.inodes[name].data[at : at + length])

    def append(self, name: str, at: int, data: bytes | bytearray) -> None:
        if name not in self.inodes:
            made = Inode()
            self.inodes[name] = made
            self.name_changes.append(lambda names: names.__setitem__(name, made))
        inode = self.inodes[name]

        def write(onto: bytearray, share: float) -> None:
            part = data[: int(len(data) * share)]
            if part:
                onto.extend(bytes(max(0, at - len(onto))))  # pages before it that never came are zeros
                onto[at : at + len(part)] = part

        cut = self._call()
        if self.calls in self.full_at:
            write(inode.data, 0.5)
            inode.writes.append(lambda onto, share: write(onto, share / 2))
            raise Full("the flash is full")
        write(inode.data, 1.0)
        inode.writes.append(write)
        if cut:
            raise PowerCut

    def truncate(self, name: str, size: int) -> None:
        inode = self.inodes[name]

        def shorten(onto: bytearray, share: float) -> None:
            if share == 1.0:
                del onto[size:]

        shorten(inode.data, 1.0)
        inode.writes.append(shorten)
        if self._call():
            raise PowerCut

    def sync(self, name: str) -> None:
        if self._call():
            raise PowerCut
        if self.calls in self.sync_fails_at:
            raise Unavailable("the flash errs")
        inode = self.inodes[name]
        inode.durable, inode.writes = bytes(inode.data), []

    def rename(self, old: str, new: str) -> None:
        def change(names: dict[str, Inode]) -> None:
            if old in names:
                names[new] = names.pop(old)

        change(self.inodes)
        self.name_changes.append(change)
        if self._call():
            raise PowerCut

    def remove(self, name: str) -> None:
        self.inodes.pop(name, None)

        def change(names: dict[str, Inode]) -> None:
            names.pop(name, None)

        self.name_changes.append(change)
        if self._call():
            raise PowerCut

    def sync_names(self) -> None:
        if self._call():
            raise PowerCut
        self.durable_names, self.name_changes = dict(self.inodes), []
