"""The whole control plane over a cell in memory, under virtual time: apply, converge, crash, restore, shrink."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controlplane.store.base import Operation, StepRecord, StoredPlan
from providers.base.errors import Conflict, Invalid
from providers.memory.faults import CALM, Faults
from tests.controlplane.server.cell_sim import SPEC, Control, Plant, until
from tests.sim.virtualtime import run

ROUGH = Faults(unavailable=0.05, throttled=0.02, lost_response=0.04, delayed=0.02, duplicated=0.02)
KUBERNETES = Path(__file__).parents[3] / "examples" / "kubernetes.yaml"
ONE_BROKER = SPEC.replace("brokers: 2", "brokers: 1")


def test_plan_is_empty_after_apply_and_everything_is_ready(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(1)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        operation = await control.apply()
        assert await control.until_ended(operation) == "Done"
        assert (await control.service.plan([("s", SPEC)], prune=False))["empty"]
        await control.until_ready()
        status = control.service.status()
        [cloud] = status["clouds"]
        assert cloud["wal"]["mode"] == "object" and cloud["bootstrap"] == "127.0.0.1:9001"
        assert [(b["id"], b["zone"], b["state"], b["epoch"]) for b in cloud["brokers"]] == [
            (1, "a", "Ready", 1),
            (2, "b", "Ready", 1),
        ]
        state = await plant.cell_state()
        assert len(state.topics["orders"].streams) == 4
        owners = sorted(state.streams[s].open.node for s in state.topics["orders"].streams)
        assert owners == [1, 1, 2, 2], "partitions are spread over the brokers"
        await control.stop()

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_apply_converges_over_a_bucket_that_fails_and_loses_answers(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        plant = Plant(seed, ROUGH)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.apply()
        await control.until_ready(600)
        assert len((await plant.cell_state()).topics["orders"].streams) == 4
        await control.stop()

    run(main())


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.3, 0.7, 1.5, 3.0])
def test_a_crash_in_the_middle_of_an_apply_is_taken_up_by_the_next_control_plane(tmp_path: Path, moment: float) -> None:
    async def main() -> None:
        plant = Plant(int(moment * 100))
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        operation = await control.apply()
        await asyncio.sleep(moment)
        await control.stop()
        again = Control(plant, tmp_path / "s")
        assert await again.until_ended(operation) == "Done"
        await again.until_ready()
        await again.stop()

    run(main())


def test_a_turn_that_finds_nothing_changed_publishes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(2)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()
        before = dict(plant.bucket.objects)
        await asyncio.sleep(600)
        assert plant.bucket.objects == before, "an idle cell appends nothing"
        await control.stop()

    run(main())


def test_a_restored_store_outgrows_what_it_has_forgotten(tmp_path: Path) -> None:
    """The store's file is replaced by an older one; the agents must still obey it."""

    async def main() -> None:
        plant = Plant(3)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()
        await control.stop()
        backup = (tmp_path / "s").read_bytes()

        control = Control(plant, tmp_path / "s")
        await control.until_ended(await control.apply(SPEC.replace("brokers: 2", "brokers: 4")))
        await control.until_ready()
        await control.stop()
        assert sum(len(names) for names in plant.brokers.values()) == 4

        for leftover in tmp_path.glob("s*"):
            leftover.unlink()
        (tmp_path / "s").write_bytes(backup)
        control = Control(plant, tmp_path / "s")
        await until(lambda: sum(len(names) for names in plant.brokers.values()) == 2, 120)
        for zone in ("a", "b"):
            carried = [g for z, g in plant.generations if z == zone]
            assert carried == sorted(carried)
        await control.stop()

    run(main())


def test_a_removed_clusters_brokers_stop_and_a_removed_topic_is_deleted(tmp_path: Path) -> None:
    only_cloud = SPEC.split("---")[0]
    no_topic = "---".join(SPEC.split("---")[:2])

    async def main() -> None:
        plant = Plant(4)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()

        assert await control.until_ended(await control.apply(no_topic, prune=True)) == "Done"
        assert "orders" not in (await plant.cell_state()).topics

        assert await control.until_ended(await control.apply(only_cloud, prune=True)) == "Done"
        assert plant.brokers == {"a": set(), "b": set()}
        assert control.service.objects("BrokerCluster") == []
        await control.stop()

    run(main())


def test_an_agent_in_a_zone_without_brokers_any_more_runs_none(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(5)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()
        await control.until_ended(await control.apply(ONE_BROKER))
        await until(lambda: plant.brokers == {"a": {"b-1"}, "b": set()}, 60)
        await control.stop()

    run(main())


def test_a_silent_agent_keeps_it_from_ready_and_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(6)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        operation = await control.apply()
        assert await control.until_ended(operation) == "Failed"
        steps = control.service.operation(operation)["steps"]
        failed = next(s for s in steps if s["state"] == "Failed")
        assert "b-2: its agent has not reported it yet" in failed["error"]
        [cloud] = control.service.status()["clouds"]
        assert cloud["state"] == "Progressing" and "b-2" in cloud["sentence"]
        plant.start_agent("b")
        await control.until_ready(120)
        await control.stop()

    run(main())


def test_a_dead_broker_degrades_and_a_bucket_outage_keeps_what_was_known(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(7)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()

        plant.bucket.faults = Faults(unavailable=1.0)
        await asyncio.sleep(60)
        [cloud] = control.service.status()["clouds"]
        assert cloud["state"] == "Unavailable" and len(cloud["brokers"]) == 2 and cloud["bootstrap"]
        plant.bucket.faults = CALM
        await control.until_ready(120)

        plant.agents["b"].cancel()
        await until(lambda: control.service.status()["state"] == "Degraded", 60)
        assert "agent b is down" in control.service.status()["clouds"][0]["sentence"]
        await control.stop()

    run(main())


def test_a_stale_plan_does_not_disturb_the_operation_that_runs(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(8)
        control = Control(plant, tmp_path / "s")
        other = (await control.service.plan([("s", ONE_BROKER)], prune=False))["hash"]
        operation = await control.apply()
        with pytest.raises(Conflict, match="stale"):
            await control.service.apply(other)
        plant.start_agent("a")
        plant.start_agent("b")
        assert await control.until_ended(operation) == "Done"
        await control.stop()

    run(main())


def test_what_no_agent_can_run_is_refused_where_no_operator_is(tmp_path: Path) -> None:
    async def main() -> None:
        control = Control(Plant(1), tmp_path / "s")
        with pytest.raises(Invalid, match="BrokerCluster orders, Database fleet: its engine runs on Kubernetes"):
            await control.apply(KUBERNETES.read_text())
        assert control.store.recorded() is None
        await control.stop()

    run(main())


def test_a_topic_never_shrinks(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(9)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ended(await control.apply(SPEC.replace("partitions: 4", "partitions: 6")))
        assert len((await plant.cell_state()).topics["orders"].streams) == 6
        with pytest.raises(Invalid):
            await control.service.plan([("s", SPEC)], prune=False)
        await control.stop()

    run(main())


def test_nothing_is_ready_after_a_restart_before_it_was_looked_at(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(10)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.until_ended(await control.apply())
        await control.until_ready()
        await control.stop()
        for agent in plant.agents.values():
            agent.cancel()
        control = Control(plant, tmp_path / "s")
        for _ in range(200):
            await asyncio.sleep(0.05)
            assert control.service.status()["state"] != "Ready"
        await control.stop()

    run(main())


def test_removals_that_a_superseded_operation_owes_are_the_next_ones(tmp_path: Path) -> None:
    """They follow from what was applied before it, which no later plan knows."""

    async def main() -> None:
        plant = Plant(1)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        assert await control.until_ended(await control.apply()) == "Done"
        recorded = {**(control.store.recorded() or {}), "revision": control.store.revision() + 1}
        ids = ("retire-volumes/main", "retire-topic/main/gone", "retire-topic/main/orders", "retire-topic/other/gone")
        owed = Operation("owes", "f" * 64, 0, tuple(StepRecord(id_, "plant", "remove it") for id_ in ids))
        control.store.accept(StoredPlan("f" * 64, control.store.revision(), recorded, {}), owed)
        again = await control.apply(SPEC.replace("partitions: 4", "partitions: 5"))
        steps = [s["id"] for s in control.service.operation(again)["steps"]]
        assert steps[-2:] == ["retire-volumes/main", "retire-topic/main/gone"], "not of what is wanted, or not there"
        assert not set(ids[2:]) & set(steps)
        assert control.service.operation("owes")["outcome"] == "Superseded"
        await control.until_ended(again)  # a private cloud has no volumes to remove
        after = await control.apply(SPEC.replace("partitions: 4", "partitions: 6"))
        assert "retire-volumes/main" not in [s["id"] for s in control.service.operation(after)["steps"]]
        await control.stop()

    run(main())
