"""The steps of a switch of WALs, and what is removed at its end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controlplane.api.load import load_texts
from controlplane.apply.acts import retire_volumes
from controlplane.apply.steps import steps_for
from controlplane.plan.model import Recorded
from controlplane.plan.plan import Plan, make_plan
from controlplane.plan.resolve import resolve
from dataplane.ledger.state import Broker, BrokerStatus, CellState, WalState
from providers.base.clock import LoopClock, SeededRng
from providers.base.errors import Unavailable
from providers.memory.faults import Process, World
from providers.memory.volumes import MemoryBlockVolumes, MemoryCloud
from tests.sim.virtualtime import run

SPEC = """
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {{name: g}}
spec: {{provider: gcp, region: us-central1, zones: [us-central1-a, us-central1-b]}}
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {{name: main}}
spec: {{cloud: g, brokers: {brokers}, wal: {{mode: {mode}}}}}
"""


def plan(mode: str, recorded: Recorded, brokers: int = 2) -> Plan:
    return make_plan(load_texts([("s", SPEC.format(mode=mode, brokers=brokers))]), recorded)


def steps(before: Plan | None, after: Plan) -> list[str]:
    earlier = Recorded() if before is None else before.recorded_after()
    present = earlier.as_specs()
    made = steps_for(after.desired, after.resolved, present, resolve(present, settled=earlier.settled()))
    return [step.id for step in made if step.what != "bucket"]


def test_a_switch_goes_broker_by_broker_and_ends_with_the_removal_of_what_nobody_needs() -> None:
    first = plan("regional-block", Recorded())
    assert steps(None, first) == ["volumes/main", "assign/main", "brokers/main"]
    there = plan("object", first.recorded_after())
    assert steps(first, there) == [
        "assign/main",
        "switch/main/b-1",
        "switch/main/b-2",
        "brokers/main",
        "retire-volumes/main",
    ]
    assert steps(there, plan("object", there.recorded_after())) == ["assign/main", "brokers/main"]
    back = plan("regional-block", there.recorded_after(), brokers=3)
    assert steps(there, back) == [
        "volumes/main",
        "assign/main",
        "switch/main/b-1",
        "switch/main/b-2",
        "brokers/main",
    ], "volumes are there before a broker is told of them; a new broker has nothing to switch"


class FakeCell:
    """A cell's ledger and volumes, as far as retiring volumes looks at them."""

    def __init__(self, state: CellState, volumes: MemoryBlockVolumes) -> None:
        self.state = state
        self._volumes = volumes

    async def refresh(self, agents: Sequence[str]) -> None:
        pass

    async def volumes(self) -> MemoryBlockVolumes:
        return self._volumes


def test_a_volume_is_removed_only_when_no_life_that_wrote_to_it_may_have_to_be_recovered() -> None:
    async def main() -> None:
        volumes = MemoryBlockVolumes(
            Process(World(LoopClock(), SeededRng(1)), "cp"), MemoryCloud(World(LoopClock(), SeededRng(1)))
        )
        for name in (
            "main-b-1-wal",
            "main-b-2-wal",
            "main-b-3-wal",
            "main-b-1-b-1-wal",
            "other-b-1-wal",
            "main-b-x-wal",
        ):
            await volumes.create(name, size_bytes=1 << 20, zones=["a", "b"], share_max=2)
            await volumes.attach(name, "a")
        on_volume = WalState("regional-block", ["volume"], volume="main-b-1-wal")
        broker = Broker(1, 4, "b-1", "a", "h", 1, 2, on_volume)
        cell = FakeCell(CellState(brokers={1: broker}), volumes)
        for status in (BrokerStatus.LIVE, BrokerStatus.FENCED):
            broker.status = status
            with pytest.raises(Unavailable, match="main-b-1-wal may still be needed"):
                await retire_volumes(cell, "main", {"main-b-3-wal"})  # type: ignore[arg-type]
        assert len(await volumes.describe()) == 6
        broker.status = BrokerStatus.GONE
        said = await retire_volumes(cell, "main", {"main-b-3-wal"})  # type: ignore[arg-type]
        assert said == "removed 2 volumes"
        left = {volume.id for volume in await volumes.describe()}
        assert left == {"main-b-3-wal", "main-b-1-b-1-wal", "other-b-1-wal", "main-b-x-wal"}
        assert await retire_volumes(cell, "main", {"main-b-3-wal"}) == "no volume is left over"  # type: ignore[arg-type]

    run(main())
