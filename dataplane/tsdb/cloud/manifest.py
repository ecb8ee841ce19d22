"""A database's manifest: a ledger of its own, which says what files it is made of. Open this file first.

    <database>/ledger/…     commands (`manifest_commands.py`), folded by `manifest_fold.py`

Any number of processes open the same manifest, append and follow; snapshots bound what a fresh one reads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from dataplane.ledger.entry import ENTRY_BYTES_MAX, Command, Entry, Writer
from dataplane.ledger.log import Ledger
from dataplane.tsdb.cloud.manifest_fold import ManifestMachine
from dataplane.tsdb.cloud.manifest_state import ManifestState
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Fenced, Invalid
from providers.base.objects import ObjectStore

ENTRIES_PER_SNAPSHOT = 200
"""Entries after which whoever appends stores a snapshot: a fresh reader replays at most about as many."""
COMMAND_BYTES_MAX = ENTRY_BYTES_MAX - 65_536
"""The rest is the entry's own frame. A batch of 2,000 files takes about 1 MiB."""


class Manifest:
    """One process's view of a manifest, and its way to change it."""

    def __init__(self, store: ObjectStore, database: str, writer: Writer, *, clock: Clock, rng: Rng) -> None:
        self.database = database
        self._ledger: Ledger[ManifestState] = Ledger(store, database, ManifestMachine(), writer, clock=clock, rng=rng)
        self._one_at_a_time = asyncio.Lock()

    @property
    def state(self) -> ManifestState:
        """As of the last `poll` or `commit`. Not to be kept across an await: it changes in place."""
        return self._ledger.state

    @property
    def seq(self) -> int:
        """Entries folded so far."""
        return self._ledger.seq

    @property
    def last_read_ms(self) -> float:
        """When the log was last read, by the monotonic clock."""
        return self._ledger.last_read_ms

    async def open(self) -> None:
        """Read the newest snapshot and what came after.

        Raises:
            Unavailable: the bucket does not answer. Corrupt, Internal: the log cannot be understood.
        """
        await self._ledger.open()

    async def poll(self) -> int:
        """Fold in what is new; returns how many entries that were.

        Raises:
            As `open`.
        """
        return await self._ledger.poll()

    def subscribe(self, callback: Callable[[Entry, Sequence[str | None]], None]) -> None:
        """`callback(entry, outcomes)` after each folded entry; a restart from a snapshot tells nothing."""
        self._ledger.subscribe(callback)

    async def commit(self, decide: Callable[[ManifestState], Sequence[Command] | None]) -> tuple[str | None, ...]:
        """Append what `decide` wants of the newest state (asked again after each lost race); for each of its commands
        None or why the fold refused it. Nothing wanted: empty.

        Each call has an entry of its own: entries are bounded, and what is asked for at once need not be.

        Raises:
            Invalid: more than an entry holds; split it. Unavailable: nothing was appended. OutcomeUnknown: it may be;
                the next call learns it first.
        """

        def bounded(state: ManifestState) -> Sequence[Command] | None:
            commands = decide(state)
            size = len(json.dumps(commands, separators=(",", ":")))
            if size > COMMAND_BYTES_MAX:
                raise Invalid(f"{size} bytes of commands are more than a manifest's entry holds ({COMMAND_BYTES_MAX})")
            return commands

        async with self._one_at_a_time:
            appended = await self._ledger.append(bounded)
        if self._ledger.seq - self._ledger.snapshot_seq >= ENTRIES_PER_SNAPSHOT:
            await self._ledger.snapshot()
        return appended.rejections if appended is not None else ()

    async def commit_one(self, decide: Callable[[ManifestState], Command | None]) -> bool:
        """As `commit`, of one command; false: it was not wanted.

        Raises:
            Fenced: the command's epoch is not the manifest's. Conflict: refused otherwise; the message says why.
        """
        asked: list[Command] = []

        def one(state: ManifestState) -> Sequence[Command]:
            command = decide(state)
            asked[:] = [command] if command is not None else []
            return tuple(asked)

        for why in await self.commit(one):
            if why is not None and asked[0]["epoch"] != self.state.epoch:
                raise Fenced(why, epoch=asked[0]["epoch"], actual=self.state.epoch)
            if why is not None:
                raise Conflict(why)
        return bool(asked)

    async def snapshot(self) -> int:
        """Store the state as folded now. Anybody may."""
        return await self._ledger.snapshot()

    async def collect(self) -> int:
        """Delete entries that lie behind two snapshots; returns how many."""
        return await self._ledger.collect()

    async def close(self) -> None:
        """Let an append under way end. The store is shared, and stays open."""
        await self._ledger.close()
