"""Every request that is served has a rule of who may use it, and a stranger learns nothing from any version of it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import pkgutil
import typing
import uuid
from collections.abc import Iterator
from typing import Any

import kio.schema
import pytest
from kio import index
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader

from dataplane.broker import sasl, wire
from dataplane.broker.authorize import Access, Authorizer, Operation, Pattern, Permission, ResourceType, Session
from dataplane.broker.guard import RULES, guarded
from dataplane.broker.wire import Request
from dataplane.ledger.security_state import AclBinding, SecurityState

STRANGER = Session("User:stranger", "10.0.0.9")
DENIALS = {
    ErrorCode.topic_authorization_failed,
    ErrorCode.group_authorization_failed,
    ErrorCode.cluster_authorization_failed,
    ErrorCode.transactional_id_authorization_failed,
}
ASKED_ELSEWHERE = {wire.PRODUCE, wire.FETCH, wire.API_VERSIONS, sasl.HANDSHAKE, sasl.AUTHENTICATE}
"""By the hot path itself, before there is a session, or by everybody."""
SECRET = "secret"


class Topics:
    """There is one, and it is secret."""

    def topics(self) -> dict[str, Any]:
        return {SECRET: self.topic(SECRET)}

    def topic(self, name: str) -> Any:
        return _View() if name == SECRET else None

    def topic_name(self, topic_id: uuid.UUID) -> str | None:
        return SECRET if topic_id.hex == _View.topic_id else None


class _View:
    topic_id = "0" * 31 + "7"


def access(*acls: AclBinding) -> Access:
    state = SecurityState(1, list(acls))
    return Access(Authorizer(lambda: state, ()), STRANGER)


def sample(hint: Any, name: str = "") -> Any:
    """A value of this type in which every name is the secret one."""
    if type(None) in typing.get_args(hint):
        return sample(next(arm for arm in typing.get_args(hint) if arm is not type(None)), name)
    if typing.get_origin(hint) is tuple:
        return (sample(typing.get_args(hint)[0], name),)
    hint = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return typing.cast(Any, hint)(**{f.name: sample(hints[f.name], f.name) for f in dataclasses.fields(hint)})
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    if hint is bool:
        return False
    if issubclass(hint, str):
        return SECRET
    if issubclass(hint, bytes):
        return b"x"
    if issubclass(hint, uuid.UUID):
        return uuid.UUID(int=7)
    if issubclass(hint, datetime.timedelta):
        return datetime.timedelta(0)
    if issubclass(hint, enum.Enum):
        return next(iter(hint))
    if issubclass(hint, float):
        return hint(1.0)
    return 2 if name in ("resource_type", "resource_type_filter") else hint(0)


def versions(api: int) -> Iterator[int]:
    """Those that are served, or, of an api that is not, those that kio knows."""
    if api in wire.ADVERTISED:
        low, high = wire.ADVERTISED[api]
        yield from range(low, high + 1)
        return
    for version in range(30):
        try:
            index.load_request_schema(api, version)
            yield version
        except Exception:
            continue


LISTED = {16, 66, 9}
"""Of these the answer is looked through, not the request."""

CASES = [(api, version) for api in sorted(RULES) for version in versions(api)]


def body_of(api: int, version: int) -> Any:
    return sample(index.load_request_schema(api, version))


def answered(api: int, version: int, body: Any, may: Access, fields: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """What the handler was asked (None: it was not), and the response as kio reads it back."""
    asked: list[Any] = []

    async def handle(request: Request) -> dict[str, Any]:
        asked.append(request.body)
        empty: dict[str, Any] = {}
        schema = index.load_response_schema(api, version)
        for field in dataclasses.fields(schema):
            hint = typing.get_type_hints(schema)[field.name]
            if typing.get_origin(hint) is tuple or "tuple" in str(hint):
                empty[field.name] = ()
            elif any(dataclasses.is_dataclass(arm) for arm in typing.get_args(hint)):
                empty[field.name] = None
            elif field.name != "throttle_time":
                empty[field.name] = sample(hint, field.name)
        if "error_code" in empty:
            empty["error_code"] = ErrorCode.none
        return {**empty, **(fields or {})}

    request = Request(api, version, 77, "client", body)
    response = asyncio.run(guarded(request, may, Topics(), handle))
    assert response is not None
    frame = wire.encode(request, response)
    schema = index.load_response_schema(api, version)
    _, at = entity_reader(schema.__header_schema__)(frame, 4)
    read, _ = entity_reader(schema)(frame, 4 + at)
    return (asked[0] if asked else None), read


def codes(value: Any) -> Iterator[ErrorCode]:
    if isinstance(value, ErrorCode):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from codes(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from codes(getattr(value, field.name))


def names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from names(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from names(getattr(value, field.name))


def test_every_request_that_is_served_has_a_rule() -> None:
    assert set(wire.ADVERTISED) - ASKED_ELSEWHERE <= set(RULES)


def test_the_cases_are_all_of_kafkas() -> None:
    assert len(CASES) > 100 and len(list(pkgutil.iter_modules(kio.schema.__path__))) > 50


@pytest.mark.parametrize(("api", "version"), CASES)
def test_a_stranger_is_denied_and_the_handler_sees_no_name(api: int, version: int) -> None:
    if api == 60:
        return  # where the brokers are is for everybody
    asked, response = answered(api, version, body_of(api, version), access())
    assert asked is None or SECRET not in set(names(asked)) or api in LISTED, asked
    if api == 35 and version < 3:
        assert response.results == ()  # which has no field for an error
    elif api not in LISTED:
        assert set(codes(response)) & DENIALS, response
        assert ErrorCode.none not in set(codes(response)) or hasattr(response, "error_code")


@pytest.mark.parametrize(("api", "version"), CASES)
def test_who_may_do_everything_is_let_through_untouched(api: int, version: int) -> None:
    everything = [
        AclBinding(kind, "*", Pattern.LITERAL, "User:*", "*", Operation.ALL, Permission.ALLOW)
        for kind in ResourceType
        if kind is not ResourceType.ANY
    ] + [
        AclBinding(4, "kafka-cluster", Pattern.LITERAL, "User:*", "*", Operation.ALL, Permission.ALLOW),
    ]
    body = body_of(api, version)
    asked, response = answered(api, version, body, access(*everything))
    assert asked == body
    assert not set(codes(response)) & DENIALS


def test_metadata_of_all_topics_leaves_out_the_secret_one() -> None:
    body = dataclasses.replace(body_of(3, 8), topics=None)
    shown = [_topic(SECRET), _topic("public")]
    may = access(AclBinding(2, "public", 3, "User:stranger", "*", Operation.READ, Permission.ALLOW))
    _, response = answered(3, 8, body, may, {"topics": shown, "brokers": (), "controller_id": -1})
    assert [topic.name for topic in response.topics] == ["public"]


def test_metadata_creates_no_topic_for_who_may_not_create_one() -> None:
    body = body_of(3, 8)
    topic = dataclasses.replace(body.topics[0], name="new")
    body = dataclasses.replace(body, topics=(topic,), allow_auto_topic_creation=True)
    describe = AclBinding(2, "new", 3, "User:stranger", "*", Operation.DESCRIBE, Permission.ALLOW)
    create = dataclasses.replace(describe, operation=Operation.CREATE)
    assert answered(3, 8, body, access(describe))[0].topics == ()
    assert answered(3, 8, body, access(describe, create))[0].topics == (topic,)


def test_metadata_by_id_does_not_tell_a_name() -> None:
    body = body_of(3, 12)
    by_id = dataclasses.replace(body, topics=(dataclasses.replace(body.topics[0], name=None),))
    fields = {"topics": [_topic(SECRET)], "brokers": (), "controller_id": -1, "cluster_id": "c"}
    _, response = answered(3, 12, by_id, access(), fields)
    assert [(t.name, t.error_code) for t in response.topics] == [(None, ErrorCode.unknown_topic_id)]


@pytest.mark.parametrize("version", [1, 5, 7, 8])
def test_committed_offsets_of_secret_topics_are_not_told(version: int) -> None:
    group = AclBinding(3, SECRET, 3, "User:stranger", "*", Operation.READ, Permission.ALLOW)
    offset = {"committed_offset": 7, "committed_leader_epoch": 1, "metadata": "m", "error_code": ErrorCode.none}
    topics = [{"name": SECRET, "partitions": [{"partition_index": 0, **offset}]}]
    fields: dict[str, Any] = {"topics": topics, "error_code": ErrorCode.none}
    if version >= 8:
        fields = {"groups": [{"group_id": SECRET, **fields}]}
    body = body_of(9, version)
    _, response = answered(9, version, body, access(group), fields)
    found = response.groups[0].topics if version >= 8 else response.topics
    [part] = found[0].partitions
    assert (part.committed_offset, part.error_code) == (-1, ErrorCode.topic_authorization_failed)
    if version == 7:
        _, response = answered(9, version, dataclasses.replace(body, topics=None), access(group), fields)
        assert response.topics == ()


@pytest.mark.parametrize(
    ("api", "field", "name"), [(16, "groups", "group_id"), (66, "transaction_states", "transactional_id")]
)
def test_lists_show_what_may_be_described(api: int, field: str, name: str) -> None:
    schema = index.load_response_schema(api, 0)
    [entry] = sample(typing.get_type_hints(schema)[field])
    plain = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    kind = ResourceType.GROUP if api == 16 else ResourceType.TRANSACTIONAL_ID
    may = access(AclBinding(kind, "mine", 3, "User:stranger", "*", Operation.DESCRIBE, Permission.ALLOW))
    fields = {field: [plain, {**plain, name: "mine"}], "error_code": ErrorCode.none}
    _, response = answered(api, 0, body_of(api, 0), may, fields)
    assert [getattr(shown, name) for shown in getattr(response, field)] == ["mine"]


def test_a_subscription_by_pattern_is_for_those_who_may_describe_all_topics() -> None:
    body = dataclasses.replace(body_of(68, 1), subscribed_topic_names=None, subscribed_topic_regex="s.*")
    group = AclBinding(3, SECRET, 3, "User:stranger", "*", Operation.READ, Permission.ALLOW)
    one, every = (AclBinding(2, name, 3, "User:stranger", "*", 8, Permission.ALLOW) for name in ("s1", "*"))
    assert answered(68, 1, body, access(group, one))[1].error_code is ErrorCode.topic_authorization_failed
    assert answered(68, 1, body, access(group, every))[0] == body


def test_topics_that_are_all_denied_do_not_become_all_topics() -> None:
    fields = {"topics": [_topic(SECRET), _topic("other")], "next_cursor": None}
    body = body_of(75, 0)
    asked, response = answered(75, 0, body, access(), fields)
    assert asked is None and [t.error_code for t in response.topics] == [ErrorCode.topic_authorization_failed]
    everything = dataclasses.replace(body, topics=())
    asked, response = answered(75, 0, everything, access(), fields)
    assert asked is None and response.topics == ()
    asked, _ = answered(75, 0, everything, access(AclBinding(2, SECRET, 3, "User:*", "*", 8, 3)), fields)
    assert [topic.name for topic in asked.topics] == [SECRET], "by name, so that pages end at names it may know"


def _topic(name: str) -> dict[str, Any]:
    return {
        "error_code": ErrorCode.none,
        "name": name,
        "topic_id": uuid.UUID(int=7),
        "is_internal": False,
        "partitions": (),
        "topic_authorized_operations": wire.UNKNOWN_OPERATIONS,
    }
