"""ACLs as Kafka's admin clients make, show and delete them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.authorize import ANY_NAME, CLUSTER_NAME, Operation, Pattern, Permission, ResourceType
from dataplane.broker.engine import KafkaError
from dataplane.broker.security import Security
from dataplane.ledger.entry import Command
from dataplane.ledger.security import acls_created, acls_deleted
from dataplane.ledger.security_state import AclBinding, SecurityState

NAME_CHARS_MAX = 1_000
ACLS_A_REQUEST_MAX = 1_000

_TOPIC_OPERATIONS = frozenset(
    {
        Operation.ALL,
        Operation.READ,
        Operation.WRITE,
        Operation.CREATE,
        Operation.DELETE,
        Operation.ALTER,
        Operation.DESCRIBE,
        Operation.DESCRIBE_CONFIGS,
        Operation.ALTER_CONFIGS,
    }
)
OPERATIONS = {
    ResourceType.TOPIC: _TOPIC_OPERATIONS,
    ResourceType.GROUP: frozenset(
        {
            Operation.ALL,
            Operation.READ,
            Operation.DELETE,
            Operation.DESCRIBE,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
        }
    ),
    ResourceType.CLUSTER: frozenset(
        {
            Operation.ALL,
            Operation.CREATE,
            Operation.ALTER,
            Operation.DESCRIBE,
            Operation.CLUSTER_ACTION,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
            Operation.IDEMPOTENT_WRITE,
        }
    ),
    ResourceType.TRANSACTIONAL_ID: frozenset({Operation.ALL, Operation.WRITE, Operation.DESCRIBE}),
}
"""What can be done to which kind of resource."""


class Acls:
    """Handlers over a cell's ACLs."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def create(self, request: Any) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        good: list[AclBinding] = []
        for creation in request.creations:
            code, message = ErrorCode.none, None
            try:
                self._enabled()
                good.append(_checked(creation))
                if len(good) > ACLS_A_REQUEST_MAX:
                    raise _invalid(f"more than {ACLS_A_REQUEST_MAX} ACLs in one request")
            except KafkaError as error:
                code, message = ErrorCode(error.code), error.message
            results.append({"error_code": code, "error_message": message})
        good = good[:ACLS_A_REQUEST_MAX]
        try:
            await self._security.store.change(
                lambda state: [acls_created(good)] if set(good) - set(state.acls) else None
            )
        except KafkaError as error:
            for result in results:
                if result["error_code"] is ErrorCode.none:
                    result |= {"error_code": ErrorCode(error.code), "error_message": error.message}
        return {"results": results}

    async def describe(self, request: Any) -> dict[str, Any]:
        try:
            self._enabled()
            found = [acl for acl in self._security.store.state.acls if matches(request, acl)]
        except KafkaError as error:
            return {"error_code": ErrorCode(error.code), "error_message": error.message, "resources": ()}
        resources: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
        for acl in sorted(found):
            resources.setdefault((acl.resource_type, acl.resource_name, acl.pattern_type), []).append(
                {
                    "principal": acl.principal,
                    "host": acl.host,
                    "operation": acl.operation,
                    "permission_type": acl.permission,
                }
            )
        return {
            "error_code": ErrorCode.none,
            "error_message": None,
            "resources": [
                {"resource_type": kind, "resource_name": name, "pattern_type": pattern, "acls": acls}
                for (kind, name, pattern), acls in resources.items()
            ],
        }

    async def delete(self, request: Any) -> dict[str, Any]:
        """Each filter's ACLs, all of them in one step."""
        matched: list[list[AclBinding]] = []

        def decide(state: SecurityState) -> Sequence[Command] | None:
            matched[:] = [[acl for acl in state.acls if matches(asked, acl)] for asked in request.filters]
            gone = list(dict.fromkeys(acl for acls in matched for acl in acls))
            return [acls_deleted(gone)] if gone else None

        code, message = ErrorCode.none, None
        try:
            self._enabled()
            await self._security.store.change(decide)
        except KafkaError as error:
            code, message = ErrorCode(error.code), error.message
            matched[:] = [[] for _ in request.filters]
        return {
            "filter_results": [
                {"error_code": code, "error_message": message, "matching_acls": [_shown(acl) for acl in sorted(acls)]}
                for acls in matched
            ]
        }

    def _enabled(self) -> None:
        if self._security.authorizer is None:
            raise KafkaError(ErrorCode.security_disabled.value, "no ACLs are kept to on this cluster")


def matches(asked: Any, acl: AclBinding) -> bool:
    """Whether a filter of DescribeAcls or DeleteAcls takes in an ACL."""
    return (
        asked.resource_type_filter in (ResourceType.ANY, acl.resource_type)
        and _name_matches(asked.resource_name_filter, getattr(asked, "pattern_type_filter", Pattern.LITERAL), acl)
        and asked.principal_filter in (None, acl.principal)
        and asked.host_filter in (None, acl.host)
        and asked.operation in (Operation.ANY, acl.operation)
        and asked.permission_type in (Permission.ANY, acl.permission)
    )


def _name_matches(name: str | None, pattern: int, acl: AclBinding) -> bool:
    if pattern == Pattern.MATCH and name is not None:
        if acl.pattern_type == Pattern.PREFIXED:
            return name.startswith(acl.resource_name)
        return acl.resource_name in (name, ANY_NAME)
    return pattern in (Pattern.ANY, Pattern.MATCH, acl.pattern_type) and name in (None, acl.resource_name)


def _checked(creation: Any) -> AclBinding:
    """
    Raises:
        KafkaError: INVALID_REQUEST, with what is wrong.
    """
    kind, name, operation = creation.resource_type, creation.resource_name, creation.operation
    pattern = getattr(creation, "resource_pattern_type", Pattern.LITERAL)
    if kind not in OPERATIONS:
        raise _invalid(f"resource type {kind} has no ACLs here")
    if operation not in OPERATIONS[ResourceType(kind)]:
        raise _invalid(f"operation {operation} is not one of resource type {kind}")
    if pattern not in (Pattern.LITERAL, Pattern.PREFIXED):
        raise _invalid("the pattern is literal or prefixed")
    if creation.permission_type not in (Permission.ALLOW, Permission.DENY):
        raise _invalid("the permission is to allow or to deny")
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise _invalid(f"the resource's name has 1 to {NAME_CHARS_MAX} characters")
    if kind == ResourceType.CLUSTER and name != CLUSTER_NAME:
        raise _invalid(f"the cluster's name is {CLUSTER_NAME}")
    principal = creation.principal
    if len(principal) > NAME_CHARS_MAX or not all(principal.partition(":")[::2]):
        raise _invalid("the principal is of the form User:name")
    if not 0 < len(creation.host) <= NAME_CHARS_MAX:
        raise _invalid("the host is an address, or *")
    return AclBinding(kind, name, pattern, principal, creation.host, operation, creation.permission_type)


def _invalid(message: str) -> KafkaError:
    return KafkaError(ErrorCode.invalid_request.value, message)


def _shown(acl: AclBinding) -> dict[str, Any]:
    return {
        "error_code": ErrorCode.none,
        "error_message": None,
        "resource_type": acl.resource_type,
        "resource_name": acl.resource_name,
        "pattern_type": acl.pattern_type,
        "principal": acl.principal,
        "host": acl.host,
        "operation": acl.operation,
        "permission_type": acl.permission,
    }
