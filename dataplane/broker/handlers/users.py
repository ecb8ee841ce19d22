"""SCRAM users as Kafka's admin clients make, show and delete them. A password never comes here: clients salt it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kio.schema.errors import ErrorCode

from dataplane.broker.engine import KafkaError
from dataplane.broker.security import Security, keys_of
from dataplane.contract.security import Mechanism
from dataplane.ledger.security import scram_changed
from dataplane.ledger.security_state import ScramKeys
from dataplane.scram import ITERATIONS_MAX, ITERATIONS_MIN

MECHANISMS = {1: Mechanism.SCRAM_SHA_256, 2: Mechanism.SCRAM_SHA_512}
"""Kafka's codes."""
CODES = {mechanism.value: code for code, mechanism in MECHANISMS.items()}
_SALTED_BYTES = {Mechanism.SCRAM_SHA_256: 32, Mechanism.SCRAM_SHA_512: 64}
NAME_CHARS_MAX = 250
SALT_BYTES_MAX = 1_024


class Users:
    """Handlers over a cell's SCRAM credentials."""

    def __init__(self, security: Security) -> None:
        self._security = security

    async def describe(self, request: Any) -> dict[str, Any]:
        scram = self._security.store.state.scram
        names = [user.name for user in request.users or ()] or sorted(scram)
        asked = Counter(names)
        return {
            "error_code": ErrorCode.none,
            "error_message": None,
            "results": [self._described(name, asked[name]) for name in asked],
        }

    def _described(self, name: str, times: int) -> dict[str, Any]:
        answer: dict[str, Any] = {"user": name, "error_message": None, "credential_infos": ()}
        found = self._security.store.state.scram.get(name)
        if times > 1:
            return {**answer, "error_code": ErrorCode.duplicate_resource}
        if found is None:
            return {**answer, "error_code": ErrorCode.resource_not_found, "error_message": f"no user {name}"}
        infos = [{"mechanism": CODES[mechanism], "iterations": keys.iterations} for mechanism, keys in found.items()]
        return {**answer, "error_code": ErrorCode.none, "credential_infos": infos}

    async def alter(self, request: Any) -> dict[str, Any]:
        """Each user's changes are made, or none of that user's; those of users without a mistake in one step."""
        wrong: dict[str, KafkaError] = {}
        upserts: list[tuple[str, str, ScramKeys]] = []
        deletions: list[tuple[str, str]] = []
        named: Counter[tuple[str, int]] = Counter(
            (c.name, c.mechanism) for c in (*request.deletions, *request.upsertions)
        )
        users = list(dict.fromkeys(name for name, _ in named))
        for change in (*request.deletions, *request.upsertions):
            try:
                if named[change.name, change.mechanism] > 1:
                    raise KafkaError(ErrorCode.duplicate_resource.value, "one change of a user's mechanism at a time")
                mechanism = MECHANISMS.get(change.mechanism)
                if mechanism is None:
                    raise KafkaError(ErrorCode.unsupported_sasl_mechanism.value, "SCRAM-SHA-256 or SCRAM-SHA-512")
                if hasattr(change, "salted_password"):
                    _check(change, mechanism)
                    salt = bytes(change.salt)
                    keys = keys_of(mechanism, bytes(change.salted_password), salt, change.iterations)
                    upserts.append((change.name, mechanism.value, keys))
                else:
                    if mechanism.value not in self._security.store.state.scram.get(change.name, {}):
                        raise KafkaError(ErrorCode.resource_not_found.value, "there is no such credential")
                    deletions.append((change.name, mechanism.value))
            except KafkaError as error:
                wrong[change.name] = error
        upserts = [one for one in upserts if one[0] not in wrong]
        deletions = [one for one in deletions if one[0] not in wrong]
        if upserts or deletions:
            try:
                await self._security.store.change(lambda state: [scram_changed(upserts, deletions)])
            except KafkaError as error:
                wrong |= {user: error for user in users if user not in wrong}
        return {"results": [_result(user, wrong.get(user)) for user in users]}


def _check(change: Any, mechanism: Mechanism) -> None:
    """
    Raises:
        KafkaError: UNACCEPTABLE_CREDENTIAL.
    """
    wrong = None
    if not 0 < len(change.name) <= NAME_CHARS_MAX:
        wrong = f"a user's name has 1 to {NAME_CHARS_MAX} characters"
    elif not ITERATIONS_MIN <= change.iterations <= ITERATIONS_MAX:
        wrong = f"{ITERATIONS_MIN} to {ITERATIONS_MAX} iterations"
    elif not 0 < len(change.salt) <= SALT_BYTES_MAX or len(change.salted_password) != _SALTED_BYTES[mechanism]:
        wrong = "a salt, and a salted password as long as the mechanism's hash"
    if wrong is not None:
        raise KafkaError(ErrorCode.unacceptable_credential.value, wrong)


def _result(user: str, error: KafkaError | None) -> dict[str, Any]:
    if error is None:
        return {"user": user, "error_code": ErrorCode.none, "error_message": None}
    return {"user": user, "error_code": ErrorCode(error.code), "error_message": error.message}
