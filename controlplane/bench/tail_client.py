"""A paced producer, and the consumer of what it writes, by librdkafka.

    python -m controlplane.bench.tail_client --bootstrap HOST:PORT --topic t --rate 1000 --seconds 20

Prints, as JSON, the time from when each 1 KiB record was due to its being handed out by the consumer.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import threading

from confluent_kafka import Consumer, Producer, TopicPartition

from providers.base.clock import Clock, SystemClock, sleep_blocking_ms

RECORD_BYTES = 1_024


class _Tail:
    """A paced producer and the consumer of what it writes. Latencies in milliseconds, with when they were seen."""

    def __init__(self, bootstrap: str, topic: str, clock: Clock) -> None:
        self._topic = topic
        self._clock = clock
        self._padding = os.urandom(RECORD_BYTES - 8)  # noqa: TID251 -- content only; nothing depends on it
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 0})
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "tail", "enable.auto.commit": False, "log_level": 0}
        )
        _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
        self._consumer.assign([TopicPartition(topic, 0, end)])
        self.seen: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.over = threading.Event()

    def consume(self) -> None:
        while not self.over.is_set():
            first = self._consumer.poll(0.05)
            # `consume` waits until it has as many as are asked for: only what is there already.
            for message in [first, *self._consumer.consume(1_000, timeout=0)] if first is not None else ():
                if message.error():
                    self.failed.append(str(message.error()))
                    continue
                now_ms = self._clock.monotonic_ms()
                [at_ms] = struct.unpack_from(">d", message.value() or b"")
                self.seen.append((now_ms, now_ms - at_ms))
        self._consumer.close()

    def produce(self, rate: int, until: threading.Event, until_ms: float) -> None:
        """At `rate` records a second, at least one."""
        began_ms, sent = self._clock.monotonic_ms(), 0
        while not until.is_set() and (now_ms := self._clock.monotonic_ms()) < until_ms:
            while began_ms + sent * 1000 / rate <= now_ms:
                # From when it was due: a stall of this very process must not hide.
                due = struct.pack(">d", began_ms + sent * 1000 / rate)
                self._producer.produce(self._topic, due + self._padding, partition=0, on_delivery=self._done)
                sent += 1
            self._producer.poll(0.001)
        if self._producer.flush(30):
            self.failed.append("records without ack")

    def _done(self, error: object, message: object) -> None:
        if error is not None:
            self.failed.append(str(error))


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3)


def main() -> int:
    parser = argparse.ArgumentParser(description="Produce at a pace, consume, and tell how long records took.")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=0, help="0: until standard input ends")
    args = parser.parse_args()
    clock = SystemClock()
    tail = _Tail(args.bootstrap, args.topic, clock)
    ended = threading.Event()
    consuming = threading.Thread(target=tail.consume)
    consuming.start()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    if not args.seconds:
        threading.Thread(target=wait_for_end, daemon=True).start()
    began_ms = clock.monotonic_ms()
    tail.produce(args.rate, ended, began_ms + args.seconds * 1000 if args.seconds else float("inf"))
    sleep_blocking_ms(500)  # what was acked last is on its way to the consumer
    tail.over.set()
    consuming.join()
    if tail.failed:
        print(f"{len(tail.failed)} failures: {tail.failed[0]}")
        return 1
    took = [latency for _, latency in tail.seen]
    end_ms = tail.seen[-1][0] if tail.seen else began_ms
    second = [latency for at, latency in tail.seen if 60_000 <= at - began_ms < 120_000]
    last = [latency for at, latency in tail.seen if at > end_ms - 60_000]
    result = {
        "records": len(took),
        "p50_ms": _percentile(took, 0.5),
        "p99_ms": _percentile(took, 0.99),
        "max_ms": _percentile(took, 1),
        "second_p99_ms": _percentile(second, 0.99),
        "last_p99_ms": _percentile(last, 0.99),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
