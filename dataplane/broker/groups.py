"""The group coordinator: groups whose partition of the offsets topic this broker owns, and their committed offsets.

A commit is a record of that partition and acked once durable, so that whoever owns the partition next reads every
offset back. Every SNAPSHOT_COMMITS commits all live offsets are
written once more and the log is trimmed to there, so that loading stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker import classic_state, consumer_state
from dataplane.broker.consumer_group import ConsumerGroup
from dataplane.broker.consumer_state import Live
from dataplane.broker.engine import Engine, KafkaError, PartitionLog
from dataplane.broker.group import Committed, Group, GroupState
from dataplane.broker.txn_offsets import PendingOffsets
from dataplane.stream.batch import iter_batches
from dataplane.stream.encode import KeyValue, decode_batch, encode_batch
from providers.base.clock import Clock
from providers.base.errors import YunheError

log = logging.getLogger(__name__)

OFFSETS_TOPIC = "__consumer_offsets"
OFFSETS_TOPIC_PARTITIONS = 4
SNAPSHOT_COMMITS = 2_000
OFFSETS_MAX = 1_000_000
"""Offsets kept a partition of the offsets topic; commits of more are refused."""
TICK_MS = 100
LOAD_BYTES = 4 << 20

OffsetKey = tuple[str, int]


def coordinator_partition(group: str, partitions: int) -> int:
    """The partition of the offsets topic that a group's offsets are in."""
    return zlib.crc32(group.encode()) % partitions


class Shard:
    """The groups of one partition of the offsets topic."""

    def __init__(self, partition_log: PartitionLog) -> None:
        self.log = partition_log
        self.groups: dict[str, Group] = {}
        self.consumers: dict[str, Live] = {}
        """Groups of KIP-848. Their offsets are in `groups` like everybody's."""
        self.loaded = False
        self.commits_since_snapshot = 0
        self.under_way = 0
        self.quiet = asyncio.Event()
        self.quiet.set()
        self.snapshotting = asyncio.Lock()
        self.pending = PendingOffsets()
        """Of transactions that are open."""

    async def load(self, clock: Clock) -> None:
        """Read every live offset and group."""
        consumers: dict[str, ConsumerGroup] = {}
        at = self.log.start_offset
        while at < self.log.high_watermark:
            data = await self.log.read(at, LOAD_BYTES, minimum_one=True)
            if not data:
                # Owed, and nobody has it at hand: it is being uploaded.
                await self.log.wait_for_data(self.log.high_watermark, 50)
                continue
            for header, batch in iter_batches(data):
                for _, (key, value) in decode_batch(batch):
                    self._apply(key, value, consumers)
                at = header.base_offset + header.last_offset_delta + 1
        for group in self.groups.values():
            classic_state.begin(group, clock.monotonic_ms())
        self.consumers = {group.id: Live(group) for group in consumers.values()}
        self.loaded = True

    def _apply(self, key: bytes, value: bytes | None, consumers: dict[str, ConsumerGroup]) -> None:
        parsed = json.loads(key)
        if classic_state.is_key(parsed):
            classic_state.fold(self.groups, key, value)
            return
        if consumer_state.is_key(parsed):
            consumer_state.fold(consumers, parsed, value)
            return
        if PendingOffsets.is_key(parsed):
            self.pending.replay(parsed, value, self.groups)
            return
        group_id, topic, partition = parsed
        group = self.groups.setdefault(group_id, Group(group_id))
        if value is None:
            group.offsets.pop((topic, partition), None)
            if not group.offsets and not group.kept:
                del self.groups[group_id]
        else:
            group.offsets[topic, partition] = Committed(*json.loads(value))

    def offsets_count(self) -> int:
        return sum(len(g.offsets) for g in self.groups.values())


def _record(group: str, key: OffsetKey, committed: Committed | None) -> KeyValue:
    name = json.dumps([group, *key], separators=(",", ":")).encode()
    if committed is None:
        return name, None
    value = [committed.offset, committed.leader_epoch, committed.metadata]
    return name, json.dumps(value, separators=(",", ":")).encode()


class GroupCoordinator:
    """Over an engine: shards come and go with the partitions of the offsets topic."""

    def __init__(self, engine: Engine, *, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._shards: dict[int, Shard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self.on_tick: Callable[[Shard], None] = lambda shard: None
        """Called every TICK_MS for each shard here."""
        engine.on_partitions_changed(self._changed)

    def _changed(self, topic: str, partition: int, partition_log: PartitionLog | None) -> None:
        if topic != OFFSETS_TOPIC:
            return
        old = self._shards.pop(partition, None)
        if old is not None:
            for group in old.groups.values():
                group.dissolve(ErrorCode.not_coordinator)
        if partition_log is not None:
            shard = self._shards[partition] = Shard(partition_log)
            self.spawn(self._load(partition, shard))
            if self._ticker is None:
                self._ticker = asyncio.create_task(self._tick())

    async def _load(self, partition: int, shard: Shard) -> None:
        while self._shards.get(partition) is shard:
            try:
                await shard.load(self._clock)
                return
            except (KafkaError, YunheError) as error:
                log.warning("offsets-load-retry", extra={"partition": partition, "error": str(error)})
                shard.groups.clear()
                shard.pending = PendingOffsets()
                await self._clock.sleep_ms(500)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep_ms(TICK_MS)
            now = self._clock.monotonic_ms()
            for shard in self._shards.values():
                self.on_tick(shard)
                for group in list(shard.groups.values()):
                    group.advance(now)
                    if group.state is GroupState.EMPTY and group.kept:
                        self.spawn(self._keep_nothing(shard, group))
                    elif group.state is GroupState.EMPTY and not group.offsets and not group.pending:
                        del shard.groups[group.id]

    async def close(self) -> None:
        """End every group here."""
        for partition in list(self._shards):
            self._changed(OFFSETS_TOPIC, partition, None)
        tasks = [*self._tasks, *([self._ticker] if self._ticker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── finding a group ─────────────────────────────────────────────────────────────────────────────────────────────

    def shard(self, group_id: str) -> Shard:
        """The shard that a group belongs to, loaded.

        Raises:
            KafkaError: it is not this broker's to know.
        """
        if not group_id:
            raise KafkaError(ErrorCode.invalid_group_id.value, "a group has a name")
        topic = self._engine.topic(OFFSETS_TOPIC)
        if topic is None:
            raise KafkaError(ErrorCode.coordinator_not_available.value, "no group was ever coordinated here")
        shard = self._shards.get(coordinator_partition(group_id, len(topic.partitions)))
        if shard is None:
            raise KafkaError(ErrorCode.not_coordinator.value, "another broker coordinates this group")
        if not shard.loaded:
            raise KafkaError(ErrorCode.coordinator_load_in_progress.value, "offsets are being read")
        return shard

    def shard_of(self, partition: int) -> Shard:
        """The shard of a partition of the offsets topic, loaded.

        Raises:
            KafkaError: it is not this broker's to know.
        """
        shard = self._shards.get(partition)
        if shard is None or not shard.loaded:
            raise KafkaError(ErrorCode.not_coordinator.value, "another broker coordinates these groups")
        return shard

    def find(self, group_id: str) -> Group | None:
        """The group, None when it does not exist.

        Raises:
            KafkaError: it is not this broker's to know.
        """
        return self.shard(group_id).groups.get(group_id)

    def has_consumers(self, group_id: str) -> bool:
        """Whether it is a group of KIP-848, with members, coordinated here."""
        with contextlib.suppress(KafkaError):
            live = self.shard(group_id).consumers.get(group_id)
            return live is not None and bool(live.state.members)
        return False

    def shards(self) -> list[Shard]:
        """Everything that is coordinated here."""
        return [shard for shard in self._shards.values() if shard.loaded]

    # ── offsets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(
        self,
        group_id: str,
        member: str,
        generation: int,
        offsets: Mapping[OffsetKey, Committed],
        instance_id: str | None = None,
    ) -> ErrorCode:
        """Durable when this returns `none`."""
        try:
            shard = self.shard(group_id)
        except KafkaError as error:
            return ErrorCode(error.code)
        if (wrong := self.may_use_offsets(shard, group_id, member, generation, instance_id)) is not None:
            return wrong
        if shard.offsets_count() + len(offsets) > OFFSETS_MAX:
            return ErrorCode.invalid_commit_offset_size
        try:
            await self._write(shard, group_id, dict(offsets))
        except KafkaError as error:
            return ErrorCode(error.code)
        return ErrorCode.none

    def may_use_offsets(
        self, shard: Shard, group_id: str, member: str, generation: int, instance_id: str | None = None
    ) -> ErrorCode | None:
        """Why who calls itself this member of this generation (or member epoch) may not commit; None when it may."""
        group, live = shard.groups.get(group_id), shard.consumers.get(group_id)
        if live is not None and live.state.members:
            return live.state.check(member, generation)
        if generation >= 0 or member:
            if group is None:
                return ErrorCode.illegal_generation
            if (wrong := group.check(member, generation, instance_id)) is not None:
                return wrong
            group.members[member].seen_ms = self._clock.monotonic_ms()
        elif group is not None and group.members:
            return ErrorCode.unknown_member_id  # a lone consumer must not move the offsets of a live group
        return None

    def make_way(self, shard: Shard, group_id: str) -> ErrorCode | None:
        """Forget a consumer group without members; why it cannot be forgotten, or None."""
        live = shard.consumers.get(group_id)
        if live is None:
            return None
        if live.state.members:
            return ErrorCode.inconsistent_group_protocol
        if live.users:
            return ErrorCode.coordinator_load_in_progress  # a change is under way: clients ask again
        del shard.consumers[group_id]
        self.spawn(self._make_way(shard, live))
        return None

    async def _make_way(self, shard: Shard, live: Live) -> None:
        with contextlib.suppress(KafkaError):  # then it comes back with the next owner, empty as it is
            await self._forget(shard, live)

    async def _forget(self, shard: Shard, live: Live) -> None:
        live.users += 1
        try:
            async with live.lock:
                if live.state.members:
                    raise KafkaError(ErrorCode.non_empty_group.value, f"{live.state.id} has members")
                await self.write(shard, consumer_state.changes(live.state, None))
                live.state = ConsumerGroup(live.state.id)
        finally:
            live.users -= 1

    async def delete(self, group_id: str) -> ErrorCode:
        """Remove an empty group and its offsets."""
        try:
            shard = self.shard(group_id)
            group, live = shard.groups.get(group_id), shard.consumers.get(group_id)
            if group is None and live is None:
                return ErrorCode.group_id_not_found
            if group is not None and group.members:
                return ErrorCode.non_empty_group
            if live is not None:
                await self._forget(shard, live)
            if group is not None:
                await self.keep(shard, group, {})
            await self._write(shard, group_id, dict.fromkeys(group.offsets if group is not None else ()))
            if group is not None and not (group.members or group.pending or group.offsets):
                shard.groups.pop(group_id, None)
        except KafkaError as error:
            return ErrorCode(error.code)
        return ErrorCode.none

    async def keep(self, shard: Shard, group: Group, records: classic_state.Records) -> None:
        """Make a generation of a classic group durable; `records` empty: that it has none.

        Raises:
            KafkaError: it is not.
        """
        before, changes = group.kept, classic_state.changes(group.kept, records)
        # At once, not when it is durable: what is decided next builds on it, and is written behind it.
        group.kept = records
        try:
            await self.write(shard, changes)
        except KafkaError:
            group.kept = classic_state.unknown(before, group.kept)
            raise

    async def _keep_nothing(self, shard: Shard, group: Group) -> None:
        with contextlib.suppress(KafkaError):  # a successor finds members that it never hears, and puts them out
            await self.keep(shard, group, {})

    async def delete_offsets(self, shard: Shard, group_id: str, keys: Sequence[OffsetKey]) -> None:
        """Forget committed offsets.

        Raises:
            KafkaError: they are not forgotten.
        """
        if keys:
            await self._write(shard, group_id, dict.fromkeys(keys))

    async def _write(self, shard: Shard, group_id: str, offsets: Mapping[OffsetKey, Committed | None]) -> None:
        def apply() -> None:
            group = shard.groups.setdefault(group_id, Group(group_id))
            for key, committed in offsets.items():
                if committed is None:
                    group.offsets.pop(key, None)
                else:
                    group.offsets[key] = committed

        await self.write(shard, [_record(group_id, key, committed) for key, committed in offsets.items()], apply)

    async def write(self, shard: Shard, records: Sequence[KeyValue], apply: Callable[[], None] = lambda: None) -> None:
        """Make records durable, and then `apply` them to what is in memory.

        Raises:
            KafkaError: they are not, and must not be applied; NOT_COORDINATOR when this broker owns the partition no
                more.
        """
        async with shard.snapshotting:
            # Held only to get past a snapshot: commits themselves run side by side and share the WAL's blocks.
            shard.under_way += 1
            shard.quiet.clear()
        try:
            for batch in consumer_state.batches(records):
                await shard.log.append(encode_batch(batch, self._clock.wall_ms()))
            apply()
        except KafkaError as error:
            if error.code != ErrorCode.not_leader_or_follower.value:
                raise
            raise KafkaError(ErrorCode.not_coordinator.value, error.message) from error
        finally:
            shard.under_way -= 1
            if not shard.under_way:
                shard.quiet.set()
        shard.commits_since_snapshot += 1
        if shard.commits_since_snapshot >= SNAPSHOT_COMMITS:
            shard.commits_since_snapshot = 0
            self.spawn(self._snapshot(shard))

    async def _snapshot(self, shard: Shard) -> None:
        """Write everything live once more, and trim what is before. Commits wait meanwhile, so that none lies before
        the snapshot without being in it.
        """
        try:
            async with shard.snapshotting:
                await shard.quiet.wait()
                start = shard.log.high_watermark
                records = [
                    _record(g.id, key, committed) for g in shard.groups.values() for key, committed in g.offsets.items()
                ]
                records += shard.pending.records()
                records += [r for group in shard.groups.values() for r in group.kept.items() if r[1]]
                for live in shard.consumers.values():
                    records += consumer_state.everything(live.state)
                for batch in consumer_state.batches(records):
                    await shard.log.append(encode_batch(batch, self._clock.wall_ms()))
            partition = next(p for p, s in self._shards.items() if s is shard)
            await self._engine.delete_records(OFFSETS_TOPIC, partition, start)
        except (KafkaError, StopIteration) as error:
            log.warning("offsets-snapshot-put-off", extra={"error": str(error)})

    def committed(
        self, group_id: str, keys: Sequence[OffsetKey] | None, member: tuple[str, int] = ("", -1)
    ) -> dict[OffsetKey, Committed | None]:
        """Committed offsets of the asked partitions, or of all. `member`: who asks, and at which epoch, when it is one
        of a consumer group.

        Raises:
            KafkaError: not this broker's to know, or not this member's.
        """
        shard = self.shard(group_id)
        live = shard.consumers.get(group_id)
        if member[0] and live is not None and (wrong := live.state.check(*member)) is not None:
            raise KafkaError(wrong.value, f"{member[0]} is not at epoch {member[1]}")
        group = shard.groups.get(group_id)
        offsets = group.offsets if group is not None else {}
        if keys is None:
            return dict(offsets)
        return {key: offsets.get(key) for key in keys}
