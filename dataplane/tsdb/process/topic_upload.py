"""An edge's upload by a topic, as its process runs it: from the moment on when the cloud database is told of this
edge's key, with what the newest configuration says of the brokers.
"""

from __future__ import annotations

import logging

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dataplane.contract.database import DatabaseSpec, UploadSpec
from dataplane.tsdb.edge.database import EdgeDatabase
from dataplane.tsdb.edge.kafka_sink import KafkaSink
from dataplane.tsdb.edge.keys import public_hex
from dataplane.tsdb.edge.topic_ship import TopicShipCounters, TopicShipper, TopicUploadSettings
from dataplane.tsdb.process.topic_client import client_config
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid

log = logging.getLogger(__name__)


class TopicUpload:
    """See the module. Close it."""

    def __init__(self, database: EdgeDatabase, key: Ed25519PrivateKey, *, clock: Clock, rng: Rng) -> None:
        self._database = database
        self._key = key
        self._clock = clock
        self._rng = rng
        self._followed: tuple[UploadSpec | None, str | None] | None = None
        self._sink: KafkaSink | None = None
        self._shipper: TopicShipper | None = None
        self.counters = TopicShipCounters()
        """Since the process's start."""

    @property
    def sends(self) -> bool:
        """Whether the cloud database is told of this edge's key, so that files are sent."""
        return self._shipper is not None

    async def follow(self, spec: DatabaseSpec) -> None:
        """Send as `spec` says, or wait.

        Raises:
            Invalid: the login cannot be read; all goes on as before.
        """
        if self._followed == (spec.upload, spec.pin):
            return
        upload = spec.upload
        if upload is None or upload.via is None:
            raise Invalid("an upload by a topic cannot become another one while the process runs")
        config = client_config(upload.via)
        await self.close()
        self._followed = (spec.upload, spec.pin)
        if spec.pin != public_hex(self._key.public_key()):
            known = "no key" if spec.pin is None else "another key"
            log.warning("topic-ship-waits: %s is told of %s of this edge; files stay here", upload.database, known)
            return
        self._sink = KafkaSink(config, upload.via.topic)
        settings = TopicUploadSettings(upload.database, upload.bytes_per_s, upload.interval_ms)
        self._shipper = TopicShipper(
            self._database, self._sink, self._key, settings, clock=self._clock, rng=self._rng, counters=self.counters
        )
        await self._shipper.start()

    async def close(self) -> None:
        """Stop, wherever it is."""
        shipper, sink, self._shipper, self._sink = self._shipper, self._sink, None, None
        if shipper is not None:
            await shipper.close()
        if sink is not None:
            await sink.close()
