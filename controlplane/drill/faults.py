"""What a drill breaks, and how it is undone. Only processes of the state directory are touched, by pid and start
time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import Sequence
from typing import Any

from controlplane.cli.lab import Launch, cells_of
from controlplane.cli.plans import recorded_here
from controlplane.server.files import CONTROL_PLANE, StateDir, agent_name
from providers.base.clock import Clock, SystemClock
from providers.base.errors import NotFound
from providers.base.registry import open_volumes
from providers.lab.processes import ProcessId, ProcessTable, send, start_time

HOLD_MS = 60_000
"""How long an agent keeps from starting a killed broker again at most: a drill that dies itself must not hold it for
ever.
"""
UP_TIMEOUT_S = 60.0


def process(pid: int) -> ProcessId:
    """The process that has this pid now.

    Raises:
        NotFound: nobody has.
    """
    started = start_time(pid)
    if started is None:
        raise NotFound(f"no process {pid} runs")
    return ProcessId(pid, started)


class Faults:
    """Breaks things of one state directory and puts them right again."""

    def __init__(self, state_dir: StateDir, clock: Clock) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._table = ProcessTable(state_dir.root)
        self._zones_down: list[tuple[str, str]] = []
        self._holds: list[tuple[str, str, str]] = []

    def kill_broker(self, cloud: str, broker: dict[str, Any]) -> None:
        """SIGKILL, as the loss of its machine: its agent does not start it again before `undo`."""
        self._hold(cloud, broker)
        send(process(broker["pid"]), signal.SIGKILL)

    def kill_zone(self, cloud: dict[str, Any], zone: str) -> None:
        """The zone's agent and brokers die at once, its volumes and its S3 Express bucket are gone."""
        name = cloud["name"]
        brokers = [b for b in cloud["brokers"] if b["zone"] == zone and b["pid"]]
        doomed = [process(b["pid"]) for b in brokers]
        agent = self._table.alive(agent_name(name, zone))
        self._zones_down.append((name, zone))
        # The agent first: it would start the brokers again.
        for one in ([agent.id] if agent is not None else []) + doomed:
            send(one, signal.SIGKILL)
        self._set_zone(name, zone, down=True)

    def kill_control_plane(self) -> None:
        """SIGKILL.

        Raises:
            NotFound: it does not run.
        """
        record = self._table.alive(CONTROL_PLANE)
        if record is None:
            raise NotFound("the control plane does not run", hint="start it with `yunhe up`")
        send(record.id, signal.SIGKILL)

    def undo(self) -> None:
        """Lift every hold, bring zones back, start what was killed. Safe to call twice."""
        for cloud, zone, broker in self._holds:
            (self._state_dir.agent(cloud, zone) / "holds" / broker).unlink(missing_ok=True)
        for cloud, zone in self._zones_down:
            self._set_zone(cloud, zone, down=False)
        self._holds, self._zones_down = [], []
        Launch(self._state_dir).all(cells_of(recorded_here(self._state_dir).as_specs()), timeout_s=UP_TIMEOUT_S)

    def identities(self, clouds: Sequence[dict[str, Any]]) -> dict[str, ProcessId]:
        """Every broker and agent process, to see later whether one was restarted."""
        found = {}
        for cloud in clouds:
            for kind in ("brokers", "agents"):
                for one in cloud[kind]:
                    if one["pid"]:
                        found[f"{cloud['name']} {kind} {one.get('name', one['zone'])}"] = process(one["pid"])
        return found

    def _hold(self, cloud: str, broker: dict[str, Any]) -> None:
        holds = self._state_dir.agent(cloud, broker["zone"]) / "holds"
        holds.mkdir(exist_ok=True)
        (holds / broker["name"]).write_text(json.dumps({"until_wall_ms": self._clock.wall_ms() + HOLD_MS}))
        self._holds.append((cloud, broker["zone"], broker["name"]))

    def _set_zone(self, cloud: str, zone: str, *, down: bool) -> None:
        address = Launch(self._state_dir).lab.address(cloud)
        if address is None:
            return
        if address.volumes is not None:
            volumes_address = address.volumes

            async def set_fault() -> None:
                volumes: Any = open_volumes(volumes_address, clock=SystemClock())
                try:
                    await volumes.set_fault("zone_down", zone, int(down))
                finally:
                    await volumes.close()

            asyncio.run(set_fault())
        if zone in address.express:
            rules = [{"contains": address.express[zone].bucket, "unavailable": True}] if down else []
            self._set_object_faults(address.bucket.endpoint or "", address.bucket.credentials_file or "", rules)

    def _set_object_faults(self, endpoint: str, credentials_file: str, rules: list[dict[str, Any]]) -> None:
        with open(credentials_file, encoding="utf-8") as file:  # noqa: PTH123 -- a path as the address carries it
            token = json.load(file)["admin_token"]
        request = urllib.request.Request(
            f"{endpoint}/-/faults",
            data=json.dumps({"rules": rules}).encode(),
            headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=5):
            pass
