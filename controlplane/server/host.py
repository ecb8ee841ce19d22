"""What this host knows: where the lab's clouds are, and which of our processes run."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.api.specs import Specs
from controlplane.apply.render import Places
from controlplane.server.files import StateDir, agent_name
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid, Unavailable
from providers.base.registry import StoreAddress
from providers.lab.launcher import Lab
from providers.lab.processes import ProcessTable, start_time


class LocalPlaces:
    """`Locator`: an emulated cloud is where the launcher put it, a real one where its spec says."""

    def __init__(self, state_dir: StateDir, specs: Callable[[], Specs], *, clock: Clock, rng: Rng) -> None:
        self._lab = Lab(state_dir.root, clock=clock, rng=rng)
        self._specs = specs

    def places(self, cloud: str) -> Places:
        """Raises Unavailable when the cloud was never started here, Invalid when its address is unusable."""
        resource = self._specs().clouds.get(cloud)
        if resource is not None and resource.spec.real is not None:
            real, spec = resource.spec.real, resource.spec
            return Places(StoreAddress(spec.provider, real.bucket, spec.region, real.endpoint, real.credentials_file))
        address = self._lab.address(cloud)
        if address is None:
            raise Unavailable(f"cloud {cloud} is not running in the lab", hint="start it: yunhe up SPEC")
        if resource is not None and resource.spec.provider != address.provider:
            raise Invalid(f"cloud {cloud} runs as {address.provider} in the lab, not as {resource.spec.provider}")
        return Places(address.bucket, address.volumes, dict(address.express))


class LocalHost:
    """`Host` by the process table of the state directory."""

    def __init__(self, state_dir: StateDir) -> None:
        self._table = ProcessTable(state_dir.root)

    def agent_pid(self, cloud: str, zone: str) -> int | None:
        record = self._table.alive(agent_name(cloud, zone))
        return record.pid if record is not None else None

    def alive(self, pid: int) -> bool:
        return start_time(pid) is not None
