"""The server's side of SCRAM (RFC 5802, RFC 7677), for brokers and databases: no I/O, no password, no clock.

    client                                server
    n,,n=user,r=NONCE            ──►      r=NONCE+ours,s=SALT,i=ITERATIONS      (FIRST → FINAL)
    c=biws,r=NONCE+ours,p=PROOF  ──►      v=SIGNATURE                           (FINAL → DONE)

What is kept of a user are salted keys: they can check a proof, and cannot make one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from dataplane.contract.security import Mechanism

ITERATIONS_MIN, ITERATIONS_MAX = 4_096, 16_384
"""Kafka's own bounds."""
MESSAGE_BYTES_MAX = 4_096

_HASH = {Mechanism.SCRAM_SHA_256: "sha256", Mechanism.SCRAM_SHA_512: "sha512"}


class Refused(Exception):
    """The login fails. The message is for the log: the client learns nothing from it."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's salted keys under one mechanism."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


def salted(mechanism: Mechanism, password: str, salt: bytes, iterations: int) -> bytes:
    """The salted password: milliseconds of work, which frees the interpreter meanwhile."""
    return hashlib.pbkdf2_hmac(_HASH[mechanism], password.encode(), salt, iterations)


def credential(mechanism: Mechanism, salted_password: bytes, salt: bytes, iterations: int) -> Credential:
    """What is kept of a salted password."""
    client_key = _mac(mechanism, salted_password, b"Client Key")
    stored = hashlib.new(_HASH[mechanism], client_key).digest()
    return Credential(salt, iterations, stored, _mac(mechanism, salted_password, b"Server Key"))


def decoy(mechanism: Mechanism, user: str, secret: bytes) -> Credential:
    """A credential of nobody, the same each time: whoever asks for a user that is not there sees one whose password
    is wrong."""
    made = _mac(mechanism, secret, user.encode())
    return Credential(made[:16], ITERATIONS_MIN, made, made)


def password_fits(mechanism: Mechanism, password: str, known: Credential) -> bool:
    """Whether this is the password that the credential was made of; as slow as `salted`."""
    made = credential(mechanism, salted(mechanism, password, known.salt, known.iterations), known.salt, 0)
    return hmac.compare_digest(made.stored_key, known.stored_key)


class ScramServer:
    """One login. `find` gives a user's credential; `nonce` is this login's own and never used again. `user`: who logs
    in, where the protocol has said so before; the name within the exchange may be empty then, and counts for nothing.
    """

    def __init__(
        self, mechanism: Mechanism, find: Callable[[str], Credential], nonce: str, *, user: str | None = None
    ) -> None:
        self._mechanism = mechanism
        self._find = find
        self._nonce = nonce
        self._known: Credential | None = None
        self._bare = self._first = self._gs2 = ""
        self._said_before = user
        self.user = ""
        self.done = False

    def step(self, message: bytes) -> bytes:
        """The answer to the client's next message; after the last one `done` is true and `user` is who logged in.

        Raises:
            Refused: not SCRAM, or not that user's password.
        """
        if self.done or len(message) > MESSAGE_BYTES_MAX:
            raise Refused("a message too many or too long")
        try:
            text = message.decode()
        except UnicodeDecodeError:
            raise Refused("not text") from None
        return self._take_first(text) if self._known is None else self._take_final(text)

    def _take_first(self, text: str) -> bytes:
        flag, _, rest = text.partition(",")
        authzid, _, bare = rest.partition(",")
        if flag not in ("n", "y"):
            raise Refused("channel binding is not offered")
        fields = bare.split(",")
        if len(fields) < 2 or not fields[0].startswith("n=") or not fields[1].startswith("r="):
            raise Refused("no user or no nonce")  # a mandatory extension (m=) stands here, too
        named, client_nonce = _unescaped(fields[0][2:]), fields[1][2:]
        self.user = named if self._said_before is None else self._said_before
        if authzid not in ("", f"a={fields[0][2:]}"):
            raise Refused("acting for somebody else")
        if not self.user or not client_nonce or not client_nonce.isascii() or not client_nonce.isprintable():
            raise Refused("no user or no nonce")
        self._known = self._find(self.user)
        self._gs2 = f"{flag},{authzid},"
        self._bare = bare
        self._nonce = client_nonce + self._nonce
        salt = base64.b64encode(self._known.salt).decode()
        self._first = f"r={self._nonce},s={salt},i={self._known.iterations}"
        return self._first.encode()

    def _take_final(self, text: str) -> bytes:
        assert self._known is not None
        without_proof, separator, proof = text.rpartition(",p=")
        fields = without_proof.split(",")
        if not separator or len(fields) < 2 or not fields[0].startswith("c=") or not fields[1].startswith("r="):
            raise Refused("no channel binding, nonce or proof")
        if _decoded(fields[0][2:]) != self._gs2.encode():
            raise Refused("another channel binding than at first")
        if not hmac.compare_digest(fields[1][2:].encode(), self._nonce.encode()):
            raise Refused("the nonce of another login")
        said = f"{self._bare},{self._first},{without_proof}".encode()
        signature = _mac(self._mechanism, self._known.stored_key, said)
        proven = _decoded(proof)
        if len(proven) != len(signature):
            raise Refused("a proof of another length")
        client_key = bytes(a ^ b for a, b in zip(proven, signature, strict=True))
        if not hmac.compare_digest(hashlib.new(_HASH[self._mechanism], client_key).digest(), self._known.stored_key):
            raise Refused("wrong password, or no such user")
        self.done = True
        return b"v=" + base64.b64encode(_mac(self._mechanism, self._known.server_key, said))


def _mac(mechanism: Mechanism, key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, _HASH[mechanism])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("not base64") from None


def _unescaped(name: str) -> str:
    """A user's name, in which a comma is =2C and an equals sign =3D."""
    if name.replace("=2C", "").replace("=3D", "").count("="):
        raise Refused("a user's name with a bare =")
    return name.replace("=2C", ",").replace("=3D", "=")
