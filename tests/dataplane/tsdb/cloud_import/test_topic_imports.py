"""What an owner consumes follows its configuration while it runs: topics of one name on two clusters each have their
own offsets, a partition that fails is begun again, and what is not wanted is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from dataplane.contract.database import TopicSpec
from dataplane.tsdb.cloud.topic_imports import TopicImports
from dataplane.tsdb.cloud.topics import TopicSettings
from dataplane.tsdb.schema.records import Record, rows_record
from providers.base.errors import Invalid
from tests.dataplane.tsdb.cloud_import.bucket import Cloud
from tests.dataplane.tsdb.cloud_import.test_topics import LOG, Topic, once, points, speeds

RIVER = TopicSpec("river", "points", 2, ("h:1",))


class Brokers:
    """Partitions by cluster and number, and who has them open."""

    def __init__(self) -> None:
        self.partitions: dict[tuple[str, int], Topic] = {}
        self.open: list[tuple[str, int]] = []
        self.opened = 0
        self.fails = 0

    def at(self, cluster: str, partition: int) -> Topic:
        return self.partitions.setdefault((cluster, partition), Topic())

    def opener(self, topic: TopicSpec, partition: int) -> Opened:
        if self.fails:
            self.fails -= 1
            raise Invalid("the login cannot be read")
        return Opened(self, (topic.cluster, partition))


class Opened:
    def __init__(self, brokers: Brokers, which: tuple[str, int]) -> None:
        self._brokers, self._which = brokers, which
        brokers.open.append(which)
        brokers.opened += 1

    async def read(self, offset: int, *, bytes_max: int) -> Sequence[Record]:
        return await self._brokers.at(*self._which).read(offset, bytes_max=bytes_max)

    async def close(self) -> None:
        self._brokers.open.remove(self._which)


async def until(what: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if what():
            return
        await asyncio.sleep(0.0005)
    raise AssertionError("it did not come")


def test_topics_are_followed_while_the_owner_runs() -> None:
    async def main() -> None:
        cloud, brokers = Cloud(), Brokers()
        manifest = await cloud.owned(LOG)
        for at, (cluster, partition) in enumerate((("river", 0), ("river", 1), ("river", 2), ("lake", 0))):
            brokers.at(cluster, partition).add(*rows_record("can", points([at])))
        imports = TopicImports(
            manifest,
            cloud.store(),
            brokers.opener,
            node="cloud",
            trust={},
            clock=cloud.clock,
            rng=cloud.rng,
            settings=TopicSettings(linger_ms=0),
        )
        imports.follow([RIVER])
        assert not brokers.opened, "nothing before it owns the database"
        brokers.fails = 3
        imports.start()
        await until(lambda: imports.counters.rows == 2)
        assert await speeds(cloud) == once([0, 1])
        imports.follow([replace(RIVER, edges=("car-1",), partitions=3), replace(RIVER, cluster="lake", partitions=1)])
        await until(lambda: imports.counters.rows == 4)
        assert brokers.opened == 4, "those that were open stay open"
        assert manifest.state.consumed == {
            "river/points/0": 1,
            "river/points/1": 1,
            "river/points/2": 1,
            "lake/points/0": 1,
        }
        imports.follow([replace(RIVER, partitions=1)])
        await until(lambda: brokers.open == [("river", 0)])
        imports.follow([replace(RIVER, partitions=1, bootstrap=("h:2",))])
        await until(lambda: brokers.opened == 5 and brokers.open == [("river", 0)])
        await imports.close()
        assert brokers.open == []
        brokers.at("river", 0).add(*rows_record("can", points([9])))
        imports.start()
        await until(lambda: imports.counters.rows == 5)
        await imports.close()
        assert await speeds(cloud) == once([0, 1, 2, 3, 9])

    asyncio.run(main())
