"""A broker that stops, with clients at it: it and those that stay leave no task behind."""

from __future__ import annotations

import asyncio
import gc

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from dataplane.contract.assignment import BrokerSettings
from dataplane.ledger.state import BrokerStatus
from tests.dataplane.broker.cell_in_thread import running_cell

RECORDS = 200


def test_a_broker_that_leaves_while_clients_are_connected_leaves_no_task_behind_anywhere() -> None:
    with running_cell(3, settings=BrokerSettings(balance_interval_ms=0, heartbeat_interval_ms=50)) as running:
        config = {"bootstrap.servers": running.bootstrap}
        admin = AdminClient(config)
        admin.create_topics([NewTopic("t", 6)])["t"].result(20)
        producer = Producer({**config, "enable.idempotence": True})
        consumer = Consumer({**config, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.subscribe(["t"])
        for i in range(RECORDS):
            producer.produce("t", b"%d" % i)
        assert producer.flush(20) == 0
        found: set[bytes | None] = set()
        while len(found) < RECORDS:
            found |= {message.value() for message in consumer.consume(RECORDS, 1.0)}
        [leaver, *others] = running.brokers

        async def leave() -> int:
            """As `process.serve` ends; how many tasks are left when all brokers have ended so."""
            await leaver.node.stop()
            await leaver.engine.settle()
            await leaver.stop()
            for stays in others:
                while stays.node.state.brokers[leaver.node_id].status is not BrokerStatus.GONE:
                    await stays.node.refresh()
                await asyncio.sleep(0.2)  # some heartbeats
            gc.collect()
            return 0

        running.do(leave())
        consumer.close()

        async def end() -> list[str]:
            for broker in others:
                await broker.stop()
            gc.collect()
            return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        left = running.do(end())
        assert running.trouble == []
        assert len(left) == 1, f"not the cell's main task alone: {left}"
