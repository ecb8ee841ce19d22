"""From an api key to its handler."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dataplane.broker import sasl, wire
from dataplane.broker.authorize import Access, Session
from dataplane.broker.classic_groups import ClassicGroups
from dataplane.broker.consumer_groups import ConsumerGroups
from dataplane.broker.engine import Engine
from dataplane.broker.groups import GroupCoordinator
from dataplane.broker.guard import guarded
from dataplane.broker.handlers.acls import Acls
from dataplane.broker.handlers.admin import Admin
from dataplane.broker.handlers.client_quotas import ClientQuotas
from dataplane.broker.handlers.cluster import Cluster
from dataplane.broker.handlers.consumer_groups import ConsumerGroupsHandlers
from dataplane.broker.handlers.fetch import Fetch
from dataplane.broker.handlers.group_admin import GroupAdmin
from dataplane.broker.handlers.groups import Groups
from dataplane.broker.handlers.metadata import Metadata
from dataplane.broker.handlers.produce import Produce
from dataplane.broker.handlers.records import Records
from dataplane.broker.handlers.users import Users
from dataplane.broker.limits import Limits
from dataplane.broker.mutations import limited
from dataplane.broker.security import Security
from dataplane.broker.transaction_services import TransactionServices
from dataplane.broker.wire import Request
from dataplane.broker.wire_primitives import Malformed
from providers.base.clock import Clock, Rng

Handler = Callable[[Any], Awaitable[dict[str, Any] | None]]


class Dispatch:
    """Answers decoded requests."""

    def __init__(
        self,
        engine: Engine,
        coordinator: GroupCoordinator,
        clock: Clock,
        rng: Rng,
        security: Security,
        transactions: TransactionServices,
        refused: Counter[tuple[int, int]],
    ) -> None:
        """`refused` counts refusals, by api key and error code."""
        self._engine = engine
        self._refused = refused
        acls, quotas, users = Acls(security), ClientQuotas(security), Users(security)
        records, metadata, admin = Records(engine), Metadata(engine), Admin(engine)
        self.produce = Produce(engine, clock, transactions.verifier, refused)
        cluster = Cluster(engine)
        self.fetch = Fetch(engine, clock, rng, refused)
        consumers = ConsumerGroupsHandlers(ConsumerGroups(coordinator, engine, clock), engine, rng)
        groups = Groups(coordinator, ClassicGroups(coordinator, clock=clock, rng=rng), consumers)
        group_admin = GroupAdmin(coordinator, engine)
        txns = transactions.handlers
        self._handlers: Mapping[int, Handler] = {
            2: records.list_offsets,
            3: metadata.metadata,
            8: groups.offset_commit,
            9: groups.offset_fetch,
            10: metadata.find_coordinator,
            12: groups.heartbeat,
            13: groups.leave,
            14: groups.sync,
            15: group_admin.describe,
            16: group_admin.list_groups,
            19: admin.create_topics,
            20: admin.delete_topics,
            21: admin.delete_records,
            22: txns.init_producer_id,
            23: records.offset_for_leader_epoch,
            24: txns.add_partitions,
            25: txns.add_offsets,
            26: txns.end,
            28: txns.offset_commit,
            29: acls.describe,
            30: acls.create,
            31: acls.delete,
            32: admin.describe_configs,
            33: admin.alter_configs,
            35: cluster.describe_log_dirs,
            37: admin.create_partitions,
            42: group_admin.delete,
            43: cluster.elect_leaders,
            44: admin.incremental_alter_configs,
            45: admin.alter_reassignments,
            46: admin.list_reassignments,
            47: group_admin.delete_offsets,
            48: quotas.describe,
            49: quotas.alter,
            50: users.describe,
            51: users.alter,
            55: cluster.describe_quorum,
            60: metadata.describe_cluster,
            61: txns.describe_producers,
            65: txns.describe,
            66: txns.list_transactions,
            69: consumers.describe,
            75: cluster.describe_topic_partitions,
        }
        self._join = groups.join
        self._heartbeat = consumers.heartbeat

    async def answer(
        self, request: Request, session: Session, access: Access | None, limits: Limits | None = None
    ) -> bytes | None:
        """The response frame to anything but Produce and Fetch, which come too often for this. `access`: what the
        session may do, None for everything. `limits`: what the request may cost, None where nobody has such quotas.

        Raises:
            Malformed: an api or a version that is not served (other than of ApiVersions): the client was told what
            is.
        """
        if request.api_key == wire.API_VERSIONS:
            if request.body is None:
                return wire.encode_unsupported(request)
            return wire.encode(request, wire.api_versions())
        if request.body is None:
            raise Malformed(f"api {request.api_key} version {request.version} is not served")
        if request.api_key in (sasl.HANDSHAKE, sasl.AUTHENTICATE):
            return sasl.illegal_state(request)

        async def handle(allowed: Request) -> dict[str, Any] | None:
            if allowed.api_key == 11:
                return await self._join(allowed.body, allowed.client_id, session.host, allowed.version)
            if allowed.api_key == 68:
                return await self._heartbeat(allowed.body, allowed.client_id, session.host)
            return await self._handlers[allowed.api_key](allowed.body)

        async def within(allowed: Request) -> dict[str, Any] | None:
            if limits is None or not limits.counts_mutations:
                return await handle(allowed)
            return await limited(allowed, limits, self._engine, handle)

        if access is None:
            fields = await within(request)
        else:
            fields = await guarded(request, access, self._engine, within)
        if fields is not None and (code := fields.get("error_code")):
            self._refused[request.api_key, int(code)] += 1
        if fields is not None and limits is not None:
            fields = {**fields, "throttle_time": datetime.timedelta(milliseconds=limits.settle())}
        return wire.encode(request, fields) if fields is not None else None
