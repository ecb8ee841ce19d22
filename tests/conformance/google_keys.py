"""Service-account keys as Google hands them out, made for a test."""

from __future__ import annotations

from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@cache
def service_account(project: str, name: str, *, key: int = 0) -> dict[str, Any]:
    """A key file's content; another `key` number is another key of the same account. Its tokens come from whatever
    endpoint it is used at."""
    made = rsa.generate_private_key(65537, 2048)
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": f"k{key}",
        "private_key": made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": f"{name}@{project}.iam.gserviceaccount.com",
        "token_uri": "/token",
    }
