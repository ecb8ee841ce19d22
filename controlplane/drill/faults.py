"""What a drill breaks, and how it is undone. Only processes of the state directory are touched, by pid and start
time.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from controlplane.cli.lab import Launch, cells_of
from controlplane.cli.plans import recorded_here
from controlplane.server.files import CONTROL_PLANE, StateDir, agent_name
from providers.base.clock import Clock
from providers.base.errors import NotFound, Unavailable, YunheError
from providers.base.files import replace_file
from providers.lab.processes import ProcessId, ProcessTable, send
from providers.lab.running import RunningCloud

HOLD_MS = 60_000
"""How long an agent keeps from starting a killed broker again at most: a drill that dies itself must not hold it for
ever.
"""
FAULT_MS = 900_000
"""How long a fault of the lab lasts at most: a drill that dies itself must not hold it, either."""
UP_TIMEOUT_S = 60.0


class Breaker(Protocol):
    """What a drill needs of whoever breaks things. What breaks something returns the monotonic milliseconds just before
    the first signal or request: the moment from which recovery is counted. `undo` puts all of it right.
    """

    def kill_broker(self, cloud: str, broker: dict[str, Any]) -> float: ...

    def kill_zone(self, cloud: dict[str, Any], zone: str) -> float: ...

    def kill_control_plane(self) -> float: ...

    def freeze_broker(self, cloud: str, broker: dict[str, Any]) -> float: ...

    def thaw(self) -> None: ...

    def strike(self, cloud: str, faults: Sequence[dict[str, Any]]) -> float: ...

    def restart_broker(self, broker: dict[str, Any]) -> None: ...

    def undo(self) -> None: ...

    def identities(self, clouds: Sequence[dict[str, Any]]) -> dict[str, ProcessId]: ...

    def alive(self, process: ProcessId) -> bool: ...


class Faults:
    """Breaks things of one state directory and puts them right again.

    `relaunch` starts whatever of the lab does not run; what `yunhe up` does, unless a test says otherwise.
    """

    def __init__(self, state_dir: StateDir, clock: Clock, *, relaunch: Callable[[], None] | None = None) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._table = ProcessTable(state_dir.root)
        self._relaunch = relaunch or self._launch
        self._struck: list[tuple[str, list[str]]] = []
        self._frozen: list[ProcessId] = []
        self._holds: list[Path] = []
        self._touched: set[str] = set()
        """Clouds whose agents may have to be started again; of the others, nothing is touched."""

    def kill_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        """SIGKILL, as the loss of its machine: its agent does not start it again before `undo`.

        Raises:
            NotFound: its pid is no process of this state directory.
        """
        victim = self._ours([broker])[0]
        self._hold(cloud, broker)
        at_ms = self._clock.monotonic_ms()
        _kill(victim, f"broker {broker['name']}")
        return at_ms

    def stop_broker(self, cloud: str, broker: dict[str, Any]) -> tuple[ProcessId, float]:
        """SIGTERM, as an orderly shutdown; its agent does not start it again before `undo`. The process, and the
        monotonic milliseconds just before the signal.

        Raises:
            NotFound: its pid is no process of this state directory.
        """
        victim = self._ours([broker])[0]
        self._hold(cloud, broker)
        at_ms = self._clock.monotonic_ms()
        send(victim, signal.SIGTERM)
        return victim, at_ms

    def kill_zone(self, cloud: dict[str, Any], zone: str) -> float:
        """The zone's agent and brokers die at once, its volumes and its S3 Express bucket are gone.

        Raises:
            NotFound: the zone has no agent, or a broker's pid is no process of this state directory.
        """
        name = cloud["name"]
        doomed = self._ours([b for b in cloud["brokers"] if b["zone"] == zone and b["pid"]])
        agent = self._table.alive(agent_name(name, zone))
        if agent is None:
            raise NotFound(f"no agent of {name} runs in zone {zone}")
        self._touched.add(name)
        at_ms = self._clock.monotonic_ms()
        # The agent first: it would start the brokers again.
        _kill(agent.id, f"the agent of zone {zone}")
        for one in doomed:
            send(one, signal.SIGKILL)  # one that ended by itself meanwhile is as gone as it can be
        if self._launched().lab.address(name) is not None:
            self.strike(name, [{"kind": "zone-loss", "zone": zone}])
        return at_ms

    def kill_control_plane(self) -> float:
        """SIGKILL.

        Raises:
            NotFound: it does not run.
        """
        record = self._table.alive(CONTROL_PLANE)
        if record is None:
            raise NotFound("the control plane does not run", hint="start it with `yunhe up`")
        at_ms = self._clock.monotonic_ms()
        _kill(record.id, "the control plane")
        return at_ms

    def freeze_broker(self, cloud: str, broker: dict[str, Any]) -> float:
        """SIGSTOP: it keeps its connections and answers nobody, until `thaw` or `undo`.

        Raises:
            NotFound: its pid is no process of this state directory, or it has ended.
        """
        victim = self._ours([broker])[0]
        self._frozen.append(victim)
        at_ms = self._clock.monotonic_ms()
        if not send(victim, signal.SIGSTOP):
            raise NotFound(f"broker {broker['name']} ended before it could be frozen", hint="try again")
        return at_ms

    def thaw(self) -> None:
        """SIGCONT to whatever is frozen."""
        while self._frozen:
            send(self._frozen[-1], signal.SIGCONT)  # one that was killed meanwhile needs no thawing
            self._frozen.pop()

    def strike(self, cloud: str, faults: Sequence[dict[str, Any]]) -> float:
        """Set faults of the emulated cloud, as `providers.lab.fault` knows them, all or none, until `undo`.

        Raises:
            Invalid: a fault that makes no sense. Unavailable: the cloud is not emulated here, or does not answer.
        """
        running = self._running(cloud)
        taken = {str(fault["id"]).partition(".")[0] for fault in running.faults()}
        name = next(name for n in range(1, 1_000) if (name := f"drill-{n}") not in taken)
        made = [{**fault, "id": f"{name}.{i}", "for_ms": FAULT_MS} for i, fault in enumerate(faults, 1)]
        self._struck.append((cloud, [str(fault["id"]) for fault in made]))
        at_ms = self._clock.monotonic_ms()
        running.add(made)
        return at_ms

    def restart_broker(self, broker: dict[str, Any]) -> None:
        """SIGTERM: it hands over what it has and ends, and its agent starts its next life.

        Raises:
            NotFound: its pid is no process of this state directory.
        """
        send(self._ours([broker])[0], signal.SIGTERM)

    def undo(self) -> None:
        """Thaw, lift every hold, clear every fault, start what was killed. Everything is tried; safe to call twice.

        Raises:
            Unavailable: something is still broken, and what.
        """
        left: list[str] = []

        def attempt(what: str, step: Callable[[], None]) -> bool:
            try:
                step()
            except (YunheError, OSError) as error:
                left.append(f"{what}: {error}")
                return False
            return True

        self.thaw()
        for hold in list(self._holds):
            if attempt(f"hold {hold}", partial(hold.unlink, missing_ok=True)):
                self._holds.remove(hold)
        for struck in list(self._struck):
            if attempt(f"faults of {struck[0]}", partial(self._clear, *struck)):
                self._struck.remove(struck)
        attempt("starting again what was killed", self._relaunch)
        if left:
            raise Unavailable(f"not everything could be undone: {'; '.join(left)}", hint="yunhe up SPEC repairs it")

    def identities(self, clouds: Sequence[dict[str, Any]]) -> dict[str, ProcessId]:
        """Every broker and agent process, to see later whether one was restarted.

        Raises:
            NotFound: a pid is no process of this state directory.
        """
        ours = {p.pid: p for p in self._table.everything()}
        named = {
            f"{cloud['name']} {kind.removesuffix('s')} {one.get('name', one['zone'])}": one["pid"]
            for cloud in clouds
            for kind in ("brokers", "agents")
            for one in cloud[kind]
            if one["pid"]
        }
        for name, pid in named.items():
            if pid not in ours:
                raise NotFound(f"{name} is said to be pid {pid}, which is no process of this lab")
        return {name: ours[pid] for name, pid in named.items()}

    def alive(self, process: ProcessId) -> bool:
        """Whether exactly this process still runs."""
        return process in self._table.everything()

    def _ours(self, brokers: Sequence[dict[str, Any]]) -> list[ProcessId]:
        """The brokers' processes. A pid in a status document may be old, and by now somebody else's."""
        ours = {p.pid: p for p in self._table.everything()}
        for broker in brokers:
            if broker["pid"] not in ours:
                raise NotFound(
                    f"broker {broker['name']} is said to be pid {broker['pid']}, which is no process of this lab",
                    hint="nothing was broken; try again when `yunhe status` shows it Ready",
                )
        return [ours[b["pid"]] for b in brokers]

    def _hold(self, cloud: str, broker: dict[str, Any]) -> None:
        hold = self._state_dir.agent(cloud, broker["zone"]) / "holds" / broker["name"]
        hold.parent.mkdir(exist_ok=True)
        # Replaced, not written in place: half a hold would not hold.
        self._holds.append(hold)
        replace_file(hold, json.dumps({"until_wall_ms": self._clock.wall_ms() + HOLD_MS}).encode())

    def _launch(self) -> None:
        cells = cells_of(recorded_here(self._state_dir).as_specs())
        # Other clouds may be under a drill of their own.
        self._launched().all([cell for cell in cells if cell.name in self._touched], timeout_s=UP_TIMEOUT_S)

    def _launched(self) -> Launch:
        return Launch(self._state_dir)

    def _running(self, cloud: str) -> RunningCloud:
        address = self._launched().lab.address(cloud)
        if address is None:
            raise Unavailable(f"{cloud} is no emulated cloud of this lab", hint="its faults are the lab's")
        return RunningCloud(address, self._table, self._clock)

    def _clear(self, cloud: str, ids: Sequence[str]) -> None:
        running = self._running(cloud)
        left = {str(fault["id"]) for fault in running.faults()} & set(ids)
        if left:
            running.clear(sorted(left))


def _kill(process: ProcessId, what: str) -> None:
    if not send(process, signal.SIGKILL):
        raise NotFound(f"{what} ended before it could be killed", hint="nothing was broken; try again")
