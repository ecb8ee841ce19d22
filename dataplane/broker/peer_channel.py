"""A connection between two brokers: JSON objects in frames, and, where the cluster has a secret, the proof that both
ends know it. A message's "data" are bytes, which stand behind its JSON.

    who connects                              who listens
    {"nonce": A}                       ──►
                                       ◄──   {"nonce": B, "proof": MAC(secret, "listens" A B), "also": [of others, …]}
    {"proof": MAC(secret, "connects" A B)} ──►
    then each frame is AES-256-GCM(key of A and B; nonce: direction, number of the frame)

While the secret is being changed a broker accepts more than one (`peer_secrets.py`): who listens proves that it knows
each, and who connects takes the first of its own among them.

So nothing can be read, said, changed, repeated, left out or turned round by who does not know the secret; there are
clients' records in it. Who learns the secret later can read what was recorded before. It needs no certificates, whose
end would be the end of failover.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dataplane.broker.peer_secrets import Secrets

FRAME_BYTES_MAX = (1 << 20) + (64 << 10)
"""A batch of records, and what is said of it."""
GREETING_BYTES_MAX = 1_024
NONCE_CHARS_MAX = 64
DATA = "data"

Message = dict[str, Any]


class Channel:
    """Frames over a connection. `key`: what seals them, None where the cluster has no secret."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        key: bytes | None,
        *,
        listens: bool,
        secret: bytes | None = None,
    ) -> None:
        self._secret = secret
        self._reader = reader
        self._writer = writer
        self._cipher = AESGCM(key) if key is not None else None
        self._mine, self._theirs = (b"L", b"C") if listens else (b"C", b"L")
        self._sent = self._received = 0

    def write(self, message: Mapping[str, Any]) -> None:
        """Send without waiting."""
        body = json.dumps({k: v for k, v in message.items() if k != DATA}, separators=(",", ":")).encode()
        if DATA in message:
            body += b"\n" + message[DATA]  # JSON as it is written here has no line ends
        if self._cipher is not None:
            body = self._cipher.encrypt(_nonce_of(self._mine, self._sent), body, None)
            self._sent += 1
        self._writer.write(len(body).to_bytes(4, "big") + body)

    async def drain(self) -> None:
        """Wait while the other end does not take what was sent."""
        await self._writer.drain()

    def rests_on(self, secrets: Secrets) -> bool:
        """Whether both ends have shown that they know one of these."""
        return not secrets or self._secret in secrets

    @property
    def closing(self) -> bool:
        return self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    async def read(self, bytes_max: int = FRAME_BYTES_MAX) -> Message | None:
        """The next message, None at the end of the stream.

        Raises:
            ValueError: anything that is not one, or is not from who it should be.
            OSError, asyncio.IncompleteReadError: the connection is lost.
        """
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
        except asyncio.IncompleteReadError:
            return None
        if size > bytes_max:
            raise ValueError("frame too large")
        body = await self._reader.readexactly(size)
        if self._cipher is not None:
            try:
                body = self._cipher.decrypt(_nonce_of(self._theirs, self._received), body, None)
            except InvalidTag as error:
                raise ValueError("a frame that is not sealed with the cluster's secret") from error
            self._received += 1
        plain, _, data = body.partition(b"\n")
        message = json.loads(plain)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        if data:
            message[DATA] = data
        return message


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secrets: Secrets, nonce: str) -> Channel:
    """The channel over a connection that this broker made. `nonce` is used for nothing else.

    Raises:
        ValueError: the other end knows none of the secrets.
        OSError, asyncio.IncompleteReadError: the connection is lost.
    """
    plain = Channel(reader, writer, None, listens=False)
    if not secrets:
        return plain
    plain.write({"nonce": nonce})
    answer = await _greeting(plain)
    theirs = _nonce(answer)
    also = answer.get("also")
    proofs = [answer.get("proof"), *(also if isinstance(also, list) else ())]
    secret = _proven(proofs, secrets, "listens", nonce, theirs)
    plain.write({"proof": _mac(secret, "connects", nonce, theirs).hex()})
    return Channel(reader, writer, _mac(secret, "seals", nonce, theirs), listens=False, secret=secret)


async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secrets: Secrets, nonce: str) -> Channel:
    """The channel over a connection that another broker made.

    Raises:
        As `greet`.
    """
    plain = Channel(reader, writer, None, listens=True)
    if not secrets:
        return plain
    theirs = _nonce(await _greeting(plain))
    proof, *also = [_mac(secret, "listens", theirs, nonce).hex() for secret in secrets]
    plain.write({"nonce": nonce, "proof": proof, **({"also": also} if also else {})})
    secret = _proven([(await _greeting(plain)).get("proof")], secrets, "connects", theirs, nonce)
    return Channel(reader, writer, _mac(secret, "seals", theirs, nonce), listens=True, secret=secret)


async def _greeting(plain: Channel) -> Message:
    message = await plain.read(GREETING_BYTES_MAX)
    if message is None:
        raise ConnectionResetError("closed before it was known who it is")
    return message


def _nonce(message: Message) -> str:
    nonce = message.get("nonce")
    if not isinstance(nonce, str) or not 0 < len(nonce) <= NONCE_CHARS_MAX:
        raise ValueError("no greeting")
    return nonce


def _proven(proofs: Sequence[object], secrets: Secrets, what: str, connecting: str, listening: str) -> bytes:
    """The first of the secrets that one of the proofs is of."""
    for secret in secrets:
        expected = _mac(secret, what, connecting, listening).hex().encode()
        if any(hmac.compare_digest(str(proof).encode(), expected) for proof in proofs):
            return secret
    raise ValueError("the other end does not know the cluster's secret")


def _mac(secret: bytes, what: str, connecting: str, listening: str) -> bytes:
    # As JSON, so that no two triples make one text.
    return hmac.digest(secret, json.dumps(["yunhe peers", what, connecting, listening]).encode(), "sha256")


def _nonce_of(direction: bytes, number: int) -> bytes:
    """Of a frame: never the same twice under one conversation's key."""
    return direction + number.to_bytes(11, "big")
