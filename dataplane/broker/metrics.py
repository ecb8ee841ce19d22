"""A broker's page of metrics: what its parts have counted, read when somebody asks. docs/metrics.md lists it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kio.schema.errors import ErrorCode

from dataplane.broker import wire
from dataplane.broker.forwarding import Forwarder
from dataplane.broker.net import KafkaServer
from dataplane.broker.node import Node
from dataplane.broker.request_meter import LOGIN
from dataplane.broker.topic_traffic import Told, Traffic
from dataplane.metrics.page import Page, Sample
from dataplane.metrics.process import ProcessFamilies, write_stores
from dataplane.stream.disk_cache import DiskCache
from providers.base.blocking import StoreHealth
from providers.base.clock import Clock

OTHER_TOPICS = "(other)"
"""No topic can be called so."""


class BrokerMetrics:
    """Over a node that has joined, and its server."""

    def __init__(
        self,
        node: Node,
        server: KafkaServer,
        forwarder: Forwarder,
        *,
        disk: DiskCache | None,
        stores: Callable[[], Sequence[StoreHealth]],
        clock: Clock,
    ) -> None:
        self._node = node
        self._server = server
        self._forwarder = forwarder
        self._disk = disk
        self._stores = stores
        self._clock = clock
        self._process = ProcessFamilies(clock.wall_ms())

    def page(self) -> bytes:
        """As of now."""
        page = Page()
        self._standing(page)
        self._requests(page)
        self._traffic(page)
        self._wal(page)
        self._storage(page)
        write_stores(page, self._stores())
        self._process.write(page)
        return page.text()

    def _standing(self, page: Page) -> None:
        node, config, state = self._node, self._node.config, self._node.state
        who = {
            "cell": config.cell,
            "cluster": config.cluster,
            "broker": config.broker.name,
            "zone": config.broker.zone,
            "node_id": str(node.node_id),
            "wal": config.broker.wal.mode.value,
        }
        page.gauge("yunhe_broker_info", "Who the broker is; the value is 1.", [(who, 1)])
        page.gauge("yunhe_broker_epoch", "The epoch that it has joined under.", node.me.epoch)
        page.gauge("yunhe_broker_failed", "1 once it was fenced, or its WAL is dead: it stops.", node.failed.done())
        page.gauge(
            "yunhe_broker_slow",
            "1 while the cell's controller calls it slow and has others lead its partitions.",
            node.node_id in node.slow_nodes(),
        )
        page.gauge("yunhe_broker_controller", "1 on the cell's controller.", state.controller == node.me)
        page.gauge("yunhe_broker_live_brokers", "Live brokers in the ledger as it has read it.", len(state.live()))
        page.gauge("yunhe_broker_ledger_entries", "How far it has read the cell's ledger.", node.ledger.seq)
        page.gauge("yunhe_broker_ledger_term", "The controller's term.", state.term)
        page.gauge(
            "yunhe_broker_ledger_age_seconds",
            "Time since it last read the ledger's end.",
            (self._clock.monotonic_ms() - node.ledger.last_read_ms) / 1000,
        )
        page.gauge(
            "yunhe_broker_ledger_stale",
            "1 while it serves nothing, because others read the ledger and it cannot.",
            node.ledger_is_stale(),
        )
        tls = self._server.security.tls
        left: list[Sample] = []
        if tls is not None and tls.expires_s is not None:
            left.append(({"of": "certificate"}, tls.expires_s - self._clock.wall_ms() / 1000))
        page.gauge(
            "yunhe_broker_autonomy_seconds_left",
            "Time until something that it needs expires: its certificate, where it has one.",
            left,
        )

    def _requests(self, page: Page) -> None:
        server, meter = self._server, self._server.meter
        page.counter(
            "yunhe_broker_requests_total",
            "Requests answered, by Kafka API.",
            [({"api": api_name(key)}, count) for key, count in sorted(meter.answers().items())],
        )
        page.counter(
            "yunhe_broker_request_errors_total",
            "Partitions of Produce and Fetch, and other requests, refused, by API and Kafka's error.",
            [
                ({"api": api_name(key), "error": error_name(code)}, count)
                for (key, code), count in sorted(meter.refused.items())
            ],
        )
        page.histogram(
            "yunhe_broker_request_duration_seconds",
            "From a whole request to its answer on its way; Fetch waits as long as its client lets it.",
            [({"api": "Produce"}, meter.produce), ({"api": "Fetch"}, meter.fetch), ({"api": "other"}, meter.others)],
        )
        page.counter("yunhe_broker_received_bytes_total", "Bytes of requests.", meter.received_bytes)
        page.counter("yunhe_broker_sent_bytes_total", "Bytes of answers.", meter.sent_bytes)
        page.gauge("yunhe_broker_connections", "Clients' connections.", len(server.connections))
        page.counter(
            "yunhe_broker_connections_cut_total",
            "Connections cut for what came over them, or for a bug of the broker's.",
            meter.aborted,
        )
        page.counter(
            "yunhe_broker_forwarded_batches_total",
            "Batches taken on to the new owner of a partition that was moved a moment ago.",
            self._forwarder.forwarded,
        )

    def _traffic(self, page: Page) -> None:
        partitions = self._node.partitions
        told = partitions.traffic.look(partitions.led(), self._node.state.topics)
        everything = told.everything
        page.gauge("yunhe_broker_partitions", "Partitions that it leads.", len(partitions.led()))
        page.gauge("yunhe_broker_partitions_opening", "Partitions that it is about to lead.", partitions.opening)
        page.counter("yunhe_broker_written_bytes_total", "Bytes of batches acked.", everything.written_bytes)
        page.counter("yunhe_broker_written_records_total", "Records acked.", everything.written_records)
        page.counter("yunhe_broker_read_bytes_total", "Bytes of batches read as the leader.", everything.read_bytes)
        page.counter(
            "yunhe_broker_topic_written_bytes_total",
            "Bytes of batches acked, by topic; beyond a hundred topics the rest is one, (other).",
            _topics(told, lambda traffic: traffic.written_bytes),
        )
        page.counter(
            "yunhe_broker_topic_written_records_total",
            "Records acked, by topic in the same way.",
            _topics(told, lambda traffic: traffic.written_records),
        )
        page.counter(
            "yunhe_broker_topic_read_bytes_total",
            "Bytes of batches read as the leader, by topic in the same way.",
            _topics(told, lambda traffic: traffic.read_bytes),
        )
        meter = self._server.dispatch.fetch.meter
        zones = {"own": meter.own_bytes, "other": meter.other_bytes, "unknown": meter.unknown_bytes}
        page.counter(
            "yunhe_broker_consumer_bytes_total",
            "Bytes given to consumers by where they say that they are: what goes to another zone is paid for.",
            [({"zone": zone}, count) for zone, count in zones.items()],
        )

    def _wal(self, page: Page) -> None:
        wal, config = self._node.wal, self._node.config
        assert wal is not None  # it has joined
        page.counter("yunhe_broker_wal_blocks_total", "Blocks (group commits) acked.", wal.last_acked)
        page.counter(
            "yunhe_broker_wal_written_bytes_total",
            "Bytes of blocks, each counted once on however many sides it is.",
            wal.written_bytes,
        )
        page.histogram(
            "yunhe_broker_wal_block_duration_seconds",
            "From a block's sealing to its ack on every side.",
            [({}, wal.latency.all)],
        )
        page.gauge("yunhe_broker_wal_unacked_bytes", "Bytes that wait to become durable.", wal.unacked_bytes)
        page.gauge("yunhe_broker_wal_used_bytes", "Bytes of blocks that are needed yet.", wal.bytes_used)
        page.gauge(
            "yunhe_broker_wal_limit_bytes",
            "Bytes of blocks at which appends are pushed back.",
            config.broker.wal.bytes_max,
        )
        page.gauge("yunhe_broker_wal_sides", "Sides that every ack waits for.", len(wal.members))

    def _storage(self, page: Page) -> None:
        node, uploader, disk = self._node, self._node.uploader, self._disk
        assert uploader is not None  # it has joined
        page.gauge(
            "yunhe_broker_unuploaded_bytes",
            "Acked bytes that only the WAL holds.",
            sum(partition.unuploaded_bytes for partition in node.partitions.everything()),
        )
        page.counter("yunhe_broker_uploads_total", "Objects uploaded and committed.", uploader.uploads.objects)
        page.counter(
            "yunhe_broker_uploaded_bytes_total", "Bytes of objects uploaded and committed.", uploader.uploads.bytes
        )
        page.counter(
            "yunhe_broker_upload_failures_total",
            "Uploads that did not go through, and are tried again.",
            uploader.uploads.failures,
        )
        page.gauge("yunhe_broker_log_cache_bytes", "Batches in memory.", node.budget.bytes_held)
        page.gauge("yunhe_broker_block_cache_bytes", "Blocks of objects in memory.", node.reader.bytes_held)
        on_disk: list[Sample] = [] if disk is None else [({}, float(disk.bytes_held))]
        page.gauge("yunhe_broker_disk_cache_bytes", "Blocks of objects on disk, where there is such a cache.", on_disk)
        hits: list[Sample] = [] if disk is None else [({}, float(disk.hits))]
        page.counter("yunhe_broker_disk_cache_hits_total", "Blocks that the disk had.", hits)


def _topics(told: Told, value: Callable[[Traffic], int]) -> list[Sample]:
    named: list[Sample] = [({"topic": topic}, value(traffic)) for topic, traffic in sorted(told.named.items())]
    return [*named, ({"topic": OTHER_TOPICS}, value(told.rest))]


def api_name(api_key: int) -> str:
    """As Kafka's documents call it."""
    return "Login" if api_key == LOGIN else wire.name_of(api_key)


def error_name(code: int) -> str:
    """As Kafka's documents call it: NOT_LEADER_OR_FOLLOWER."""
    try:
        return ErrorCode(code).name.upper()
    except ValueError:
        return str(code)
