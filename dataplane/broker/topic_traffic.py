"""Bytes and records by topic, over all the partitions that a broker has led: those that it leads now count for
themselves, and what the others had counted is kept here.

A bounded number of topics is told by name, the busiest at the first look and then whoever comes, and the rest as one:
a topic stays where it was put for as long as it exists, so that no count ever falls.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from dataplane.stream.partition import Partition

TOPICS_MAX = 100
"""Topics told by name."""
CLOSED_MAX = 10_000
"""Topics of closed partitions that are remembered between two looks."""


@dataclass(slots=True)
class Traffic:
    """Since the broker began."""

    written_bytes: int = 0
    written_records: int = 0
    read_bytes: int = 0
    """As the leader, from memory and from object storage."""

    def add(self, other: Partition | Traffic) -> None:
        self.written_bytes += other.written_bytes
        self.read_bytes += other.read_bytes
        if isinstance(other, Partition):
            self.written_records += other.records
            self.read_bytes += other.read_back_bytes
        else:
            self.written_records += other.written_records


@dataclass(slots=True)
class Told:
    """What there is to tell: by topic, of all other topics, and of those that are gone."""

    named: dict[str, Traffic] = field(default_factory=dict)
    rest: Traffic = field(default_factory=Traffic)
    gone: Traffic = field(default_factory=Traffic)

    @property
    def everything(self) -> Traffic:
        """All of it."""
        total = Traffic()
        for traffic in (*self.named.values(), self.rest, self.gone):
            total.add(traffic)
        return total


class TopicTraffic:
    """See the module."""

    def __init__(self) -> None:
        self._closed: dict[str, Traffic] = {}
        self._named: set[str] = set()
        self._rest: set[str] = set()
        self._rest_gone = Traffic()
        self._gone = Traffic()

    def closed(self, partition: Partition) -> None:
        """The broker does not lead it any more."""
        topic = partition.stream.topic
        if topic not in self._closed and len(self._closed) >= CLOSED_MAX:
            self._rest_gone.add(partition)
            return
        self._closed.setdefault(topic, Traffic()).add(partition)

    def look(self, partitions: Iterable[Partition], exists: Container[str]) -> Told:
        """As of now. `partitions`: open ones; `exists`: the topics that there are."""
        for topic in [t for t in self._closed if t not in exists]:
            (self._rest_gone if topic in self._rest else self._gone).add(self._closed.pop(topic))
        self._named = {t for t in self._named if t in exists}
        self._rest = {t for t in self._rest if t in exists}
        now: dict[str, Traffic] = {}
        for topic, traffic in self._closed.items():
            now.setdefault(topic, Traffic()).add(traffic)
        for partition in partitions:
            now.setdefault(partition.stream.topic, Traffic()).add(partition)
        fresh = [t for t in now if t not in self._named and t not in self._rest]
        fresh.sort(key=lambda t: (-now[t].written_bytes - now[t].read_bytes, t))
        room = TOPICS_MAX - len(self._named)
        self._named.update(fresh[:room])
        self._rest.update(fresh[room:])
        told = Told()
        told.rest.add(self._rest_gone)
        told.gone.add(self._gone)
        for topic, traffic in now.items():
            if topic in self._named:
                told.named[topic] = traffic
            else:
                told.rest.add(traffic)
        return told
