"""A fetch session remembers partitions, not permissions: what may be read is asked on every look."""

from __future__ import annotations

from dataplane.broker.authorize import Access, Authorizer, Operation, Pattern, Permission, ResourceType, Session
from dataplane.broker.wire_fetch import FetchAnswer
from dataplane.ledger.security_state import AclBinding, SecurityState
from tests.dataplane.broker.test_fetch_sessions import INITIAL, World, request, told, virtually

DENIED = 29
READ_T = AclBinding(ResourceType.TOPIC, "t", Pattern.LITERAL, "User:a", "*", Operation.READ, Permission.ALLOW)


@virtually
async def test_an_acl_taken_away_ends_a_session_and_one_given_begins_it() -> None:
    world = World(t=1, u=1)
    state = SecurityState(1, [READ_T])
    access = Access(Authorizer(lambda: state, ()), Session("User:a", "h"))

    async def ask(session: int, epoch: int, asked: dict[tuple[str, int], int] | None = None) -> FetchAnswer:
        found = world.fetch.begin(request(session, epoch, asked), access)
        return found if isinstance(found, FetchAnswer) else await found

    world.engine.logs["u", 0].append()
    first = await ask(0, INITIAL, {("t", 0): 0, ("u", 0): 0})
    assert {key: (part.error_code, part.size) for key, part in told(first).items()} == {
        ("t", 0): (0, 0),
        ("u", 0): (DENIED, 0),
    }
    session = first.session_id
    world.engine.logs["t", 0].append()
    assert told(await ask(session, 1))["t", 0].size == 10
    state.acls, state.revision = [], 2
    denied = told(await ask(session, 2, {("t", 0): 1}))
    assert (denied["t", 0].error_code, denied["t", 0].size) == (DENIED, 0)
    state.acls, state.revision = [READ_T], 3
    world.engine.logs["t", 0].append()
    again = told(await ask(session, 3))
    assert (again["t", 0].error_code, again["t", 0].size) == (0, 10)
