"""Calls of a cloud's synchronous SDK, from asyncio: a bounded pool of threads, a time-out a call, and retries for calls
that may be repeated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid, OutcomeUnknown, Unavailable, YunheError

T = TypeVar("T")

KEY_BYTES_MAX = 1024
"""The shortest limit among the clouds: S3, GCS and OSS; Azure's is 1,024 characters."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Bounds of an object-store client."""

    threads: int = 8
    """Calls at once, and connections kept. More wait their turn; a call beyond eight gains little on one bucket from
    one process."""
    connect_timeout_ms: int = 2_000
    """Milliseconds for a connection to be made. A region's endpoint answers within tens; a dead one should be known
    before a lease runs out."""
    read_timeout_ms: int = 10_000
    """Milliseconds of silence on a connection before the call fails. Long enough for a slow 99.9th percentile of a
    cloud's store."""
    call_timeout_ms: int = 30_000
    """Milliseconds a call may take altogether, its wait for a thread and its retries included."""
    retry_max: int = 2
    """Repeats of a call that may be repeated: reads, listings, deletes and unconditional puts. Conditional puts and
    appends have none."""
    retry_pause_ms: int = 100
    """Milliseconds before the first repeat, doubled each time, with full jitter."""
    list_objects_max: int = 100_000
    """Objects a listing reads where the store has no order (S3 Express) or cannot start in the middle: more is
    `Invalid`."""


class SdkCalls:
    """Runs blocking calls for one store. `translate(error, subject, changes)` turns the SDK's exceptions into ours;
    `changes` says that the call changes something, so that a lost answer is `OutcomeUnknown` rather than
    `Unavailable`."""

    def __init__(
        self,
        name: str,
        settings: StoreSettings,
        translate: Callable[[Exception, str, bool], YunheError],
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self.settings = settings
        self._name = name
        self._translate = translate
        self._clock = clock
        self._rng = rng
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix=name)
        self._closed = False

    async def once(self, subject: str, call: Callable[[], T], *, changes: bool) -> T:
        """Run `call` in a thread, one single time.

        Raises:
            Unavailable: not answered in time; `OutcomeUnknown` when it `changes` something.
            YunheError: what `translate` makes of the SDK's exception.
        """
        if self._closed:
            raise Invalid(f"{self._name} is closed")
        try:
            async with asyncio.timeout(self.settings.call_timeout_ms / 1000):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError as error:
            kind = OutcomeUnknown if changes else Unavailable
            raise kind(f"{self._name}: {subject} did not end in time") from error
        except YunheError:
            raise
        except Exception as error:
            raise self._translate(error, subject, changes) from error

    async def repeated(self, subject: str, call: Callable[[], T], *, changes: bool = False) -> T:
        """`once`, repeated a bounded number of times while the store is `Unavailable`: for calls whose repetition does
        no harm."""
        deadline_ms = self._clock.monotonic_ms() + self.settings.call_timeout_ms
        for attempt in range(self.settings.retry_max + 1):
            try:
                return await self.once(subject, call, changes=changes)
            except Unavailable:
                pause_ms = self._rng.uniform(0, self.settings.retry_pause_ms * 2**attempt)
                out_of_time = self._clock.monotonic_ms() + pause_ms >= deadline_ms
                if attempt == self.settings.retry_max or out_of_time:
                    raise
                await self._clock.sleep_ms(pause_ms)
        raise AssertionError  # the loop above returns or raises

    def close(self) -> None:
        """Refuse further calls; those that wait for a thread are cancelled, those that run end by their own
        time-outs."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)


def check_key(key: str) -> None:
    """
    Raises:
        Invalid: not an ASCII path of 1 to 1,024 bytes without leading slash.
    """
    if not key or key.startswith("/") or len(key) > KEY_BYTES_MAX or not key.isascii() or not key.isprintable():
        raise Invalid(f"{key!r} is no object key: 1 to {KEY_BYTES_MAX} printable ASCII characters, no leading slash")


def check_range(start: int, length: int | None) -> None:
    """
    Raises:
        Invalid: a negative start or length.
    """
    if start < 0 or (length is not None and length < 0):
        raise Invalid(f"a range starts at 0 or later and is not negative, not {start}, {length}")


def check_limit(limit: int) -> None:
    """
    Raises:
        Invalid: a listing without room for one object.
    """
    if limit < 1:
        raise Invalid(f"a listing has room for at least one object, not {limit}")


def read_credentials(path: str | None, *names: str) -> dict[str, Any]:
    """The JSON object in `path`, with `names` in it; empty when `path` is None.

    Raises:
        Invalid: unreadable, or a name is missing.
    """
    if path is None:
        return {}
    try:
        plain = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"credentials file {path} cannot be read: {error}") from error
    missing = [name for name in names if not isinstance(plain, dict) or name not in plain]
    if missing:
        raise Invalid(f"credentials file {path} lacks {', '.join(missing)}")
    return dict(plain)
