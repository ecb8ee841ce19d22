"""moto's EC2 and Route 53 as a judge of the AWS adapters: an emulator that nobody here wrote, as a process of its own.

It knows no faults, no quotas and no volume daemon, so those clauses skip. Where moto itself is wrong, the clause is an
expected failure; AWS's own documents say otherwise, and the lab follows them.
"""

from __future__ import annotations

import atexit
import importlib.util
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.control import DOMAIN, KINDS, MACHINES_PER_ZONE, START_S_MAX, ControlServer

_AWS = next(kind for kind in KINDS if kind.provider == "aws")

KIND = replace(
    _AWS,
    judge="moto",
    gaps={
        "test_two_creates_at_once_make_one_volume": "CreateVolume ignores ClientToken",
        "test_second_attach_shares_and_the_limit_is_a_conflict": "one attachment a volume, io2 with multi-attach too",
        "test_wrong_credentials_are_invalid_with_a_hint": "any secret is accepted",
        "test_refused_credentials_are_invalid_with_a_hint": "any secret is accepted",
        "test_name_always_has_records_while_they_are_replaced": "CREATE of a set that once was there is refused, even "
        "after a DELETE in its batch (models.py, rr_changes)",
        "test_of_many_that_replace_the_same_set_one_wins": "DELETE looks into the journal, not at what is there now",
    },
)


_running: list[MotoServer] = []
"""One process for all tests: it takes seconds to start. Emptied before each test."""


class MotoServer(ControlServer):
    """The face of the lab's server, as far as moto goes."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(KIND, tmp_path)
        self._log = tmp_path / "moto.log"
        self._log_from = 0
        # The machines' own disks are none of the suite's.
        self._own: set[str] = set()

    def start(self) -> None:
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S_MAX
        while not (found := _port(self._log.read_text())):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "moto did not get ready"
            time.sleep(0.05)
        self.port = found

    def reset(self) -> None:
        """As if it had just been started."""
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset", data=b"", method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10):
            pass
        self._seed()
        self._log_from = self._log.stat().st_size

    def kill(self) -> None:
        pytest.skip("moto keeps nothing when it is killed")

    def close(self) -> None:
        """It goes on, for the next test; `_end` ends it."""

    def _seed(self) -> None:
        """The same machines as a new lab's, and the zone."""
        ec2, route53 = self._client("ec2"), self._client("route53")
        self._own = set()
        for zone in KIND.zones:
            self._run(ec2, zone, MACHINES_PER_ZONE)
        route53.create_hosted_zone(Name=DOMAIN, CallerReference="test")

    def _run(self, ec2: Any, zone: str, count: int) -> None:
        names = {row["ZoneId"]: row["ZoneName"] for row in ec2.describe_availability_zones()["AvailabilityZones"]}
        where = {"AvailabilityZone": names[zone]}
        made = ec2.run_instances(
            ImageId="ami-12c6146b", MinCount=count, MaxCount=count, InstanceType="m7g.xlarge", Placement=where
        )
        self._own |= {
            mapping["Ebs"]["VolumeId"] for row in made["Instances"] for mapping in row.get("BlockDeviceMappings", ())
        }

    def _client(self, service: str) -> Any:
        import botocore.session
        from botocore.config import Config

        return botocore.session.get_session().create_client(
            service,
            region_name=KIND.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=KIND.credentials["access_key"],
            aws_secret_access_key=KIND.credentials["secret_key"],
            config=Config(proxies={}),
        )

    def disks(self) -> list[dict[str, Any]]:
        volumes = self._client("ec2").describe_volumes()["Volumes"]
        return [
            {
                "spec": {"id": volume["VolumeId"], "name": _name(volume)},
                "links": [{"instance": a["InstanceId"]} for a in volume["Attachments"]],
            }
            for volume in volumes
            if volume["VolumeId"] not in self._own
        ]

    def requests(self) -> list[tuple[str, str, int]]:
        lines = self._log.read_bytes()[self._log_from :].decode().splitlines()
        return [("POST", line, 200) for line in lines if "HTTP/1.1" in line]

    def set_faults(self, *rules: dict[str, Any], seed: int = 0) -> None:
        if rules:
            pytest.skip("moto has no fault rules")

    def admin(self, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if what != "instances":
            pytest.skip(f"moto has no {what} to set")
        ec2 = self._client("ec2")
        for row in (body or {}).get("add", ()):
            self._run(ec2, row["zone"], 1)
        for instance in (body or {}).get("stop", ()):
            ec2.stop_instances(InstanceIds=[instance])
        for instance in (body or {}).get("remove", ()):
            ec2.terminate_instances(InstanceIds=[instance])
        rows = [row for found in ec2.describe_instances()["Reservations"] for row in found["Instances"]]
        return {"instances": [{"id": row["InstanceId"], "name": row["InstanceId"]} for row in rows]}


def start(tmp_path: Path) -> MotoServer:
    """A running moto with the suite's machines and zone, and nothing else."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto is not installed")
    if not _running:
        server = MotoServer(tmp_path)
        server.start()
        _running.append(server)
        atexit.register(_end)
    _running[0].reset()
    return _running[0]


def _end() -> None:
    process = _running[0].process
    assert process is not None
    process.kill()
    process.wait()


def _name(volume: dict[str, Any]) -> str:
    return next((tag["Value"] for tag in volume.get("Tags", ()) if tag["Key"] == "Name"), "")


def _port(log: str) -> int:
    for line in log.splitlines():
        if "Running on http://127.0.0.1:" in line:
            return int(line.rpartition(":")[2].split()[0].strip("/"))
    return 0
