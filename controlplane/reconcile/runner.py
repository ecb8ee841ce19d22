"""Takes keys from the queue and gives each a turn of its kind's reconciler; the only place where a reconciler's errors
end up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from controlplane.reconcile.queue import WorkQueue
from controlplane.store.base import Key
from providers.base.errors import YunheError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did and why, in one sentence. `again_ms`: when to look again without being asked; None leaves it to
    the resync.
    """

    sentence: str
    again_ms: float | None = None


class Reconciler(Protocol):
    """Reads the level (desired, observed), compares, acts, records status. Idempotent; may be called for an object that
    is gone.
    """

    async def reconcile(self, name: str) -> Turn:
        """One turn.

        Raises:
            YunheError: it could not be brought about now; the key comes again with back-off.
        """
        ...

    def failed(self, name: str, error: YunheError) -> None:
        """Record in the object's status that its turn failed."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Bounds of the runner."""

    workers: int = 16
    """Turns at once. A turn is mostly waiting for a cloud, and a dead cloud must not hold up the three others; turns of
    topics that wait for one ledger share its next entry."""
    resync_interval_ms: float = 30_000.0
    """How often every object gets a turn although nothing is known to have changed."""
    turn_timeout_ms: float = 20_000.0
    """A turn that takes longer is abandoned and comes again with back-off."""
    same_looks: int = 20
    """After so many looks in a row that saw the same, the next ones come with twice the pause, then with three times
    that, and so on;"""
    again_max_ms: float = 2_000.0
    """but not with a longer one than this."""


class Runner:
    """Workers over one queue."""

    def __init__(
        self,
        queue: WorkQueue,
        reconcilers: Mapping[str, Reconciler],
        keys: Callable[[], Iterable[Key]],
        *,
        settings: RunnerSettings = RunnerSettings(),
    ) -> None:
        """`keys`: every object there is, desired or only remembered, for the resync."""
        self.queue = queue
        self._reconcilers = reconcilers
        self._keys = keys
        self._settings = settings
        self._same: dict[Key, int] = {}
        self.sentences: dict[Key, str] = {}
        """What the newest turn of each key said."""
        self.turns = 0

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._resync())
                for _ in range(self._settings.workers):
                    group.create_task(self._work())
        finally:
            self.queue.close()

    async def _resync(self) -> None:
        while True:
            try:
                keys = set(self._keys())
            except YunheError as error:
                # The store cannot be read now (a full disk, a damaged file): nothing is concluded from that.
                log.error("resync failed: %s", error)
            else:
                for key in sorted(keys):
                    self.queue.add(key, user=False)
                self.sentences = {key: said for key, said in self.sentences.items() if key in keys}
                self._same = {key: looks for key, looks in self._same.items() if key in keys}
            await asyncio.sleep(self._settings.resync_interval_ms / 1000)

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            sentence = await self._turn(key)
            self.turns += 1
            if self.sentences.get(key) != sentence:
                log.info("turn %s %s: %s", *key, sentence)
            self.sentences[key] = sentence

    async def _turn(self, key: Key) -> str:
        kind, name = key
        reconciler = self._reconcilers[kind]
        try:
            async with asyncio.timeout(self._settings.turn_timeout_ms / 1000):
                turn = await reconciler.reconcile(name)
        except (YunheError, TimeoutError) as error:
            delay_ms = self.queue.retry(key)
            if isinstance(error, YunheError):
                self._record(reconciler, key, error)
                return f"failed: {error.message}; again in {delay_ms / 1000:.1f} s"
            return f"gave up after {self._settings.turn_timeout_ms / 1000:.0f} s; again in {delay_ms / 1000:.1f} s"
        except asyncio.CancelledError:
            raise
        except Exception:
            # A bug in one reconciler must not stop the others' turns.
            delay_ms = self.queue.retry(key)
            log.exception("turn %s %s failed with a bug", *key)
            return f"failed with a bug, see the log; again in {delay_ms / 1000:.1f} s"
        self.queue.done(key)
        if turn.again_ms is not None:
            self._same[key] = self._same.get(key, 0) + 1 if self.sentences.get(key) == turn.sentence else 0
            # Who has waited for long for the same thing need not look so often.
            slower = 1 + self._same[key] // self._settings.same_looks
            self.queue.add_later(key, max(turn.again_ms, min(turn.again_ms * slower, self._settings.again_max_ms)))
        return turn.sentence

    @staticmethod
    def _record(reconciler: Reconciler, key: Key, failure: YunheError) -> None:
        try:
            reconciler.failed(key[1], failure)
        except YunheError as error:
            # Its status cannot be written either; the turn comes again in any case.
            log.error("the failure of %s %s could not be recorded: %s", *key, error)
