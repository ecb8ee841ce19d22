"""What runs under a state directory: the emulated clouds, the agents, the control plane. Started by command line only;
nothing of the data plane is imported.

up ─► each cloud's servers ──ready──► its agents ─► (assignments arrive) ─► brokers and databases, started by them
  └─► control plane
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlplane.server.files import CONTROL_PLANE, StateDir, agent_name
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Unavailable
from providers.base.files import replace_file
from providers.base.registry import StoreAddress
from providers.lab.launcher import Lab, LabCloud
from providers.lab.processes import ProcessId, ProcessRecord, ProcessTable, python, stop, wait_ready

if TYPE_CHECKING:
    from controlplane.api.specs import Specs


@dataclass(frozen=True, slots=True)
class CellPlan:
    """What a Cloud needs running on this machine. `lab` is None when the cloud is a real one."""

    name: str
    lab: LabCloud | None
    bucket: StoreAddress | None
    """Of a real cloud; an emulated one's is known once its server is ready."""
    zones: tuple[str, ...]
    """Where agents run: the zones that have brokers or databases."""


def cells_of(specs: Specs) -> list[CellPlan]:
    """The cells that a spec asks for."""
    from controlplane.plan.databases import resolve_databases, zones_by_cloud
    from controlplane.plan.resolve import resolve

    zones: dict[str, dict[str, None]] = {name: {} for name in specs.clouds}
    for name, cluster in resolve(specs).items():
        for broker in cluster.brokers:
            zones[specs.clusters[name].spec.cloud][broker.zone] = None
    for name, more in zones_by_cloud(resolve_databases(specs)).items():
        zones[name].update(dict.fromkeys(more))
    cells = []
    for name, cloud in specs.clouds.items():
        spec = cloud.spec
        lab = LabCloud(name, spec.provider, spec.region, spec.zones) if spec.target == "lab" else None
        bucket = None
        if spec.real is not None:
            bucket = StoreAddress(
                spec.provider, spec.real.bucket, spec.region, spec.real.endpoint, spec.real.credentials_file
            )
        cells.append(CellPlan(name, lab, bucket, tuple(zones[name])))
    return cells


class Launch:
    """Starts what is not running yet. What runs is left alone, so that a second `up` does nothing."""

    def __init__(self, state_dir: StateDir) -> None:
        self._state_dir = state_dir
        self._clock = SystemClock()
        self.table = ProcessTable(state_dir.root)
        self.lab = Lab(state_dir.root, clock=self._clock, rng=SystemRng())
        self.started: list[ProcessRecord] = []
        """What this launch has started."""

    def all(self, cells: Sequence[CellPlan], *, timeout_s: float, control_plane: bool = True) -> None:
        """Start everything, as much at once as can be, and wait until the servers answer. `control_plane`: False where
        another looks after the cells, such as the operator.

        Raises:
            Unavailable: something did not come up; its own sentence says why.
        """
        deadline_ms = self._clock.monotonic_ms() + timeout_s * 1000
        before = {record.name for record in self.table.records() if self.table.alive(record.name)}
        for cell in cells:
            if cell.lab is not None:
                self._note(before, self.lab.spawn(cell.lab))
        # Its imports take the longest: it warms up while the clouds start.
        if control_plane:
            self._note(before, [self._spawn_control_plane()])

        def finish(cell: CellPlan) -> list[ProcessRecord]:
            bucket = cell.bucket
            if cell.lab is not None:
                bucket = self.lab.wait(cell.lab, deadline_ms=deadline_ms).bucket
            assert bucket is not None  # a real cloud has one in its spec
            return [self._spawn_agent(cell.name, zone, bucket) for zone in cell.zones]

        with ThreadPoolExecutor(max_workers=max(1, len(cells)), thread_name_prefix="launch") as pool:
            for records in pool.map(finish, cells):
                self._note(before, records)
        if control_plane:
            record = self.table.find(CONTROL_PLANE)
            if record is None:
                raise Unavailable("the control plane was not started")
            wait_ready(record, self._state_dir.ready, deadline_ms=deadline_ms)

    def _note(self, before: set[str], records: Sequence[ProcessRecord]) -> None:
        self.started += [record for record in records if record.name not in before]

    def _spawn_control_plane(self) -> ProcessRecord:
        if self.table.alive(CONTROL_PLANE) is None:
            self._state_dir.ready.unlink(missing_ok=True)
        argv = python("controlplane.server", "--state-dir", str(self._state_dir.root))
        return self.table.start(CONTROL_PLANE, argv, log=self._state_dir.log)

    def _spawn_agent(self, cloud: str, zone: str, bucket: StoreAddress) -> ProcessRecord:
        folder = self._state_dir.agent(cloud, zone)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = folder / "config.json"
        text = json.dumps(agent_config(cloud, zone, bucket), indent=2, sort_keys=True)
        if not config.exists() or config.read_text() != text:
            replace_file(config, text.encode())
        argv = python("dataplane.agent", "--state-dir", str(folder), "--config", str(config))
        return self.table.start(agent_name(cloud, zone), argv, log=folder / "log")


def agent_config(cloud: str, zone: str, bucket: StoreAddress) -> dict[str, Any]:
    """An agent's configuration: who it is, and which bucket its mailbox is in."""
    from dataplane.contract.codec import to_plain

    return {"cell": cloud, "agent": f"{cloud}-{zone}", "zone": zone, "bucket": to_plain(bucket)}


def stop_everything(state_dir: StateDir) -> tuple[int, list[ProcessId]]:
    """Stop all processes of the state directory, brokers and agents before the clouds that they write to. Returns how
    many ended, and which did not.

    The order matters for a clean end: a broker's last upload needs its bucket.
    """
    table = ProcessTable(state_dir.root)
    clouds = {r.id for r in table.records() if r.name.endswith((".objects", ".volumes", ".control"))}
    everything = table.everything()
    stuck = stop(p for p in everything if p not in clouds)
    # An agent that was stopped in the middle of a start may have left a broker behind: look again, and again after the
    # clouds.
    stuck += stop(p for p in table.everything() if p not in clouds and p not in stuck)
    stuck += stop(p for p in table.everything() if p not in stuck)
    for record in table.records():
        if record.id not in stuck:
            table.forget(record.name)
    return len(everything) - len(stuck), stuck
