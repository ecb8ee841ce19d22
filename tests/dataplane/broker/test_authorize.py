"""What ACLs permit, against a second reading of Kafka's rules that looks at every ACL for every question."""

from __future__ import annotations

import random

import pytest

from dataplane.broker.authorize import Access, Authorizer, Operation, Pattern, Permission, ResourceType, Session
from dataplane.ledger.security_state import AclBinding, SecurityState

ALICE, BOB = Session("User:alice", "10.0.0.1"), Session("User:bob", "10.0.0.2")
TOPIC = ResourceType.TOPIC


def acl(
    name: str,
    operation: Operation,
    *,
    principal: str = "User:alice",
    pattern: Pattern = Pattern.LITERAL,
    permission: Permission = Permission.ALLOW,
    host: str = "*",
    kind: ResourceType = TOPIC,
) -> AclBinding:
    return AclBinding(kind, name, pattern, principal, host, operation, permission)


def deny(name: str, operation: Operation, pattern: Pattern = Pattern.LITERAL) -> AclBinding:
    return acl(name, operation, pattern=pattern, permission=Permission.DENY)


def authorizer(*acls: AclBinding, super_users: tuple[str, ...] = ()) -> Authorizer:
    state = SecurityState(1, list(acls))
    return Authorizer(lambda: state, super_users)


def test_nobody_may_do_anything_without_an_acl_but_super_users() -> None:
    made = authorizer(super_users=("User:bob",))
    assert not made.permits(ALICE, TOPIC, "t", Operation.READ)
    assert made.permits(BOB, TOPIC, "t", Operation.READ)
    assert made.permits(BOB, ResourceType.CLUSTER, "kafka-cluster", Operation.ALTER)
    denied = authorizer(
        acl("*", Operation.ALL, principal="User:*", permission=Permission.DENY), super_users=("User:bob",)
    )
    assert denied.permits(BOB, TOPIC, "t", Operation.READ)


def test_a_denial_wins_over_every_permission() -> None:
    made = authorizer(acl("*", Operation.ALL), acl("t", Operation.READ), deny("t", Operation.READ, Pattern.PREFIXED))
    assert not made.permits(ALICE, TOPIC, "t", Operation.READ)
    assert not made.permits(ALICE, TOPIC, "tail", Operation.READ)
    assert made.permits(ALICE, TOPIC, "t", Operation.WRITE)
    assert made.permits(ALICE, TOPIC, "other", Operation.READ)


def test_patterns_take_in_what_they_say() -> None:
    made = authorizer(acl("fleet-", Operation.READ, pattern=Pattern.PREFIXED), acl("exact", Operation.READ))
    assert made.permits(ALICE, TOPIC, "fleet-", Operation.READ)
    assert made.permits(ALICE, TOPIC, "fleet-7", Operation.READ)
    assert not made.permits(ALICE, TOPIC, "fleet", Operation.READ)
    assert made.permits(ALICE, TOPIC, "exact", Operation.READ)
    assert not made.permits(ALICE, TOPIC, "exactly", Operation.READ)
    assert not made.permits(ALICE, ResourceType.GROUP, "exact", Operation.READ), "a group is no topic"


@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER])
def test_what_may_be_used_may_be_described(operation: Operation) -> None:
    assert authorizer(acl("t", operation)).permits(ALICE, TOPIC, "t", Operation.DESCRIBE)
    assert not authorizer(acl("t", operation)).permits(ALICE, TOPIC, "t", Operation.DESCRIBE_CONFIGS)
    made = authorizer(acl("t", Operation.DESCRIBE), deny("t", operation))
    assert made.permits(ALICE, TOPIC, "t", Operation.DESCRIBE), "a denial is not handed on"


def test_an_acl_of_a_host_holds_there_alone() -> None:
    made = authorizer(acl("t", Operation.READ, host="10.0.0.1", principal="User:*"))
    assert made.permits(ALICE, TOPIC, "t", Operation.READ)
    assert not made.permits(BOB, TOPIC, "t", Operation.READ)


def test_a_change_holds_at_once() -> None:
    state = SecurityState(1, [])
    made = Authorizer(lambda: state, ())
    assert not made.permits(ALICE, TOPIC, "t", Operation.READ)
    state.acls.append(acl("t", Operation.READ))
    state.revision += 1
    assert made.permits(ALICE, TOPIC, "t", Operation.READ)
    state.acls.clear()
    state.revision += 1
    assert not made.permits(ALICE, TOPIC, "t", Operation.READ)


def test_a_connection_sees_a_change_at_once_and_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.broker.authorize.TOPICS_KEPT_MAX", 10)
    state = SecurityState(1, [acl("t", Operation.ALL, pattern=Pattern.PREFIXED)])
    access = Access(Authorizer(lambda: state, ()), ALICE)
    for i in range(100):
        assert access.may_write(f"t{i}") and access.may_read(f"t{i}") and not access.may_write(f"u{i}")
        assert len(access._writable) <= 12
    state.acls, state.revision = [acl("t1", Operation.READ)], 2
    assert access.may_read("t1") and not access.may_write("t1") and not access.may_read("t2")


def test_decisions_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.broker.authorize.CACHED_MAX", 10)
    made = authorizer(acl("t", Operation.READ, pattern=Pattern.PREFIXED))
    for i in range(100):
        assert made.permits(ALICE, TOPIC, f"t{i}", Operation.READ)
        assert len(made._decided) <= 10


def test_somewhere_means_that_there_may_be_a_resource() -> None:
    somewhere = [
        (True, [acl("t", Operation.WRITE)]),
        (True, [acl("*", Operation.WRITE), deny("t", Operation.WRITE)]),
        (True, [acl("fl", Operation.ALL, pattern=Pattern.PREFIXED), deny("fleet", Operation.WRITE, Pattern.PREFIXED)]),
        (False, []),
        (False, [acl("t", Operation.READ)]),
        (False, [acl("t", Operation.WRITE), deny("t", Operation.WRITE)]),
        (False, [acl("t", Operation.WRITE), deny("*", Operation.ALL)]),
        (False, [acl("fleet", Operation.WRITE, pattern=Pattern.PREFIXED), deny("fl", Operation.ALL, Pattern.PREFIXED)]),
    ]
    for expected, acls in somewhere:
        assert authorizer(*acls).permits_somewhere(ALICE, TOPIC, Operation.WRITE) is expected, acls


def kafka_says(acls: list[AclBinding], session: Session, name: str, operation: Operation) -> bool:
    """The rules once more, without an index, a cache or a table."""

    def hits(one: AclBinding) -> bool:
        if one.pattern_type == Pattern.LITERAL:
            named = one.resource_name == name or one.resource_name == "*"
        else:
            named = name[: len(one.resource_name)] == one.resource_name
        who = one.principal == session.principal or one.principal == "User:*"
        return named and who and (one.host == session.host or one.host == "*")

    mine = [one for one in acls if hits(one)]
    implied = {operation, Operation.ALL}
    if operation == Operation.DESCRIBE:
        implied |= {Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER}
    if operation == Operation.DESCRIBE_CONFIGS:
        implied |= {Operation.ALTER_CONFIGS}
    if any(one.permission == Permission.DENY and one.operation in (operation, Operation.ALL) for one in mine):
        return False
    return any(one.permission == Permission.ALLOW and one.operation in implied for one in mine)


@pytest.mark.parametrize("seed", range(20))
def test_any_acls_are_read_as_kafka_reads_them(seed: int) -> None:
    rng = random.Random(seed)
    names = ["*", "a", "ab", "abc", "b", "ba"]
    operations = [op for op in Operation if op is not Operation.ANY]
    outcomes = set()
    for _ in range(60):
        acls = [
            AclBinding(
                TOPIC,
                rng.choice(names),
                rng.choice([Pattern.LITERAL, Pattern.PREFIXED]),
                rng.choice(["User:alice", "User:bob", "User:*"]),
                rng.choice(["*", "10.0.0.1"]),
                rng.choice(operations),
                rng.choice([Permission.ALLOW, Permission.ALLOW, Permission.DENY]),
            )
            for _ in range(rng.randrange(8))
        ]
        made = authorizer(*acls)
        for session in (ALICE, BOB):
            for name in ("a", "ab", "abcd", "b", "c"):
                for operation in operations:
                    expected = kafka_says(acls, session, name, operation)
                    assert made.permits(session, TOPIC, name, operation) is expected, (acls, session, name, operation)
                    outcomes.add(expected)
    assert outcomes == {True, False}
