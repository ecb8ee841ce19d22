"""The WAL side on plain object storage: one object a block, under consecutive names, each created only if absent.

    <cluster>/wal/<node>/<epoch>/00000000000000000001  block 1
                                 ...
                                 00000000000000000042  block 42, newest acked
                                 00000000000000000043  tombstone: the fencer took the first absent name
                                 00000000000000001051  tombstone: put far ahead first; a fast writer runs into it

Rules (design §5, *Object WAL*): (a) success for n only after success for all below, and a retry of a name carries the
same bytes; (c) tombstones stay for ever; (d) only names below the floor are deleted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from dataplane.wal.base import Started, WalIdentity
from dataplane.wal.sides import OrderGate, RetrySettings
from providers.base.clock import Clock
from providers.base.errors import AlreadyExists, Fenced, Full, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """Settings of the object WAL. Owner and recoverer of one cluster share them."""

    window_max: int = 8
    """Creates in flight. Eight at tens of milliseconds each keep up with a hundred blocks a second; it also bounds what
    a recoverer finds unacked."""
    margin: int = 1000
    """How far beyond the last name seen, and the window, a fencer puts its first tombstone: more than an owner creates
    during one round trip."""
    walk_parallel: int = 32
    """Names that a fencer or reader asks for at once."""
    trim_batch: int = 500
    """Names a delete request carries; S3's limit is 1,000."""
    retry: RetrySettings = field(default_factory=RetrySettings)
    """Of all but writes."""
    write_retry: RetrySettings = field(default_factory=lambda: RetrySettings(attempts_max=600))
    """Of writes: ten minutes of pauses, and the answers' own time. A WAL that gives up ends its broker, whose next life
    needs the same bucket, and whose clients wait for an agent's back-off on top of the outage."""


def object_key(identity: WalIdentity, number: int) -> str:
    """Name of block `number`."""
    return f"{identity.prefix}/{number:020d}"


async def create(store: ObjectStore, key: str, data: bytes, *, retry: RetrySettings, clock: Clock) -> bytes | None:
    """Create `key` if absent, however often the answer is lost: the one way that names of a WAL are taken.

    Returns None when it now holds `data` (by this call, or by an earlier or duplicated request of the same bytes), else
    the bytes that are there.

    Raises:
        Unavailable: no attempt gave an answer; the name may be taken later by one of them.
    """
    last: YunheError | None = None
    for attempt in range(retry.attempts_max):
        try:
            await store.put(key, data, if_absent=True)
            return None
        except AlreadyExists:
            try:
                found = await store.get(key)
                return None if found == data else found
            except (NotFound, Unavailable) as error:
                last = error  # somebody collects it, or no answer: not a conclusion
        except (Unavailable, Full) as error:
            last = error
        await clock.sleep_ms(retry.pause_ms(attempt))
    raise OutcomeUnknown(f"{key} could not be created: {last}", key=key) from last


class ObjectSide:
    """The owner's end. `Side` of `base.py`; named `object`."""

    def __init__(
        self, store: ObjectStore, identity: WalIdentity, *, clock: Clock, settings: ObjectSettings | None = None
    ) -> None:
        """The store is shared, and stays open."""
        self._store = store
        self._identity = identity
        self._clock = clock
        self._settings = settings or ObjectSettings()
        self._gate = OrderGate()
        self._floor = 1
        self.alone = False
        self._deleted_below = 1
        self._collector: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return "object"

    @property
    def window_max(self) -> int:
        return self._settings.window_max

    def room_bytes(self) -> int | None:
        return None

    async def open(self) -> None:
        retry = self._settings.retry
        key = object_key(self._identity, 1)
        for attempt in range(retry.attempts_max):
            try:
                await self._store.head(key)
            except NotFound:
                return
            except Unavailable:
                if attempt + 1 == retry.attempts_max:
                    raise
                await self._clock.sleep_ms(retry.pause_ms(attempt))
            else:
                raise Fenced(
                    f"{key} exists before this epoch's first append: it was taken over, or opened before", key=key
                )

    def begin(self, number: int) -> None:
        self._gate = OrderGate(number)

    async def allocate(self, size: int) -> memoryview | None:
        return None

    def start(self, number: int, block: memoryview, done: Started) -> bool:
        return False  # a request takes a task

    async def write(self, number: int, block: memoryview) -> bool:
        self._gate.check()
        key = object_key(self._identity, number)
        try:
            found = await create(self._store, key, bytes(block), retry=self._settings.write_retry, clock=self._clock)
            if found is not None:
                raise Fenced(f"{key} is taken, and not by this epoch's block: the WAL was taken over", key=key)
        except YunheError as error:
            # No later block may count: there is a hole below it for good, since a name is never skipped.
            self._gate.fail(error)
            raise
        await self._gate.succeed(number)
        return True

    async def trim(self, floor: int) -> None:
        """Deletes in the background; what fails is tried again with the next trim. Names below the floor were acked, so
        that none is a tombstone."""
        self._floor = max(self._floor, floor)
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        while self._deleted_below < self._floor:
            start = self._deleted_below
            end = min(self._floor, start + self._settings.trim_batch)
            try:
                await self._store.delete([object_key(self._identity, number) for number in range(start, end)])
            except YunheError as error:
                log.debug("wal object delete failed, tried again with the next trim: %s", error)
                return
            self._deleted_below = end

    async def close(self) -> None:
        """Ends the collector: what it leaves is below the floor, and harmless."""
        self._gate.fail(Unavailable("the WAL is closed"))
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.gather(self._collector, return_exceptions=True)
