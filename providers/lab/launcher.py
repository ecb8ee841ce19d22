"""Starts and stops the emulated clouds: for each an object-store server in that cloud's own dialect, where it sells
block volumes a volume daemon and, when asked for, a server of its control API (compute, disks, DNS, tokens).

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
from providers.base.registry import AccountAddress, StoreAddress, VolumesAddress
from providers.lab.processes import ProcessRecord, ProcessTable, python, wait_ready

DIALECTS = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "aws": "s3", "private": "s3"}
"""Which wire protocol each provider's object store speaks."""
LIMITS = {"aliyun": "aliyun", "azure": "azure", "gcp": "gcp", "aws": "aws"}
"""Whose documented limits the volume daemon keeps; a private cloud has none here."""

CONTROLLED = frozenset({"aliyun", "azure", "gcp", "aws"})
"""Providers whose control API is emulated."""
ACCOUNTS = {"azure": "00000000-0000-4000-8000-000000000001", "gcp": "yunhe-lab"}
"""The emulated subscription and project. Elsewhere the credentials say the account."""
GROUPS = {"azure": "yunhe-lab"}
DNS_ZONE = "lab.test"
"""The domain that each emulated DNS starts with."""

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
    """Where an emulated cloud is reached. `express`: a directory bucket a zone, on clouds that have them. `control`:
    where its control API is, if that was started."""

    cloud: str
    provider: str
    bucket: StoreAddress
    volumes: VolumesAddress | None = None
    express: Mapping[str, StoreAddress] = field(default_factory=dict)
    zones: tuple[str, ...] = ()
    control: AccountAddress | None = None

    @property
    def region(self) -> str:
        return self.bucket.region


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
            *("--provider", cloud.provider),
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
                *("--credentials", str(credentials)),
                *("--ready-file", str(folder / "volumes.ready")),
            )
            started.append(self._table.start(name, argv, log=folder / "volumes.log"))
        return started

    def spawn_control(self, cloud: LabCloud) -> list[ProcessRecord]:
        """Start the server of the cloud's control API, which needs the others ready. Nothing where none is emulated.

        Raises:
            Invalid, Unavailable: as `spawn`.
        """
        if cloud.provider not in CONTROLLED:
            return []
        folder, kept = self._root / cloud.name, self._kept(cloud)
        name = control_name(cloud.name)
        if self._table.alive(name) is None:
            (folder / "control.ready").unlink(missing_ok=True)
        argv = python(
            "providers.lab.control_server",
            *("--provider", cloud.provider),
            *("--region", cloud.region),
            *("--zones", ",".join(cloud.zones)),
            *("--root", str(folder / "control")),
            *("--port", str(kept.get("control_port", 0))),
            *("--credentials", str(self._credentials(cloud))),
            *("--dns-zone", DNS_ZONE),
            *(("--volumes", str(kept["volumes"])) if "volumes" in kept else ()),
            *("--ready-file", str(folder / "control.ready")),
        )
        return [self._table.start(name, argv, log=folder / "control.log")]

    def wait_control(self, cloud: LabCloud, *, deadline_ms: float) -> CloudAddress:
        """Wait until the control API answers, and keep its address.

        Raises:
            Unavailable: as `wait`.
        """
        kept = self._kept(cloud)
        if cloud.provider in CONTROLLED:
            ready = self._ready(control_name(cloud.name), self._root / cloud.name / "control.ready", deadline_ms)
            kept["control_port"] = ready["port"]
            self._keep(cloud.name, kept)
        return self._address(kept)

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
        address["zones"] = list(cloud.zones)
        if "control_port" in (before := self._read(cloud.name)):
            address["control_port"] = before["control_port"]
        self._keep(cloud.name, address)
        return self._address(address)

    def _keep(self, cloud: str, address: Mapping[str, Any]) -> None:
        text = json.dumps(address, sort_keys=True).encode()
        replace_file(self._root / cloud / "address.json", text, durable=True, mode=0o600)

    def _ready(self, name: str, ready_file: Path, deadline_ms: float) -> dict[str, Any]:
        record = self._table.find(name)
        if record is None:
            raise Unavailable(f"{name} was not started")
        return wait_ready(record, ready_file, deadline_ms=deadline_ms)

    def clouds(self) -> list[str]:
        """Names of the clouds that were started here at some time."""
        return sorted(p.parent.name for p in self._root.glob("*/address.json"))

    def cloud(self, name: str) -> LabCloud | None:
        """The cloud as it was started here; None when it never was, or by a version that did not note its zones."""
        kept = self._read(name)
        if not kept.get("zones"):
            return None
        return LabCloud(name, str(kept["provider"]), str(kept["region"]), tuple(kept["zones"]))

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
            zones=tuple(kept.get("zones", ())),
            control=self._control(kept, provider, region, credentials),
        )

    def _control(self, kept: Mapping[str, Any], provider: str, region: str, credentials: str) -> AccountAddress | None:
        if "control_port" not in kept:
            return None
        endpoint = f"http://127.0.0.1:{kept['control_port']}"
        account, group = ACCOUNTS.get(provider, ""), GROUPS.get(provider, "")
        return AccountAddress(provider, region, account, group, endpoint, credentials)

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
        try:
            kept = dict(json.loads(path.read_bytes()))
        except FileNotFoundError:
            kept = {}
        except ValueError as error:
            raise Corrupt(f"{path} cannot be read", hint="remove it; new credentials are made then") from error
        fresh = _fresh_credentials(cloud, self._rng)
        if not kept.keys() >= fresh.keys():
            # What is there stays: somebody may hold it.
            replace_file(path, json.dumps({**fresh, **kept}, sort_keys=True).encode(), durable=True, mode=0o600)
        return path


def _fresh_credentials(cloud: LabCloud, rng: Rng) -> dict[str, Any]:
    key, secret = rng.token(), rng.token() + rng.token()
    # Lets drills set faults; clients pass it over.
    admin = {"admin_token": rng.token()}
    match cloud.provider:
        case "azure":
            # Account names are 3 to 24 lower-case letters and digits; account keys are base64.
            account_key = base64.b64encode(bytes.fromhex(secret)).decode()
            signs_in = {"tenant": "lab-tenant", "client_id": f"lab-{key[16:]}", "client_secret": rng.token()}
            return {"account": f"lab{key[:16]}", "account_key": account_key, **signs_in, **admin}
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


def control_name(cloud: str) -> str:
    """Process name of the server of a cloud's control API."""
    return f"{cloud}.control"


def bucket_name(cloud: str) -> str:
    """The cell's bucket."""
    return f"yunhe-{cloud}"


def express_bucket_name(cloud: str, zone: str) -> str:
    """A directory bucket's name ends in its zone and a fixed suffix (S3 user guide, directory bucket naming rules)."""
    return f"yunhe-{cloud}--{zone}--x-s3"


def _buckets(cloud: LabCloud) -> list[str]:
    express = [express_bucket_name(cloud.name, zone) for zone in cloud.zones] if cloud.provider == "aws" else []
    return [bucket_name(cloud.name), *express]
