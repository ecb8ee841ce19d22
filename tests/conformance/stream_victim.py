"""A process that is killed in the middle of a stream: `python -m tests.conformance.stream_victim ADDRESS KEY`.

ADDRESS is a `StoreAddress` as JSON. It sends parts, says so on standard output, and waits for its end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import StoreAddress, open_store
from providers.base.streams import ABREAST, PART_BYTES


async def endless() -> AsyncIterator[bytes]:
    """As many parts as go out before the adapter waits for the first ones, so that some are stored for certain."""
    for _ in range(ABREAST + 2):
        yield bytes(PART_BYTES)
    print("parts are sent", flush=True)
    await asyncio.Event().wait()


async def main() -> None:
    address, key = sys.argv[1:]
    store = open_store(StoreAddress(**json.loads(address)), clock=SystemClock(), rng=SystemRng())
    await store.put_stream(key, endless())


if __name__ == "__main__":
    asyncio.run(main())
