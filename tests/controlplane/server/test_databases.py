"""Databases from spec to agents over a cell in memory, under virtual time: with and without brokers, over two cells,
with keys that change, through crashes and removals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dataplane.contract.assignment import ProcessState
from providers.base.errors import Conflict, NotFound
from providers.memory.faults import Faults
from tests.controlplane.server.cell_sim import SPEC, Control, Plant, until
from tests.sim.virtualtime import run

TABLE = """\
  tables:
    - name: motor
      columns: [{name: ts, type: timestamp_ms, role: time}, {name: rpm, type: float32}]
"""
CLOUD = SPEC.split("---\n")[0]
FLEET = """\
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: plant
  nodes: 2
"""
CARS = """\
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: cars}
spec: {role: edge, cloud: plant, edges: 3, upload: {to: fleet, bytesPerSecond: 1MiB}}
"""
DATABASES = "---\n".join([CLOUD, FLEET + TABLE, CARS])
TWO_CELLS = "---\n".join([
    CLOUD, CLOUD.replace("name: plant", "name: yard").replace("[a, b]", "[c]"), FLEET + TABLE,
    CARS.replace("cloud: plant", "cloud: yard"),
])  # fmt: skip


def of(control: Control, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(d for d in control.service.status()["databases"] if d["name"] == name)
    return found


def told(plant: Plant) -> dict[str, Any]:
    return {node: spec for specs in plant.databases.values() for node, spec in specs.items()}


async def up(plant: Plant, path: Path, text: str = DATABASES) -> Control:
    control = Control(plant, path / "s")
    plant.start_agent("a")
    plant.start_agent("b")
    operation = await control.apply(text)
    assert await control.until_ended(operation) == "Done", control.service.operation(operation)
    await control.until_ready()
    return control


def test_a_cell_without_brokers_runs_databases_and_the_plan_is_empty_then(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(1)
        control = await up(plant, tmp_path)
        assert (await control.service.plan([("s", DATABASES)], prune=True))["empty"]
        fleet, cars = of(control, "fleet"), of(control, "cars")
        assert (fleet["state"], fleet["owner"], len(fleet["http"]), len(fleet["mysql"])) == ("Ready", "fleet-1", 2, 2)
        assert [(n["name"], n["zone"]) for n in cars["nodes"]] == [("cars-1", "a"), ("cars-2", "b"), ("cars-3", "a")]
        specs = told(plant)
        assert [t.name for t in specs["cars-2"].tables] == ["motor"], "an edge has its target's tables"
        assert specs["cars-1"].upload.bucket.bucket == "yunhe-plant" and specs["cars-1"].upload.bytes_per_s == 1 << 20
        here = {n["name"]: f"127.0.0.1:{n['httpPort']}" for n in fleet["nodes"]}
        assert plant.peers["a"]["fleet"] == plant.peers["b"]["fleet"] == here
        [cloud] = control.service.status()["clouds"]
        assert cloud["state"] == "Ready" and {a["zone"] for a in cloud["agents"]} == {"a", "b"}
        await control.stop()

    run(main())


def test_keys_are_pinned_at_first_sight_and_handed_to_the_target(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(2)
        control = await up(plant, tmp_path)
        keys = {f"cars-{i}": f"key-of-cars-{i}" for i in (1, 2, 3)}
        await until(lambda: told(plant)["fleet-1"].trust == keys and told(plant)["fleet-2"].trust == keys, 30)
        assert all(node["trusted"] for node in of(control, "cars")["nodes"])
        await control.stop()

    run(main())


def test_another_key_is_shown_and_not_taken_over_until_it_is_approved(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(3)
        control = await up(plant, tmp_path)
        await until(lambda: len(told(plant)["fleet-1"].trust) == 3, 30)
        with pytest.raises(Conflict, match="no other key"):
            control.service.trust("cars-2")
        plant.keys["cars-2"] = "another"
        await until(lambda: of(control, "cars")["state"] == "Degraded", 30)
        assert "yunhe database trust cars-2" in of(control, "cars")["sentence"]
        await control.stop()
        control = Control(plant, tmp_path / "s")
        await until(lambda: of(control, "cars")["state"] == "Degraded", 60)
        await asyncio.sleep(60)
        assert told(plant)["fleet-1"].trust["cars-2"] == "key-of-cars-2", "a restart forgets no pin"
        assert control.service.trust("cars-2")["publicKey"] == "another"
        await until(lambda: told(plant)["fleet-1"].trust["cars-2"] == "another", 30)
        await control.until_ready(30)
        with pytest.raises(NotFound, match="no edge") as caught:
            control.service.trust("cars-9")
        assert "did you mean" in (caught.value.hint or "")
        await control.stop()

    run(main())


def test_a_store_that_begins_anew_takes_no_trust_away(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(4)
        control = await up(plant, tmp_path)
        await until(lambda: len(told(plant)["fleet-1"].trust) == 3, 30)
        await control.stop()
        plant.agents["b"].cancel()
        again = Control(plant, tmp_path / "new")
        await again.apply(DATABASES)
        await until(lambda: len(plant.generations) > 0 and of(again, "fleet")["nodes"][0]["state"] == "Ready", 60)
        await asyncio.sleep(30)
        # cars-2 is in zone b, whose agent says nothing any more.
        assert set(told(plant)["fleet-1"].trust) == {"cars-1", "cars-2", "cars-3"}
        await again.stop()

    run(main())


@pytest.mark.parametrize("how", ["away", "shut"])
def test_edges_upload_into_the_bucket_of_another_cell_and_wait_until_it_is_proved(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        plant = Plant(5)
        setattr(plant, how, {"plant", "yunhe-plant"})
        for zone in ("a", "b"):
            plant.start_agent(zone)
        plant.start_agent("c", "yard")
        control = Control(plant, tmp_path / "s")
        await control.apply(TWO_CELLS)
        await until(lambda: "bucket of plant is verified" in of(control, "cars")["sentence"], 60)
        await asyncio.sleep(5)
        assert not told(plant)
        setattr(plant, how, set())
        await control.until_ready()
        specs = told(plant)
        assert specs["cars-1"].upload.bucket.bucket == "yunhe-plant"
        await until(lambda: set(told(plant)["fleet-1"].trust) == {"cars-1", "cars-2", "cars-3"}, 30)
        plant.away = {"plant"}
        await asyncio.sleep(60)
        assert told(plant)["cars-1"] == specs["cars-1"], "the other cell's outage changes nothing here"
        await control.stop()

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_it_converges_over_a_bucket_that_fails_and_through_a_crash(tmp_path: Path, seed: int) -> None:
    rough = Faults(unavailable=0.05, throttled=0.02, lost_response=0.04, delayed=0.02, duplicated=0.02)

    async def main() -> None:
        plant = Plant(seed, rough)
        control = Control(plant, tmp_path / "s")
        plant.start_agent("a")
        plant.start_agent("b")
        await control.apply(DATABASES)
        await asyncio.sleep(1.0 + seed)
        await control.stop()
        again = Control(plant, tmp_path / "s")
        await again.until_ready(600)
        await until(lambda: len(told(plant)["fleet-1"].trust) == 3, 120)
        await again.stop()

    run(main())


def test_an_idle_cell_with_databases_appends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(6)
        control = await up(plant, tmp_path, "---\n".join([SPEC, FLEET + TABLE, CARS]))
        await until(lambda: len(told(plant)["fleet-1"].trust) == 3, 30)
        await asyncio.sleep(10)
        before = dict(plant.bucket.objects)
        await asyncio.sleep(300)
        assert plant.bucket.objects == before
        await control.stop()

    run(main())


def test_brokers_and_databases_of_one_cell_come_and_go_by_themselves(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(7)
        both = "---\n".join([SPEC, FLEET + TABLE, CARS])
        control = await up(plant, tmp_path, both)
        assert plant.brokers == {"a": {"b-1"}, "b": {"b-2"}} and len(told(plant)) == 5
        assert await control.until_ended(await control.apply(DATABASES, prune=True)) == "Done"
        await until(lambda: plant.brokers == {"a": set(), "b": set()}, 60)
        assert len(told(plant)) == 5
        assert await control.until_ended(await control.apply(both)) == "Done"
        await until(lambda: plant.brokers == {"a": {"b-1"}, "b": {"b-2"}}, 60)
        assert await control.until_ended(await control.apply(SPEC, prune=True)) == "Done"
        assert not told(plant) and plant.brokers == {"a": {"b-1"}, "b": {"b-2"}}
        assert control.service.objects("Database") == []
        await control.until_ready()
        await control.stop()

    run(main())


def test_a_cloud_that_goes_with_its_databases_stops_them(tmp_path: Path) -> None:
    other = CLOUD.replace("name: plant", "name: yard").replace("[a, b]", "[c]")

    async def main() -> None:
        plant = Plant(8)
        control = await up(plant, tmp_path)
        assert await control.until_ended(await control.apply(other, prune=True)) == "Done"
        assert not told(plant)
        await control.stop()

    run(main())


def test_nodes_of_a_database_start_anew_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(9)
        control = await up(plant, tmp_path)
        plant.states["fleet-1"] = ProcessState.STARTING  # from its turn on it does not come back
        await until(lambda: of(control, "fleet")["state"] == "Degraded", 30)
        await control.apply(DATABASES.replace("nodes: 2", "nodes: 2\n  lease: 9s"))
        await until(lambda: told(plant)["fleet-1"].lease_ms == 9_000, 60)
        await asyncio.sleep(30)
        assert told(plant)["fleet-2"].lease_ms == 3_000, "it serves until the other one does"
        plant.states.clear()
        await until(lambda: told(plant)["fleet-2"].lease_ms == 9_000, 60)
        await control.until_ready()
        await control.stop()

    run(main())


def test_a_database_that_nobody_owns_is_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        plant = Plant(10)
        control = await up(plant, tmp_path)
        plant.owner = "nobody"
        await until(lambda: of(control, "fleet")["state"] == "Degraded", 30)
        assert of(control, "fleet")["sentence"] == "no node owns it yet"
        plant.owner = "fleet-2"
        await until(lambda: of(control, "fleet")["owner"] == "fleet-2", 30)
        second = of(control, "fleet")["nodes"][1]
        assert of(control, "fleet")["mysql"][0] == f"127.0.0.1:{second['mysqlPort']}"
        assert of(control, "fleet")["postgres"][0] == f"postgres://127.0.0.1:{second['postgresPort']}/public"
        await control.stop()

    run(main())
