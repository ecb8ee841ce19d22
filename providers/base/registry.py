"""Opens a cloud's implementation by name. The cloud's package, and with it the SDK, is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import cast

from providers.base.clock import Clock, Rng
from providers.base.dns import Dns
from providers.base.errors import Invalid
from providers.base.instances import Instances
from providers.base.objects import ObjectStore
from providers.base.volume_api import VolumeApi
from providers.base.volumes import BlockVolumes

PROVIDERS = ("aliyun", "azure", "gcp", "aws", "private")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a bucket is and how to sign in, as plain data that fits into an assignment. It holds no secret."""

    provider: str
    """One of PROVIDERS."""
    bucket: str
    """Bucket (Azure: container) name. A name that ends in `--x-s3` is an S3 Express directory bucket."""
    region: str
    endpoint: str | None = None
    """Base URL of a non-default endpoint (the lab's, a private S3's); None means the cloud's own."""
    credentials_file: str | None = None
    """Where this provider's credentials are, as a JSON object: a path, `file:PATH` (mode 0600), or `env:NAME`, a
    variable of the process's environment that holds the JSON itself; None means the SDK's default chain.
    Keys: aws/private `access_key`, `secret_key`, and `session_token` where there is one; aliyun the first two; azure
    `account`, and `account_key` or an identity's `tenant`, `client_id`, `client_secret` (else the default chain); gcp
    `service_account` (object) or `anonymous: true`."""


@dataclass(frozen=True, slots=True)
class VolumesAddress:
    """Where a cloud's block volumes are reached from this host."""

    provider: str
    region: str
    endpoint: str | None = None
    """None: the cloud's volumes that are attached to this host. `iscsi://host:port/target…`: an array's (`iscsi.py`).
    `unix:/path` or `tcp:127.0.0.1:port`: the lab's volume daemon."""
    devices: dict[str, str] = field(default_factory=dict)
    """Volumes by name, as this host knows them where that differs: a cloud's id (vol-…, d-…), a device name (GCP), a
    LUN (Azure: `lun3`, not the same on every host), a unit's serial number (iSCSI). A name that is not in it is
    itself."""


@dataclass(frozen=True, slots=True)
class AccountAddress:
    """An account's control API: which one, where, and how to sign in, as plain data without a secret."""

    provider: str
    """One of PROVIDERS."""
    region: str
    account: str = ""
    """Azure: subscription id; GCP: project id; elsewhere the credentials say it."""
    group: str = ""
    """Azure: resource group."""
    endpoint: str | None = None
    """Base URL of a non-default endpoint (the lab's); None means the cloud's own."""
    credentials_file: str | None = None
    """As StoreAddress's; azure for these calls: `tenant`, `client_id`, `client_secret`; private DNS: `key_name`, `key`,
    `algorithm` (TSIG)."""


def open_volume_api(address: AccountAddress, *, clock: Clock, rng: Rng) -> VolumeApi:
    """Open the account's block-volume API; nothing is sent yet.

    Raises:
        Invalid: unknown provider, one without volumes, unreadable credentials.
    """
    return cast(VolumeApi, _module(address.provider, "volumes").open_volume_api(address, clock=clock, rng=rng))


def open_instances(address: AccountAddress, *, clock: Clock, rng: Rng) -> Instances:
    """Open the account's compute API; nothing is sent yet.

    Raises:
        Invalid: unknown provider, one without instances, unreadable credentials.
    """
    return cast(Instances, _module(address.provider, "instances").open_instances(address, clock=clock, rng=rng))


def open_dns(address: AccountAddress, zone: str, *, clock: Clock, rng: Rng) -> Dns:
    """Open the DNS zone (domain) `zone`; nothing is sent yet.

    Raises:
        Invalid: unknown provider, a malformed zone, unreadable credentials.
    """
    return cast(Dns, _module(address.provider, "dns").open_dns(address, zone, clock=clock, rng=rng))


def open_store(address: StoreAddress, *, clock: Clock, rng: Rng) -> ObjectStore:
    """Open the bucket at `address`.

    Raises:
        Invalid: unknown provider, unreadable credentials, malformed address.
    """
    return cast(ObjectStore, _module(address.provider, "objects").open_store(address, clock=clock, rng=rng))


def open_volumes(address: VolumesAddress, *, clock: Clock, ours: Callable[[bytes], bool] | None = None) -> BlockVolumes:
    """Open the block volumes at `address`. `ours`: whether the first bytes of a real volume are the caller's own; one
    that is neither empty nor ours is not opened. The lab's volumes hold nothing else and are not looked at.

    Raises:
        Invalid: unknown provider, or an endpoint that is none.
    """
    if address.provider not in PROVIDERS:
        raise Invalid(f"unknown provider {address.provider!r}", hint=f"one of: {', '.join(PROVIDERS)}")
    if address.endpoint is None:
        module = importlib.import_module("providers.base.host_volumes")
        return cast(BlockVolumes, module.HostBlockVolumes(address.provider, devices=address.devices, ours=ours))
    if address.endpoint.startswith("iscsi:"):
        module = importlib.import_module("providers.base.iscsi")
        return cast(BlockVolumes, module.IscsiBlockVolumes(address.endpoint, devices=address.devices, ours=ours))
    module = importlib.import_module("providers.lab.volumes_client")
    return cast(BlockVolumes, module.open_volumes(address, clock=clock))


def _module(provider: str, name: str) -> ModuleType:
    if provider not in PROVIDERS:
        raise Invalid(f"unknown provider {provider!r}", hint=f"one of: {', '.join(PROVIDERS)}")
    return importlib.import_module(f"providers.{provider}.{name}")
