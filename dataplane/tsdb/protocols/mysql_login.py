"""Who may use the MySQL wire: `caching_sha2_password`, the way of every client since MySQL 8.

The server keeps of a password only SHA-256 of SHA-256 of it, which is enough to check a client's answer to a challenge
and not enough to give one. The exchange that sends passwords (full authentication) is never asked for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from providers.base.clock import Rng
from providers.base.errors import Invalid

PLUGIN = "caching_sha2_password"
FAST_AUTH_SUCCESS = b"\x03"
CHALLENGE_BYTES = 20


class Users:
    """Names and what their passwords are checked by."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        """Raises Invalid: a user without a password."""
        if empty := [name for name, password in passwords.items() if not password]:
            raise Invalid(f"user {empty[0]!r} has no password")
        self._verifiers = {name: _sha256(_sha256(word.encode())) for name, word in passwords.items()}

    def admits(self, user: str, answer: bytes, challenge: bytes) -> bool:
        """Whether `answer` is what the user's password makes of `challenge`. Takes as long for users that are not."""
        verifier = self._verifiers.get(user, bytes(32))
        mask = _sha256(verifier + challenge)
        once = bytes(a ^ b for a, b in zip(answer, mask, strict=False))
        same = hmac.compare_digest(_sha256(once), verifier)
        return same and user in self._verifiers and len(answer) == len(mask)


def challenge(rng: Rng) -> bytes:
    """Twenty characters without NUL, as clients expect them."""
    return rng.token()[:CHALLENGE_BYTES].encode()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
