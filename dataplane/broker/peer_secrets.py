"""What brokers of a cluster know each other by: a secret that each shows, and others that it also accepts, so that it
can be changed while they run.

    {"secret": "old"}  ──►  {"secret": "new", "accepted": ["old"]}  ──►  {"secret": "new"}
                                on every host, in any order                 then on every host

Two brokers that are one step apart know each other. The file is read again while the broker runs; connections that rest
on a secret that is not there any more are cut, and made anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from providers.base.clock import Clock
from providers.base.credentials import read_credentials
from providers.base.errors import Invalid

log = logging.getLogger(__name__)

Secrets = tuple[bytes, ...]
"""The one that is shown, then those that are accepted beside it; none where anybody may speak."""
SECRET_CHARS_MIN = 16
ACCEPTED_MAX = 3
LOOK_MS = 5_000
"""How often the file is read again."""


def read_peer_secrets(reference: str | None) -> Secrets:
    """The secrets that `reference` leads to; none when it is None.

    Raises:
        Invalid: they cannot be read, one is too short to be one, or they are too many.
    """
    if reference is None:
        return ()
    found = read_credentials(reference, "secret")
    accepted = found.get("accepted", [])
    if not isinstance(accepted, list) or len(accepted) > ACCEPTED_MAX:
        raise Invalid(f"`accepted` in {reference} is a list of at most {ACCEPTED_MAX} secrets")
    for secret in (found["secret"], *accepted):
        if not isinstance(secret, str) or len(secret) < SECRET_CHARS_MIN:
            raise Invalid(f"a secret in {reference} is shorter than {SECRET_CHARS_MIN} characters")
    return tuple(secret.encode() for secret in (found["secret"], *accepted))


async def keep_fresh(reference: str | None, now: Secrets, use: Callable[[Secrets], None], clock: Clock) -> None:
    """Read them again for ever, and `use` them when they are not those of `now` any more. What cannot be read is
    logged, and the old ones stay."""
    trouble = ""
    while reference is not None:
        await clock.sleep_ms(LOOK_MS)
        try:
            read = read_peer_secrets(reference)
        except Invalid as error:  # half of a change, most often
            if trouble != error.message:
                trouble = error.message
                log.warning("peer-secrets-not-reloaded", extra={"error": trouble})
            continue
        trouble = ""
        if read != now:
            now = read
            use(now)
            log.info("peer-secrets-reloaded", extra={"accepted": len(now) - 1})
