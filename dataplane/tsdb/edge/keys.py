"""An edge's key: made once, in the edge's own folder, and durable before anything is signed with it.

The cloud is told the public half, once (`DatabaseSpec.trust`). Who loses the key has to tell it the new one: batches
that the new one signs are refused until then, and wait on the edge.
"""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dataplane.tsdb.edge.files import Files
from providers.base.errors import Corrupt

NAME = "edge.key"
NEW = "edge.key.new"


def edge_key(files: Files) -> Ed25519PrivateKey:
    """The key in this folder; made, and durable, where there is none. `DiskFiles` makes it readable by its owner only.

    Raises:
        Corrupt: what is there is no key. Full, Unavailable: none could be made.
    """
    if NAME in files.names():
        return _read(files.read(NAME))
    key = Ed25519PrivateKey.generate()
    body = {"ed25519": key.private_bytes_raw().hex(), "public": public_hex(key.public_key())}
    data = json.dumps(body).encode()
    files.append(NEW, 0, data)
    files.truncate(NEW, len(data))
    files.sync(NEW)
    files.rename(NEW, NAME)
    files.sync_names()
    return key


def public_hex(key: Ed25519PublicKey) -> str:
    """As the cloud's list of trusted edges has it: 64 hex digits."""
    return key.public_bytes_raw().hex()


def _read(data: bytes) -> Ed25519PrivateKey:
    try:
        body = json.loads(data)
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(body["ed25519"]))
        whole = public_hex(key.public_key()) == body["public"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged() from error
    if not whole:  # a flipped bit makes another key, not an invalid one
        raise _damaged()
    return key


def _damaged() -> Corrupt:
    return Corrupt(
        f"{NAME} is damaged", hint="remove it for a new key, and give the database the new public half (`trust`)"
    )
