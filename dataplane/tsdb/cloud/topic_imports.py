"""What a database's owner consumes: each partition of each of its topics, by an importer of its own.

Which topics those are may change while it runs. A partition that fails is begun again, and does not touch the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dataplane.contract.database import TopicSpec
from dataplane.tsdb.cloud.manifest import Manifest
from dataplane.tsdb.cloud.topics import RecordSource, TopicCounters, TopicImporter, TopicSettings
from providers.base.clock import Clock, Rng
from providers.base.errors import YunheError
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)
AGAIN_MS = 5_000
"""Before a partition whose consumer failed is begun again."""


class ClosableSource(RecordSource, Protocol):
    """A partition that was opened."""

    async def close(self) -> None: ...


Opener = Callable[[TopicSpec, int], ClosableSource]
"""(topic, partition) → the partition. It may raise Invalid: the topic's login cannot be read."""


class TopicImports:
    """See the module. It consumes from `start` to `close`."""

    def __init__(
        self,
        manifest: Manifest,
        store: ObjectStore,
        opener: Opener,
        *,
        node: str,
        trust: Mapping[str, Ed25519PublicKey],
        clock: Clock,
        rng: Rng,
        settings: TopicSettings | None = None,
    ) -> None:
        """`trust`: looked at anew for each record."""
        self._manifest = manifest
        self._store = store
        self._opener = opener
        self._node = node
        self._trust = trust
        self._clock = clock
        self._rng = rng
        self._settings = settings or TopicSettings()
        self._wanted: dict[tuple[TopicSpec, int], None] = {}
        self._edges: set[str] = set()
        self._tasks: dict[tuple[TopicSpec, int], asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._runs = False
        self.counters = TopicCounters()
        """Of all partitions, since this process's start."""

    def follow(self, topics: Sequence[TopicSpec]) -> None:
        """Consume these from now on, or from `start` on; others no more."""
        self._edges.clear()
        self._edges.update(edge for topic in topics for edge in topic.edges)
        # A new edge, or another partition, is no reason to begin a partition anew.
        self._wanted = {
            (replace(topic, edges=(), partitions=0), partition): None
            for topic in topics
            for partition in range(topic.partitions)
        }
        if self._runs:
            self._keep()

    def start(self) -> None:
        """Begin."""
        self._runs = True
        self._keep()

    async def close(self) -> None:
        """Stop: what is half done was not committed."""
        self._runs = False
        self._end(list(self._tasks))
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _keep(self) -> None:
        self._end([key for key in self._tasks if key not in self._wanted])
        for topic, partition in self._wanted:
            if (topic, partition) not in self._tasks:
                self._tasks[topic, partition] = asyncio.create_task(self._consume(topic, partition))

    def _end(self, keys: Sequence[tuple[TopicSpec, int]]) -> None:
        for key in keys:
            task = self._tasks.pop(key)
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _consume(self, topic: TopicSpec, partition: int) -> None:
        while True:
            source: ClosableSource | None = None
            try:
                source = self._opener(topic, partition)
                importer = TopicImporter(
                    self._manifest,
                    self._store,
                    source,
                    # Clusters have topics of one name, and each its own offsets.
                    topic=f"{topic.cluster}/{topic.topic}",
                    partition=partition,
                    node=self._node,
                    trust=self._trust,
                    edges=self._edges,
                    clock=self._clock,
                    rng=self._rng,
                    settings=self._settings,
                )
                importer.counters = self.counters
                await importer.run()
            except YunheError as error:
                log.error("topic-import-again: %s/%s/%d: %s", topic.cluster, topic.topic, partition, error)
            finally:
                if source is not None:
                    await source.close()
            await self._clock.sleep_ms(AGAIN_MS)
