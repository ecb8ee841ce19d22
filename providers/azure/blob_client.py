"""How the object store reaches its container: account, credentials, connections.

A credentials file holds `account` and `account_key` (Shared Key), or `account` with `tenant`, `client_id` and
`client_secret` (an application of Microsoft Entra), or `account` alone, which leaves signing in to azure-identity's
default chain: environment, workload or managed identity, `az login`. Without a file the endpoint names the account.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from providers.azure.clouds import cloud_of
from providers.base.blocking import StoreSettings, read_credentials
from providers.base.errors import Invalid
from providers.base.registry import StoreAddress

SINGLE_PUT_BYTES_MAX = 5000 << 20
"""What one Put Blob request takes (Blob service REST reference)."""

SINGLE_GET_BYTES_MAX = 1 << 30
"""Larger blobs are read in several requests."""

CHECKED_BYTES_MAX = 4 << 20
"""The longest range that the service gives a checksum of (Get Blob, `x-ms-range-get-content-md5`)."""

SCOPE = "https://storage.azure.com/.default"

_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*|\$root|\$logs")


@dataclass(frozen=True, slots=True)
class Connection:
    """An open container. `account_key` is None where an identity signs in: `credential` then has its tokens."""

    container: Any
    session: Any = field(repr=False)
    account: str
    account_key: str | None = field(repr=False)
    credential: Any = field(repr=False)


def connect(address: StoreAddress, settings: StoreSettings) -> Connection:
    """Nothing is sent yet.

    Raises:
        Invalid: unreadable or missing credentials, a name that no container has.
    """
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import ContainerClient

    if not _CONTAINER.fullmatch(address.bucket):
        hint = "3 to 63 lower-case letters, digits and single hyphens, no hyphen first or last"
        raise Invalid(f"{address.bucket!r} cannot name a container", hint=hint)
    secrets = read_credentials(address.credentials_file)
    account = str(secrets.get("account", ""))
    if not account and (address.endpoint is None or address.credentials_file is not None):
        hint = "a JSON file with `account`, and `account_key` or an identity's `tenant`, `client_id`, `client_secret`"
        raise Invalid("Azure needs to know the storage account", hint=hint)
    key = str(secrets["account_key"]) if "account_key" in secrets else None
    credential = None if key is not None else _credential(secrets, address.region)
    session = _session(settings.threads, trust_env=address.endpoint is None)
    try:
        container = ContainerClient(
            _url(address, account),
            address.bucket,
            credential={"account_name": account, "account_key": key} if key is not None else credential,
            transport=RequestsTransport(
                session=session, session_owner=False, use_env_settings=address.endpoint is None
            ),
            retry_total=0,
            connection_timeout=settings.connect_timeout_ms / 1000,
            read_timeout=settings.read_timeout_ms / 1000,
            max_single_put_size=SINGLE_PUT_BYTES_MAX,
            max_single_get_size=SINGLE_GET_BYTES_MAX,
            max_chunk_get_size=CHECKED_BYTES_MAX,
        )
    except ValueError as error:
        raise Invalid(f"container {address.bucket} cannot be opened: {error}") from error
    return Connection(container, session, account, key, credential)


def _url(address: StoreAddress, account: str) -> str:
    if address.endpoint is None:
        return f"https://{account}.{cloud_of(address.region).blobs}"
    # An emulator's endpoint is addressed in path style; a real one (a private link, say) names the account itself.
    return f"{address.endpoint}/{account}" if address.endpoint.startswith("http://") else address.endpoint


def _credential(secrets: dict[str, Any], region: str) -> Any:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    names = ("tenant", "client_id", "client_secret")
    given = [name for name in names if name in secrets]
    if not given:
        return DefaultAzureCredential(authority=cloud_of(region).authority)
    if len(given) < len(names):
        raise Invalid(f"the credentials file has {', '.join(given)} only", hint=f"all of {', '.join(names)}")
    tenant, client_id, client_secret = (str(secrets[name]) for name in names)
    return ClientSecretCredential(tenant, client_id, client_secret, authority=cloud_of(region).authority)


def _session(threads: int, *, trust_env: bool) -> Any:
    import requests

    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=threads, pool_maxsize=threads)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.trust_env = trust_env
    return session
