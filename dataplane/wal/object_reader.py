"""The recoverer's end of an object WAL: two tombstones, then the blocks between the floor and the first of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from dataplane.wal.base import Block, WalIdentity
from dataplane.wal.codec import MARK_BYTES, Kind, Miss, decode_block, encode_mark, is_mark, peek
from dataplane.wal.objects import ObjectSettings, create, object_key
from dataplane.wal.sides import RetrySettings
from providers.base.clock import Clock
from providers.base.errors import Conflict, Corrupt, NotFound, Unavailable, YunheError, invariant
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)
T = TypeVar("T")

_FAR_ATTEMPTS_MAX = 20
"""Each attempt doubles the margin: a writer that outruns the twentieth creates a billion names a round trip."""


async def ask(call: Callable[[], Awaitable[T]], *, retry: RetrySettings, clock: Clock) -> T:
    """A read, repeated until it is answered or `attempts_max` attempts failed (`Unavailable`)."""
    for attempt in range(retry.attempts_max - 1):
        try:
            return await call()
        except Unavailable:
            await clock.sleep_ms(retry.pause_ms(attempt))
    return await call()


class ObjectReader:
    """`WalReader` of `base.py` over consecutive names."""

    def __init__(
        self,
        store: ObjectStore,
        victim: WalIdentity,
        *,
        own_key: int,
        floor: int,
        clock: Clock,
        settings: ObjectSettings | None = None,
    ) -> None:
        """`floor`: what the ledger states, read after `BrokerFenced` was accepted; an earlier one may lie in a trimmed
        hole, and a tombstone there fences nobody. `own_key` is written into the tombstones, for whoever looks at the
        bucket."""
        self._store = store
        self._victim = victim
        self._floor = floor
        self._clock = clock
        self._settings = settings or ObjectSettings()
        self._own_key = own_key
        self._end: int | None = None

    @property
    def name(self) -> str:
        return "object"

    async def fence(self) -> None:
        await self._put_far_tombstone()
        self._end = await self._walk()

    async def _put_far_tombstone(self) -> None:
        margin = self._settings.window_max + self._settings.margin
        for _ in range(_FAR_ATTEMPTS_MAX):
            number = await self._last_seen() + margin
            found = await self._take(number)
            if found is None or is_mark(found, Kind.TOMBSTONE, self._victim):
                return
            margin *= 2
        raise Unavailable("the owner of the object WAL creates names faster than a tombstone can be put before it")

    async def _take(self, number: int) -> bytes | None:
        """Put a tombstone under `number`: None, or the bytes that are there already."""
        tombstone = encode_mark(Kind.TOMBSTONE, self._victim, number, self._own_key)
        return await create(
            self._store, object_key(self._victim, number), tombstone, retry=self._settings.retry, clock=self._clock
        )

    async def _last_seen(self) -> int:
        """Some existing name with an absent one behind it, found by doubling and halving; the floor's predecessor if
        there is none. A hint, not a conclusion."""
        below, step = self._floor - 1, 1
        while await self._exists(below + step):
            below, step = below + step, step * 2
        above = below + step
        while above - below > 1:
            middle = (below + above) // 2
            if await self._exists(middle):
                below = middle
            else:
                above = middle
        return below

    async def _exists(self, number: int) -> bool:
        try:
            await self._ask(lambda: self._store.head(object_key(self._victim, number)))
        except NotFound:
            return False
        return True

    async def _walk(self) -> int:
        """Take the first absent name from the floor on; a tombstone already there ends the walk too. Returns its
        number."""
        number = self._floor
        while True:
            names = range(number, number + self._settings.walk_parallel)
            for beginning in await asyncio.gather(*(self._beginning(name) for name in names)):
                there = beginning if beginning is not None else await self._take(number)
                if there is None or self._is_tombstone(there):
                    return number
                number += 1

    async def _beginning(self, number: int) -> bytes | None:
        key = object_key(self._victim, number)
        try:
            return await self._ask(lambda: self._store.get(key, start=0, length=MARK_BYTES))
        except NotFound:
            return None

    def _is_tombstone(self, data: bytes) -> bool:
        """Of a tombstone, `data` is the whole object, and so its checksum is verified; of a block, the beginning."""
        header = peek(data)
        if header is None or (header.kind == Kind.TOMBSTONE and not is_mark(data, Kind.TOMBSTONE, self._victim)):
            raise Corrupt("an object in the WAL's prefix is neither a block nor a tombstone")
        return header.kind == Kind.TOMBSTONE

    async def read(self, floor: int) -> AsyncIterator[Block]:
        invariant(self._end is not None, "an object WAL is fenced before it is read")
        assert self._end is not None
        ahead: deque[asyncio.Task[bytes]] = deque()
        following = iter(range(floor, self._end))
        try:
            for number in range(floor, self._end):
                while len(ahead) < self._settings.walk_parallel and (coming := next(following, None)) is not None:
                    ahead.append(asyncio.create_task(self._block_bytes(coming)))
                data = await ahead.popleft()
                block = decode_block(data, self._victim, number)
                if isinstance(block, Miss):
                    raise Corrupt(f"{object_key(self._victim, number)} is damaged: {block}", number=number)
                yield block
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _block_bytes(self, number: int) -> bytes:
        key = object_key(self._victim, number)
        try:
            return await self._ask(lambda: self._store.get(key))
        except NotFound as error:
            raise Conflict(
                f"{key} was there when fenced and is gone", hint="another recovery has finished: read the ledger again"
            ) from error

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await ask(call, retry=self._settings.retry, clock=self._clock)

    async def release(self) -> None:
        """The blocks are committed: delete them, as far as the store answers. Tombstones stay, so that a request still
        under way creates nothing acked."""
        if self._end is None:
            return
        try:
            for start in range(self._floor, self._end, self._settings.trim_batch):
                end = min(self._end, start + self._settings.trim_batch)
                await self._store.delete([object_key(self._victim, number) for number in range(start, end)])
        except YunheError as error:
            log.debug("wal objects of a recovered epoch not deleted: %s", error)

    async def close(self) -> None:
        """Nothing is held."""
