"""Whether a principal may do a thing: ACLs as Kafka's standard authorizer reads them. Nothing here waits or answers.

A denial wins over every permission; what nobody permits is denied; super users are not asked. READ, WRITE, DELETE and
ALTER permit DESCRIBE, too, and ALTER_CONFIGS permits DESCRIBE_CONFIGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from dataplane.ledger.security_state import AclBinding, SecurityState

ANONYMOUS = "User:ANONYMOUS"
CLUSTER_NAME = "kafka-cluster"
ANY_NAME = "*"
ANY_PRINCIPAL = "User:*"
CACHED_MAX = 10_000
"""Decisions kept; when there are more, all are forgotten."""
TOPICS_KEPT_MAX = 1_000
"""The same of one connection's."""


class ResourceType(IntEnum):
    """Kafka's codes."""

    ANY = 1
    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5


class Pattern(IntEnum):
    """Kafka's codes; ANY and MATCH are of filters alone."""

    ANY = 1
    MATCH = 2
    LITERAL = 3
    PREFIXED = 4


class Operation(IntEnum):
    """Kafka's codes."""

    ANY = 1
    ALL = 2
    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    CLUSTER_ACTION = 9
    DESCRIBE_CONFIGS = 10
    ALTER_CONFIGS = 11
    IDEMPOTENT_WRITE = 12


class Permission(IntEnum):
    """Kafka's codes."""

    ANY = 1
    DENY = 2
    ALLOW = 3


_PERMITTED_BY = {
    Operation.DESCRIBE: frozenset(
        {Operation.DESCRIBE, Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER, Operation.ALL}
    ),
    Operation.DESCRIBE_CONFIGS: frozenset({Operation.DESCRIBE_CONFIGS, Operation.ALTER_CONFIGS, Operation.ALL}),
}
"""Operations whose permission is one for this operation. Denials are not handed on like that."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is at the other end of a connection."""

    principal: str = ANONYMOUS
    host: str = ""


Allowed = Callable[[ResourceType, str, Operation], bool]
"""Whether one session may do an operation on a resource."""


class Authorizer:
    """Decides by the cell's ACLs as they are now."""

    def __init__(self, state: Callable[[], SecurityState], super_users: Iterable[str]) -> None:
        self._state = state
        self._super_users = frozenset(super_users)
        self._revision = -1
        self._literal: dict[tuple[int, str], list[AclBinding]] = {}
        self._prefixed: dict[int, list[AclBinding]] = {}
        self._decided: dict[tuple[Session, int, str, int], bool] = {}

    @property
    def revision(self) -> int:
        """Of the ACLs as they are now."""
        return self._state().revision

    def is_super(self, session: Session) -> bool:
        return session.principal in self._super_users

    def permits(self, session: Session, kind: ResourceType, name: str, operation: Operation) -> bool:
        """Whether the session may do `operation` on the resource."""
        self._keep_up()
        key = (session, int(kind), name, int(operation))
        decided = self._decided.get(key)
        if decided is None:
            if len(self._decided) >= CACHED_MAX:
                self._decided.clear()
            decided = self._decided[key] = self.is_super(session) or self._decide(session, kind, name, operation)
        return decided

    def permits_somewhere(self, session: Session, kind: ResourceType, operation: Operation) -> bool:
        """Whether there may be a resource of this kind on which the session may do `operation`."""
        self._keep_up()
        if self.is_super(session):
            return True
        mine = [acl for acl in self._of_kind(kind) if _concerns(acl, session)]
        denials = [a for a in mine if a.permission == Permission.DENY and a.operation in (operation, Operation.ALL)]
        if any(a.pattern_type == Pattern.LITERAL and a.resource_name == ANY_NAME for a in denials):
            return False
        denied = tuple(a.resource_name for a in denials if a.pattern_type == Pattern.PREFIXED)
        return any(
            a.permission == Permission.ALLOW
            and a.operation in _PERMITTED_BY.get(operation, {operation, Operation.ALL})
            and not a.resource_name.startswith(denied)
            and (a.pattern_type == Pattern.PREFIXED or self.permits(session, kind, a.resource_name, operation))
            for a in mine
        )

    def _decide(self, session: Session, kind: ResourceType, name: str, operation: Operation) -> bool:
        permitted = False
        permitting = _PERMITTED_BY.get(operation, frozenset({operation, Operation.ALL}))
        for acl in self._on(kind, name):
            if not _concerns(acl, session):
                continue
            if acl.permission == Permission.DENY:
                if acl.operation in (operation, Operation.ALL):
                    return False
            elif acl.operation in permitting:
                permitted = True
        return permitted

    def _on(self, kind: ResourceType, name: str) -> Iterator[AclBinding]:
        yield from self._literal.get((kind, name), ())
        if name != ANY_NAME:
            yield from self._literal.get((kind, ANY_NAME), ())
        for acl in self._prefixed.get(kind, ()):
            if name.startswith(acl.resource_name):
                yield acl

    def _of_kind(self, kind: ResourceType) -> Iterator[AclBinding]:
        for (of, _), acls in self._literal.items():
            if of == kind:
                yield from acls
        yield from self._prefixed.get(kind, ())

    def _keep_up(self) -> None:
        state = self._state()
        if state.revision == self._revision:
            return
        self._revision = state.revision
        self._decided.clear()
        self._literal.clear()
        self._prefixed.clear()
        for acl in state.acls:
            if acl.pattern_type == Pattern.PREFIXED:
                self._prefixed.setdefault(acl.resource_type, []).append(acl)
            else:
                self._literal.setdefault((acl.resource_type, acl.resource_name), []).append(acl)


class Access:
    """What one connection may do; made anew when it logs in. Which topics it writes and reads is kept here, too, for
    that is asked with every request."""

    __slots__ = ("_authorizer", "_readable", "_revision", "_writable", "session")

    def __init__(self, authorizer: Authorizer, session: Session) -> None:
        self._authorizer = authorizer
        self._revision = -1
        self._writable: dict[str, bool] = {}
        self._readable: dict[str, bool] = {}
        self.session = session

    def allowed(self, kind: ResourceType, name: str, operation: Operation) -> bool:
        return self._authorizer.permits(self.session, kind, name, operation)

    def allowed_somewhere(self, kind: ResourceType, operation: Operation) -> bool:
        return self._authorizer.permits_somewhere(self.session, kind, operation)

    def may_write(self, topic: str) -> bool:
        return self._topic(self._writable, topic, Operation.WRITE)

    def may_read(self, topic: str) -> bool:
        return self._topic(self._readable, topic, Operation.READ)

    def may_transact(self, transactional_id: str) -> bool:
        return self.allowed(ResourceType.TRANSACTIONAL_ID, transactional_id, Operation.WRITE)

    def _topic(self, known: dict[str, bool], topic: str, operation: Operation) -> bool:
        revision = self._authorizer.revision
        if revision != self._revision or len(known) > TOPICS_KEPT_MAX:
            self._revision = revision
            self._writable.clear()
            self._readable.clear()
        may = known.get(topic)
        if may is None:
            may = known[topic] = self.allowed(ResourceType.TOPIC, topic, operation)
        return may


def _concerns(acl: AclBinding, session: Session) -> bool:
    return acl.principal in (session.principal, ANY_PRINCIPAL) and acl.host in (ANY_NAME, session.host)
