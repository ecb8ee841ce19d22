"""Whether a bucket really does create-if-absent: found out by a race of writers, since documents, proxies and settings
have been wrong (design §4, rule 6).
"""

from __future__ import annotations

import asyncio
import logging

from providers.base.clock import Rng
from providers.base.errors import AlreadyExists, Invalid, NotFound, Unavailable
from providers.base.objects import ObjectStore

log = logging.getLogger(__name__)

PROBE_PREFIX = "probes/"
"""Beside the cells' own prefixes: the ledger never looks here."""
WRITERS = 8
ANSWERS_MIN = 5
"""Of `WRITERS`: with fewer clear answers a round proves nothing. A lost answer is neither a win nor a loss."""


async def probe_conditional_create(store: ObjectStore, *, rng: Rng) -> str:
    """Race `WRITERS` writers for a fresh name, and then again for the name that is there now, where all must lose.
    Returns one sentence.

    Raises:
        Invalid: the store lets more than one win, lets one win over an existing object, or holds other bytes than the
            winner's: no ledger can live there.
        Unavailable: it did not answer clearly enough; try again.
    """
    key = f"{PROBE_PREFIX}{rng.token()}"
    bodies = [f"{writer}:{rng.token()}".encode() for writer in range(WRITERS)]
    try:
        winners = await _race(store, key, bodies)
        if len(winners) > 1:
            raise _refusal(f"{len(winners)} of {WRITERS} concurrent creators of one name were told that they had won")
        if not winners:
            raise Unavailable(
                f"none of {WRITERS} creators of a fresh name was told that it won: the probe proves nothing"
            )
        if await store.get(key) != winners[0]:
            raise _refusal("a name holds other bytes than its creator wrote")
        if await _race(store, key, bodies):
            raise _refusal("an existing object was created once more")
        if await store.get(key) != winners[0]:
            raise _refusal("an existing object was overwritten by a create that reported failure")
    finally:
        try:
            await store.delete([key])
        except Unavailable as error:
            log.info("probe object %s stays: %s", key, error)
    return f"create-if-absent holds: one winner of {WRITERS} concurrent writers, none over an existing object"


async def _race(store: ObjectStore, key: str, bodies: list[bytes]) -> list[bytes]:
    """The bodies whose writers were told that they had created the object.

    Raises:
        Unavailable: too few answers, so that the count means nothing.
    """
    outcomes = await asyncio.gather(*(store.put(key, body, if_absent=True) for body in bodies), return_exceptions=True)
    winners, lost = [], []
    for body, outcome in zip(bodies, outcomes, strict=True):
        match outcome:
            case None:
                winners.append(body)
            case AlreadyExists():
                pass
            case Unavailable():  # OutcomeUnknown is one
                lost.append(outcome)
            case NotFound():
                raise Invalid(f"there is no such bucket: {outcome}", hint="create it, or correct its name") from outcome
            case _:
                raise outcome
    if len(bodies) - len(lost) < ANSWERS_MIN:
        raise Unavailable(f"the bucket left {len(lost)} of {WRITERS} writers without an answer: {lost[0]}") from lost[0]
    return winners


def _refusal(what: str) -> Invalid:
    return Invalid(
        f"this bucket does not keep create-if-absent: {what}",
        hint="on OSS, versioning must never have been on; elsewhere, look for a proxy or a gateway in between",
    )
