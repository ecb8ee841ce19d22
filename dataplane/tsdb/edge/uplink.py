"""An edge's requests to the bucket: each waits for its bytes under the cap, is counted, and is made again, later and
later, where the bucket refuses for now.

Nothing is overwritten: files and batches are put where nothing is, and what is there already is looked at. What cannot
be had within the tries is left to a later turn of the shipper.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from dataplane.tsdb.edge.throttle import Throttle
from providers.base.clock import Clock, Rng, backoff_ms
from providers.base.errors import AlreadyExists, Conflict, Invalid, NotFound, OutcomeUnknown, Unavailable
from providers.base.objects import ObjectStore
from providers.base.resumed import Progress, ResumableStore

T = TypeVar("T")
REQUEST_BYTES = 1_000
"""About what a request costs besides its body: a signed head and its answer."""


NUMBER_STEP_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class Tries:
    """Of one request that is refused for now; then the whole turn waits."""

    tries_max: int = 6
    first_ms: float = 100
    max_ms: float = 5_000


class Uplink:
    """See the module. `bytes`: sent so far, bodies and `REQUEST_BYTES` a request; what was sent in vain included."""

    def __init__(self, bucket: ObjectStore, throttle: Throttle, clock: Clock, rng: Rng, tries: Tries = Tries()) -> None:
        self._bucket = bucket
        self._throttle = throttle
        self._clock = clock
        self._rng = rng
        self._tries = tries
        self.bytes = 0
        self.requests = 0
        self.retries = 0

    async def put_file(
        self,
        key: str,
        size: int,
        chunks: Callable[[], AsyncGenerator[bytes, None]],
        *,
        look_first: bool,
        progress: Callable[[], Awaitable[Progress]],
    ) -> None:
        """Put a file of `size` bytes where none is. `look_first`: an earlier life may have put it. `progress`: what is
        known of parts of it that are there, asked for if it is large enough to be sent in parts.

        One that is there and as long is taken for it: nobody else knows its id, a stream is stored whole or not at
        all, and the cloud reads each byte of it against the signed checksum.

        Raises:
            AlreadyExists: what is there has another length. Unavailable: not for now. And what `chunks` raises.
        """
        look = look_first

        async def put() -> None:
            nonlocal look
            if look and await self._is_there(key, size):
                return
            await self.pay(0)
            resumable = self._bucket if isinstance(self._bucket, ResumableStore) else None
            in_parts = resumable is not None and size > resumable.resumes_from
            async with aclosing(chunks() if in_parts else self._paid(chunks())) as whole:
                try:
                    if resumable is not None and in_parts:
                        await resumable.put_resumed(key, whole, await progress(), if_absent=True)
                    else:
                        await self._bucket.put_stream(key, whole, if_absent=True)
                except OutcomeUnknown:
                    look = True
                    raise
                except AlreadyExists:
                    if not await self._is_there(key, size):
                        raise Unavailable(f"{key} was there, and is not any more") from None

        await self._patiently(put)

    async def _is_there(self, key: str, size: int) -> bool:
        await self.pay(0)
        try:
            there = (await self._bucket.head(key)).size
        except NotFound:
            return False
        if there != size:
            raise AlreadyExists(f"{key} is there with {there} bytes, not {size}")
        return True

    async def _paid(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            async for chunk in chunks:
                await self._throttle.take(len(chunk))
                self.bytes += len(chunk)
                yield chunk

    async def put_batch(self, key: str, data: bytes) -> bytes:
        """Put a batch where none is; what is there then: `data`, or what was there before.

        Raises:
            Unavailable: not for now, or it is not known.
        """

        async def put() -> bytes:
            await self.pay(len(data))
            try:
                await self._bucket.put(key, data, if_absent=True)
            except AlreadyExists:
                await self.pay(0)
                try:
                    return await self._bucket.get(key)
                except NotFound:
                    raise Unavailable(f"{key} was there, and is not any more") from None
            return data

        return await self._patiently(put)

    async def get(self, key: str, length: int) -> bytes | None:
        """The object, or its first `length` bytes; None: there is none. Raises Unavailable."""

        async def get() -> bytes | None:
            await self.pay(0)
            try:
                return await self._bucket.get(key, length=length)
            except NotFound:
                return None

        return await self._patiently(get)

    async def last_number(self, prefix: str, least: int) -> int:
        """The greatest number that is the name, of 20 digits, of an object under `prefix`; `least`, if none is greater.
        Asks about twice as often as that number has bits.

        Raises:
            Invalid: what is there has other names. Unavailable.
        """
        step = 1
        while await self._any_after(prefix, least + step - 1):
            step *= 2
            if step > NUMBER_STEP_MAX:
                raise Invalid(f"what lies under {prefix} has no numbers for names", hint="remove it")
        # There is one above `low`, and none above `high`.
        low, high = least + step // 2 - 1, least + step - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await self._any_after(prefix, middle) else (low, middle)
        return high if step > 1 else least

    async def _any_after(self, prefix: str, number: int) -> bool:
        async def look() -> bool:
            await self.pay(0)
            return bool(await self._bucket.list(prefix, start_after=f"{prefix}{number:020d}", limit=1))

        return await self._patiently(look)

    async def pay(self, count: int) -> None:
        """Wait until a request with a body of so many bytes may be sent, and count it."""
        await self._throttle.take(count + REQUEST_BYTES)
        self.bytes += count + REQUEST_BYTES
        self.requests += 1

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(self._tries.tries_max):
            try:
                return await call()
            except (Unavailable, Conflict) as error:
                if isinstance(error, AlreadyExists):
                    raise
                if attempt == self._tries.tries_max - 1:
                    raise Unavailable(f"given up for now after {attempt + 1} tries: {error}") from error
            self.retries += 1
            pause = backoff_ms(self._rng, attempt, first_ms=self._tries.first_ms, max_ms=self._tries.max_ms)
            await self._clock.sleep_ms(pause)
        raise Unavailable("no try is allowed")
