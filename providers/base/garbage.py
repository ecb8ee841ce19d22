"""Python's collector of cycles, in processes that serve for long."""

from __future__ import annotations

import gc


def collect_less_often() -> None:
    """To be called once a process serves: what is alive now is never looked at again, and new objects seldom. Cached
    rows and batches are no cycles. Looking through everything costs a broker half of its tail latency (p99 1.6 ms
    against 0.9 ms), a database a good tenth of what line protocol takes, and the operator a tail of a quarter of a
    second from a resource to its assignment (p99 262 ms against 97 ms).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
