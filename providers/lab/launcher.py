"""Starts and stops the emulated clouds: for each an object-store server in that cloud's own dialect and, where it sells
block volumes, a volume daemon.

Everything of a cloud lives under `<state_dir>/lab/<cloud>/`. Addresses are picked free at the first start and kept in
`address.json`, so that whoever was told one (an assignment in a mailbox) finds the same cloud there after a restart.
Processes outlive whoever called this; `processes.py` finds them again.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from providers.base.clock import Clock, Rng
from providers.base.errors import Corrupt, Invalid, Unavailable
from providers.base.files import replace_file
from providers.base.registry import StoreAddress, VolumesAddress
from providers.lab.processes import ProcessRecord, ProcessTable, python, wait_ready

DIALECTS = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "aws": "s3", "private": "s3"}
"""Which wire protocol each provider's object store speaks."""
LIMITS = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "aws": "aws"}
"""Whose documented limits the volume daemon keeps; a private cloud has none here."""

SOCKET_PATH_BYTES_MAX = 100
"""A unix socket's path fits into 108 bytes (104 on BSD); a longer state directory gets a TCP port instead."""


@dataclass(frozen=True, slots=True)
class LabCloud:
    """What the lab needs to know of a cloud to emulate it."""

    name: str
    provider: str
    region: str
    zones: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloudAddress:
    """Where an emulated cloud is reached. `express`: a directory bucket a zone, on clouds that have them."""

    cloud: str
    provider: str
    bucket: StoreAddress
    volumes: VolumesAddress | None = None
    express: Mapping[str, StoreAddress] = field(default_factory=dict)


class Lab:
    """The emulated clouds of one state directory."""

    def __init__(self, state_dir: Path, *, clock: Clock, rng: Rng) -> None:
        self._root = state_dir.absolute() / "lab"
        self._table = ProcessTable(state_dir)
        self._clock = clock
        self._rng = rng

    def spawn(self, cloud: LabCloud) -> list[ProcessRecord]:
        """Start the cloud's servers, without waiting until they are ready. Running ones are left alone.

        Raises:
            Invalid: the state directory holds another cloud under this name.
            Unavailable: a server could not be started.
        """
        folder = self._root / cloud.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self._kept(cloud)
        credentials = self._credentials(cloud)
        started = []
        name = objects_name(cloud.name)
        if self._table.alive(name) is None:
            (folder / "objects.ready").unlink(missing_ok=True)
            # Like a real account's, the buckets are there before anybody comes: the server takes up what lies here.
            for bucket in _buckets(cloud):
                (folder / "objects" / "buckets" / bucket).mkdir(parents=True, exist_ok=True)
        argv = python(
            "providers.lab.objects_server",
            *("--dialect", DIALECTS[cloud.provider]),
            *("--root", str(folder / "objects")),
            *("--port", str(kept.get("objects_port", 0))),
            *("--credentials", str(credentials)),
            *("--ready-file", str(folder / "objects.ready")),
        )
        started.append(self._table.start(name, argv, log=folder / "objects.log"))
        if cloud.provider in LIMITS:
            name = volumes_name(cloud.name)
            if self._table.alive(name) is None:
                (folder / "volumes.ready").unlink(missing_ok=True)
            argv = python(
                "providers.lab.volumes_server",
                *("--root", str(folder / "volumes")),
                *("--listen", self._listen(folder, kept)),
                *("--limits", LIMITS[cloud.provider]),
                *("--ready-file", str(folder / "volumes.ready")),
            )
            started.append(self._table.start(name, argv, log=folder / "volumes.log"))
        return started

    def wait(self, cloud: LabCloud, *, deadline_ms: float) -> CloudAddress:
        """Wait until the cloud's servers are ready, and keep their addresses.

        `deadline_ms`: on the system's monotonic clock.

        Raises:
            Unavailable: a server ended (its own sentence says why) or was not ready in time.
        """
        folder = self._root / cloud.name
        address: dict[str, Any] = {"name": cloud.name, "provider": cloud.provider, "region": cloud.region}
        ready = self._ready(objects_name(cloud.name), folder / "objects.ready", deadline_ms)
        address["objects_port"] = ready["port"]
        if cloud.provider in LIMITS:
            ready = self._ready(volumes_name(cloud.name), folder / "volumes.ready", deadline_ms)
            address["volumes"] = ready["listen"]
        address["express_zones"] = list(cloud.zones) if cloud.provider == "aws" else []
        replace_file(folder / "address.json", json.dumps(address, sort_keys=True).encode(), durable=True, mode=0o600)
        return self._address(address)

    def _ready(self, name: str, ready_file: Path, deadline_ms: float) -> dict[str, Any]:
        record = self._table.find(name)
        if record is None:
            raise Unavailable(f"{name} was not started")
        return wait_ready(record, ready_file, deadline_ms=deadline_ms)

    def clouds(self) -> list[str]:
        """Names of the clouds that were started here at some time."""
        return sorted(p.parent.name for p in self._root.glob("*/address.json"))

    def address(self, cloud: str) -> CloudAddress | None:
        """Where the cloud was, or is, reached; None when it was never started here."""
        kept = self._read(cloud)
        return self._address(kept) if "objects_port" in kept else None

    def _address(self, kept: Mapping[str, Any]) -> CloudAddress:
        name, provider, region = str(kept["name"]), str(kept["provider"]), str(kept["region"])
        endpoint = f"http://127.0.0.1:{kept['objects_port']}"
        credentials = str(self._root / name / "credentials.json")

        def bucket(of: str) -> StoreAddress:
            return StoreAddress(provider, of, region, endpoint, credentials)

        return CloudAddress(
            cloud=name,
            provider=provider,
            bucket=bucket(bucket_name(name)),
            volumes=VolumesAddress(provider, region, str(kept["volumes"])) if "volumes" in kept else None,
            express={zone: bucket(express_bucket_name(name, zone)) for zone in kept.get("express_zones", [])},
        )

    def _kept(self, cloud: LabCloud) -> dict[str, Any]:
        kept = self._read(cloud.name)
        for what, now in (("provider", cloud.provider), ("region", cloud.region)):
            if kept and kept[what] != now:
                raise Invalid(
                    f"cloud {cloud.name} was started with {what} {kept[what]}, not {now}",
                    hint="use another name, or `yunhe down --purge` first, which removes its data",
                )
        return kept

    def _read(self, cloud: str) -> dict[str, Any]:
        path = self._root / cloud / "address.json"
        try:
            plain = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Corrupt(f"{path} cannot be read", hint="remove it; new ports are picked then") from error
        return dict(plain)

    def _listen(self, folder: Path, kept: Mapping[str, Any]) -> str:
        if "volumes" in kept:
            return str(kept["volumes"])
        path = str(folder / "volumes.sock")
        return f"unix:{path}" if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else "tcp:127.0.0.1:0"

    def _credentials(self, cloud: LabCloud) -> Path:
        """The cloud's own random credentials, made once: the emulated cloud refuses any others."""
        path = self._root / cloud.name / "credentials.json"
        if not path.exists():
            made = json.dumps(_fresh_credentials(cloud, self._rng), sort_keys=True).encode()
            replace_file(path, made, durable=True, mode=0o600)
        return path


def _fresh_credentials(cloud: LabCloud, rng: Rng) -> dict[str, Any]:
    key, secret = rng.token(), rng.token() + rng.token()
    # Lets drills set faults; clients pass it over.
    admin = {"admin_token": rng.token()}
    match cloud.provider:
        case "azure":
            # Account names are 3 to 24 lower-case letters and digits; account keys are base64.
            account_key = base64.b64encode(bytes.fromhex(secret)).decode()
            return {"account": f"lab{key[:16]}", "account_key": account_key, **admin}
        case "gcp":
            return {"anonymous": True, **admin}
        case _:
            return {"access_key": f"LAB{key[:17].upper()}", "secret_key": secret, **admin}


def objects_name(cloud: str) -> str:
    """Process name of a cloud's object-store server."""
    return f"{cloud}.objects"


def volumes_name(cloud: str) -> str:
    """Process name of a cloud's volume daemon."""
    return f"{cloud}.volumes"


def bucket_name(cloud: str) -> str:
    """The cell's bucket."""
    return f"yunhe-{cloud}"


def express_bucket_name(cloud: str, zone: str) -> str:
    """A directory bucket's name ends in its zone and a fixed suffix (S3 user guide, directory bucket naming rules)."""
    return f"yunhe-{cloud}--{zone}--x-s3"


def _buckets(cloud: LabCloud) -> list[str]:
    express = [express_bucket_name(cloud.name, zone) for zone in cloud.zones] if cloud.provider == "aws" else []
    return [bucket_name(cloud.name), *express]
