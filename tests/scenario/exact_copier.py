"""An application that copies a topic of one partition exactly once, ten records a transaction; says its progress.

    python -m tests.scenario.exact_copier BOOTSTRAP INPUT OUTPUT GROUP TRANSACTIONAL_ID COUNT

Each line is the number of input records whose copies are committed. It is a process of its own because librdkafka's
`send_offsets_to_transaction` may wait for ever when the group's coordinator moves (librdkafka #5456, #5511: its
time-out is not looked at): as in production, whoever watches it ends it then, and its next life goes on exactly where
the last transaction ended.
"""

from __future__ import annotations

import sys

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

A_TRANSACTION = 10
POLLS_MAX = 300


def copy(source: Consumer, sink: Producer, output: str, count: int) -> None:
    pending: list[bytes] = []
    done, idle = -1, 0
    while done < count:
        for message in source.consume(A_TRANSACTION - len(pending), timeout=0.2):
            if message.error() is None:
                value = message.value()
                assert value is not None
                pending.append(value)
        if done < 0:
            if not source.assignment():
                continue
            done = resumed(source)
            print(done, flush=True)
        idle = idle + 1 if not pending else 0
        assert idle < POLLS_MAX, "the input does not go on"
        if len(pending) < min(A_TRANSACTION, count - done):
            continue
        sink.begin_transaction()
        try:
            for value in pending:
                sink.produce(output, value, partition=int(value) % 2)
            position = source.position(source.assignment())
            sink.send_offsets_to_transaction(position, source.consumer_group_metadata(), 20)
            sink.commit_transaction(30)
        except KafkaException as error:
            assert error.args[0].txn_requires_abort(), error
            sink.abort_transaction(30)
            for part in source.assignment():
                source.seek(TopicPartition(part.topic, part.partition, resumed(source)))
            pending = []
            continue
        done += len(pending)
        pending = []
        print(done, flush=True)


def resumed(source: Consumer) -> int:
    """Where the last committed transaction ended."""
    [part] = source.committed(source.assignment(), timeout=20)
    return max(part.offset, 0)


def main() -> None:
    bootstrap, inputs, output, group, transactional_id, count = sys.argv[1:]
    source = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 6_000,
            "isolation.level": "read_committed",
        }
    )
    source.subscribe([inputs])
    sink = Producer({"bootstrap.servers": bootstrap, "transactional.id": transactional_id, "linger.ms": 0})
    sink.init_transactions(20)
    copy(source, sink, output, int(count))
    source.close()


if __name__ == "__main__":
    main()
