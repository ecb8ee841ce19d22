"""Emulated clouds as a tool: started, made to fail, metered and stopped, from the command line or from a test.

    with lab("aws=aws:us-east-1:use1-az4,use1-az5") as clouds:
        os.environ.update(clouds["aws"].environment)
        ...                                     # any SDK
        clouds["aws"].fault("error", service="objects", status=503, rate=0.2, for_s=30)

`lab` takes a state directory of its own and removes it; `RunningLab` works on one that stays.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from providers.base.capabilities import capabilities_of
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError
from providers.base.registry import PROVIDERS
from providers.lab import environment
from providers.lab.admin import Admin, HttpAdmin, VolumeAdmin
from providers.lab.bill import Bill, bill
from providers.lab.fault import SERVICES_OF, Fault, services_of
from providers.lab.launcher import CloudAddress, Lab, LabCloud, control_name, objects_name, volumes_name
from providers.lab.meter import merged
from providers.lab.outages import OUTAGES, outage_faults
from providers.lab.processes import ProcessRecord, ProcessTable, stop

START_S_MAX = 60.0
CLOUDS_MAX = 16
SERVED: Mapping[str, frozenset[str]] = {
    "objects": frozenset({"objects", "express", "sessions"}),
    "volumes": frozenset({"volumes", "compute"}),
    "control": frozenset({"compute", "dns", "identity"}),
}
"""Services by process. Where no control server runs, the volume daemon is all there is of the compute API."""

DEFAULT_CLOUDS = (
    LabCloud("aliyun-hz", "aliyun", "cn-hangzhou", ("cn-hangzhou-h", "cn-hangzhou-i")),
    LabCloud("azure-eus", "azure", "eastus", ("1", "2")),
    LabCloud("gcp-usc1", "gcp", "us-central1", ("us-central1-a", "us-central1-b")),
    LabCloud("aws-use1", "aws", "us-east-1", ("use1-az4", "use1-az5")),
    LabCloud("plant-7", "private", "site", ("site",)),
)
"""One of each provider, named and zoned as in the examples."""
_CLOUD_HINT = "write NAME=provider:region:zone,zone, for example aws-use1=aws:us-east-1:use1-az4,use1-az5"


def parse_cloud(text: str) -> LabCloud:
    """`NAME=provider:region:zone,zone`.

    Raises:
        Invalid: not of that form, or no such provider, region or zone.
    """
    found = re.fullmatch(r"([a-z][a-z0-9-]{0,39})=([a-z]+):([a-z0-9-]+):([A-Za-z0-9,-]+)", text)
    if found is None:
        raise Invalid(f"{text!r} is not a cloud", hint=_CLOUD_HINT)
    name, provider, region, listed = found.groups()
    zones = tuple(zone for zone in listed.split(",") if zone)
    if provider not in PROVIDERS:
        raise Invalid(f"unknown provider {provider!r}", hint=f"one of: {', '.join(PROVIDERS)}")
    if len(set(zones)) != len(zones):
        raise Invalid(f"cloud {name} names a zone twice", hint=_CLOUD_HINT)
    capabilities_of(provider, region, zones)
    return LabCloud(name, provider, region, zones)


class RunningCloud:
    """One emulated cloud: its address, its faults, its meter."""

    def __init__(self, address: CloudAddress, table: ProcessTable, clock: Clock) -> None:
        self.address = address
        self.name = address.cloud
        self._table = table
        self._clock = clock

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the cloud's SDKs find it."""
        return environment.environment(self.address)

    def processes(self) -> dict[str, ProcessRecord]:
        """Those that run, by what they are: objects, volumes, control."""
        names = {
            "objects": objects_name(self.name),
            "volumes": volumes_name(self.name),
            "control": control_name(self.name),
        }
        found = {what: self._table.alive(name) for what, name in names.items()}
        return {what: record for what, record in found.items() if record is not None}

    # ---- faults

    def fault(self, kind: str, *, for_s: float, **fields: Any) -> str:
        """Set a fault; its id. `kind` and `fields`: see `providers.lab.fault`.

        Raises:
            Invalid: it makes no sense; nothing was changed.
            Unavailable: a process does not answer.
        """
        name = self._fresh_id(kind)
        self.add([{"id": name, "kind": kind, "for_ms": for_s * 1000, **fields}])
        return name

    def outage(self, name: str, *, for_s: float, zones: Sequence[str] = (), seed: int = 0) -> list[str]:
        """Rehearse a named outage; the ids of its faults.

        Raises:
            Invalid, Unavailable: as `fault`.
        """
        made = outage_faults(
            name,
            id=self._fresh_id(name),
            zones=self.address.zones,
            chosen=zones,
            for_ms=for_s * 1000,
            seed=seed,
            now_ms=self._clock.wall_ms(),
        )
        self.add(made)
        return [str(one["id"]) for one in made]

    def add(self, plain: Sequence[Mapping[str, Any]]) -> None:
        """Set faults, in every process that serves what they hit, or in none.

        Raises:
            Invalid, Unavailable: as `fault`.
        """
        now_ms = self._clock.wall_ms()
        faults = [Fault.of(one, now_ms) for one in plain]
        for fault in faults:
            if fault.zone and fault.zone not in self.address.zones:
                zones = ", ".join(self.address.zones)
                raise Invalid(f"{self.name} has no zone {fault.zone}", hint=f"its zones are {zones}")
        done: list[tuple[Admin, list[str]]] = []
        chosen = [(admin, self._for(what, faults)) for what, admin in self.admins().items()]
        if faults and not any(mine for _, mine in chosen):
            service = faults[0].service or "what it hits"
            raise Invalid(f"nothing of {self.name} serves {service}", hint="yunhe lab up starts what does not run")
        try:
            for admin, mine in chosen:
                if mine:
                    admin.call("POST", "/-/faults", {"add": [fault.plain() for fault in mine]})
                    done.append((admin, [fault.id for fault in mine]))
        except YunheError:
            for admin, ids in done:
                with contextlib.suppress(YunheError):  # one that is gone has no faults either
                    admin.call("POST", "/-/faults", {"clear": ids})
            raise

    def _for(self, what: str, faults: Sequence[Fault]) -> list[Fault]:
        served = SERVED[what]
        if what == "volumes" and "control" in self.processes():
            served = served - {"compute"}
        if not self.address.express:
            served = served - {"express", "sessions"}
        hits = [
            services_of(fault.service) if fault.service else SERVICES_OF.get(fault.kind, served) for fault in faults
        ]
        return [fault for fault, services in zip(faults, hits, strict=True) if services & served]

    def clear(self, ids: Sequence[str] | None = None) -> list[str]:
        """Clear faults, those of an outage by its name with its number, or all; the ids of what was cleared.

        Raises:
            NotFound: an id that no fault has; nothing was cleared.
        """
        here = [str(one["id"]) for one in self.faults()]
        wanted = here if ids is None else [h for h in here if any(h == i or h.startswith(f"{i}.") for i in ids)]
        for one in ids or ():
            if not any(h == one or h.startswith(f"{one}.") for h in here):
                raise NotFound(f"{self.name} has no fault {one}", hint=f"it has: {', '.join(here) or 'none'}")
        for admin in self.admins().values():
            mine = {str(one["id"]) for one in admin.call("GET", "/-/faults")["faults"]} & set(wanted)
            if mine:
                admin.call("POST", "/-/faults", {"clear": sorted(mine)})
        return wanted

    def faults(self) -> list[dict[str, Any]]:
        """Faults in force or to come, each once, with the seconds that it has left."""
        found: dict[str, dict[str, Any]] = {}
        for admin in self.admins().values():
            for one in admin.call("GET", "/-/faults")["faults"]:
                before = found.get(one["id"])
                found[one["id"]] = one if before is None else {**one, "matched": one["matched"] + before["matched"]}
        return [found[name] for name in sorted(found)]

    def latency(self) -> str:
        """The latency profile in force."""
        return str(next(iter(self.admins().values())).call("GET", "/-/faults")["latency"])

    def set_latency(self, profile: str) -> None:
        """Raises:
        Invalid: no such profile.
        """
        for admin in self.admins().values():
            admin.call("POST", "/-/latency", {"profile": profile})

    def _fresh_id(self, base: str) -> str:
        taken = {str(one["id"]).partition(".")[0] for one in self.faults()}
        return next(name for n in range(1, 10_000) if (name := f"{base}-{n}") not in taken)

    # ---- meter

    def meter(self, *, since_reset: bool = False) -> dict[str, Any]:
        """What its processes have counted."""
        target = "/-/meter?since=reset" if since_reset else "/-/meter"
        return merged([admin.call("GET", target) for admin in self.admins().values()])

    def reset_meter(self) -> dict[str, Any]:
        """Begin a new run; what the last one counted."""
        return merged([admin.call("POST", "/-/meter", {"reset": True}) for admin in self.admins().values()])

    def bill(self, counted: Mapping[str, Any]) -> Bill:
        """The price of what was counted."""
        address = self.address
        return bill(counted, capabilities_of(address.provider, address.region, address.zones))

    def admins(self) -> dict[str, Admin]:
        """The admin calls of those processes that run.

        Raises:
            Unavailable: none runs.
        """
        token = str(environment.credentials(self.address).get("admin_token"))
        made: dict[str, Admin] = {}
        for what, record in self.processes().items():
            if what == "volumes" and self.address.volumes is not None:
                made[what] = VolumeAdmin(record.name, str(self.address.volumes.endpoint), token)
            elif what == "control" and self.address.control is not None:
                made[what] = HttpAdmin(record.name, _port(self.address.control.endpoint), token)
            elif what == "objects":
                made[what] = HttpAdmin(record.name, _port(self.address.bucket.endpoint), token)
        if not made:
            raise Unavailable(f"cloud {self.name} is not up", hint="start it with yunhe lab up")
        return made


def _port(endpoint: str | None) -> int:
    return int(str(endpoint).rpartition(":")[2])


class RunningLab:
    """The emulated clouds of one state directory."""

    def __init__(self, state_dir: Path, *, clock: Clock | None = None, rng: Rng | None = None) -> None:
        self._clock = clock or SystemClock()
        self.table = ProcessTable(state_dir)
        self.lab = Lab(state_dir, clock=self._clock, rng=rng or SystemRng())

    def up(
        self, clouds: Sequence[LabCloud], *, timeout_s: float = START_S_MAX, control: bool = True
    ) -> list[RunningCloud]:
        """Start what of the clouds does not run, and wait until all of it answers.

        Raises:
            Invalid: too many, or a name that is taken by another cloud.
            Unavailable: a process did not come up; its own sentence says why.
        """
        if len(clouds) > CLOUDS_MAX:
            raise Invalid(f"a lab has at most {CLOUDS_MAX} clouds")
        if len({cloud.name for cloud in clouds}) != len(clouds):
            raise Invalid("two clouds have one name")
        deadline_ms = self._clock.monotonic_ms() + timeout_s * 1000
        for cloud in clouds:
            self.lab.spawn(cloud)
        for cloud in clouds:
            self.lab.wait(cloud, deadline_ms=deadline_ms)
        for cloud in clouds if control else ():
            self.lab.spawn_control(cloud)
        for cloud in clouds if control else ():
            self.lab.wait_control(cloud, deadline_ms=deadline_ms)
        return [self.cloud(cloud.name) for cloud in clouds]

    def cloud(self, name: str) -> RunningCloud:
        """Raises:
        NotFound: it was never started here.
        """
        address = self.lab.address(name)
        if address is None:
            known = ", ".join(self.lab.clouds()) or "none"
            raise NotFound(f"no cloud here is named {name}", hint=f"known: {known}")
        return RunningCloud(address, self.table, self._clock)

    def clouds(self) -> list[RunningCloud]:
        """All that were started here at some time, whether they run or not."""
        return [self.cloud(name) for name in self.lab.clouds()]

    def down(self) -> int:
        """Stop the emulated clouds; how many processes ended. Their data stay.

        Raises:
            Conflict: something else runs here that writes to them.
            Unavailable: a process outlived SIGKILL.
        """
        mine = {
            name
            for cloud in self.lab.clouds()
            for name in (objects_name(cloud), volumes_name(cloud), control_name(cloud))
        }
        records = [record for record in self.table.records() if self.table.alive(record.name)]
        others = [record.name for record in records if record.name not in mine]
        if others:
            raise Conflict(
                f"{others[0]} and what else yunhe up has started works on these clouds",
                hint="stop all of it with yunhe down",
            )
        # The control API first: it asks the volume daemon.
        stuck = stop(r.id for r in records if r.name.endswith(".control"))
        stuck += stop(r.id for r in records if not r.name.endswith(".control"))
        stuck += stop(p for p in self.table.everything() if p not in stuck)
        if stuck:
            raise Unavailable(f"{len(stuck)} processes outlived SIGKILL: {', '.join(str(p.pid) for p in stuck)}")
        for record in self.table.records():
            if record.name in mine:
                self.table.forget(record.name)
        return len(records)


@contextlib.contextmanager
def lab(
    *clouds: str | LabCloud, state_dir: Path | None = None, latency: str = "off", control: bool = True
) -> Iterator[dict[str, RunningCloud]]:
    """Emulated clouds for the length of a `with`, by name; one of each provider when none is named. Their data go with
    them, unless `state_dir` says where to keep them.

    Raises:
        Invalid, Unavailable: as `RunningLab.up`; what was started is stopped.
    """
    wanted = [parse_cloud(one) if isinstance(one, str) else one for one in clouds] or list(DEFAULT_CLOUDS)
    with contextlib.ExitStack() as stack:
        root = state_dir
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yunhe-lab-")))
        root.mkdir(parents=True, exist_ok=True)
        running = RunningLab(root)
        stack.callback(running.down)
        started = running.up(wanted, control=control)
        for cloud in started:
            cloud.set_latency(latency)
        yield {cloud.name: cloud for cloud in started}


__all__ = ["DEFAULT_CLOUDS", "OUTAGES", "RunningCloud", "RunningLab", "lab", "parse_cloud"]
