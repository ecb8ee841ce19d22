"""The emulated compute API goes through the states of a real one, and forgets nothing when it is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from providers.base.errors import Conflict, Full, Invalid, NotFound, Unavailable
from providers.lab import compute as codes
from providers.lab.compute import Compute
from providers.lab.compute_state import GIB, Disk, DiskSpec, DiskState, LinkState, Machine, Quotas
from providers.lab.state_file import StateFile
from tests.hand_clock import HandClock

STEP_MS = 25.0


class Backing:
    """Notes what it is asked for; `down` makes it refuse."""

    def __init__(self) -> None:
        self.done: list[tuple[str, ...]] = []
        self.open: set[tuple[str, str]] = set()
        self.down = False

    def _note(self, *what: str) -> None:
        if self.down:
            raise Unavailable("the daemon is down")
        self.done.append(what)

    def create(self, disk: Disk) -> None:
        self._note("create", disk.id)

    def attach(self, disk: Disk, zone: str) -> None:
        self._note("attach", disk.id, zone)

    def detach(self, disk: Disk, zone: str) -> None:
        self._note("detach", disk.id, zone)
        self.open.discard((disk.id, zone))

    def is_open(self, disk: Disk, zone: str) -> bool:
        return (disk.id, zone) in self.open

    def delete(self, disk: Disk) -> None:
        self._note("delete", disk.id)


class Lab:
    def __init__(self, path: Path) -> None:
        self.file = StateFile(path / "compute.json")
        self.clock = HandClock(1000.0)
        self.backing = Backing()
        self.restart()
        for name, zone in (("a", "z1"), ("b", "z2"), ("c", "z1"), ("d", "z3")):
            self.compute.put_machine(Machine(name, name, zone, "kind"))

    def restart(self) -> None:
        """As after kill -9: nothing but the file is left."""
        self.compute = Compute(self.file, self.clock, backing=self.backing)

    def pass_time(self) -> None:
        self.clock.now_ms += STEP_MS

    def disk(self, name: str = "v", **given: object) -> Disk:
        spec = DiskSpec(name, name, "kind", 4 * GIB, ("z1", "z2"), 2)
        self.compute.create_disk(replace(spec, **given))
        self.pass_time()
        return self.compute.disk(name)

    def attach(self, instance: str, name: str = "v", **given: object) -> Disk:
        self.compute.attach(name, instance, **given)  # type: ignore[arg-type]
        self.pass_time()
        return self.compute.disk(name)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def refused(kind: type[Exception], code: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.fields["code"] == code  # type: ignore[attr-defined]


def test_changes_pass_through_transitional_states(lab: Lab) -> None:
    made = lab.compute.create_disk(DiskSpec("v", "v", "kind", 4 * GIB, ("z1",)))
    assert made.status is DiskState.CREATING
    refused(Conflict, codes.NOT_READY, lambda: lab.compute.attach("v", "a"))
    lab.pass_time()
    assert lab.compute.disk("v").status is DiskState.AVAILABLE
    assert lab.compute.attach("v", "a").links[0].state is LinkState.ATTACHING
    lab.pass_time()
    disk = lab.compute.disk("v")
    assert (disk.status, disk.links[0].state) == (DiskState.IN_USE, LinkState.ATTACHED)
    assert lab.compute.detach("v", "a").links[0].state is LinkState.DETACHING
    lab.pass_time()
    assert lab.compute.disk("v").status is DiskState.AVAILABLE
    lab.compute.delete_disk("v")
    assert lab.compute.disk("v").status is DiskState.DELETING
    lab.pass_time()
    refused(NotFound, codes.NO_SUCH_DISK, lambda: lab.compute.disk("v"))
    assert lab.backing.done == [("create", "v"), ("attach", "v", "z1"), ("detach", "v", "z1"), ("delete", "v")]


def test_limits_have_codes_of_their_own(lab: Lab) -> None:
    lab.disk()
    refused(NotFound, codes.NO_SUCH_DISK, lambda: lab.compute.attach("w", "a"))
    refused(NotFound, codes.NO_SUCH_INSTANCE, lambda: lab.compute.attach("v", "x"))
    refused(Invalid, codes.WRONG_ZONE, lambda: lab.compute.attach("v", "d"))
    lab.attach("a")
    refused(Conflict, codes.ALREADY_ATTACHED, lambda: lab.compute.attach("v", "a"))
    refused(Conflict, codes.IN_USE, lambda: lab.compute.delete_disk("v"))
    lab.attach("b")
    refused(Conflict, codes.SHARE_LIMIT, lambda: lab.compute.attach("v", "c"))
    refused(Conflict, codes.NOT_ATTACHED, lambda: lab.compute.detach("v", "c"))
    lab.disk("single", share_max=1)
    lab.attach("a", "single")
    refused(Conflict, codes.IN_USE, lambda: lab.compute.attach("single", "b"))
    lab.compute.put_machine(Machine("old", "old", "z1", "t1", shares_volumes=False))
    refused(Invalid, codes.UNSUPPORTED, lambda: lab.compute.attach("v", "old"))
    lab.compute.quotas = Quotas(disks_max=2)
    refused(Full, codes.QUOTA, lambda: lab.disk("third"))
    lab.compute.quotas = Quotas(gib_max=10)
    refused(Full, codes.QUOTA, lambda: lab.disk("third"))
    lab.compute.quotas = Quotas(disks_per_instance_max=1)
    lab.disk("third")
    refused(Conflict, codes.INSTANCE_FULL, lambda: lab.compute.attach("third", "b"))


def test_same_token_gives_the_same_disk_and_other_parameters_a_mismatch(lab: Lab) -> None:
    spec = DiskSpec("one", "v", "kind", 4 * GIB, ("z1",))
    lab.compute.create_disk(spec, token="t", parameters="p")
    lab.restart()
    again = lab.compute.create_disk(replace(spec, id="two"), token="t", parameters="p")
    assert again.id == "one" and len(lab.compute.disks()) == 1
    refused(Conflict, codes.TOKEN_MISMATCH, lambda: lab.compute.create_disk(spec, token="t", parameters="q"))
    refused(Conflict, codes.NAME_TAKEN, lambda: lab.compute.create_disk(spec))


def test_detach_waits_for_the_guest_and_a_forced_one_does_not(lab: Lab) -> None:
    lab.disk()
    lab.attach("a")
    lab.backing.open.add(("v", "z1"))
    lab.compute.detach("v", "a")
    lab.pass_time()
    link = lab.compute.disk("v").link("a")
    assert link is not None and link.state is LinkState.BUSY
    lab.restart()
    lab.compute.detach("v", "a", force=True)
    lab.pass_time()
    assert lab.compute.disk("v").links == ()
    assert lab.backing.open == set()


def test_busy_detach_ends_when_the_guest_lets_go(lab: Lab) -> None:
    lab.disk()
    lab.attach("a")
    lab.compute.hold("v", "a", True)
    lab.compute.detach("v", "a")
    lab.pass_time()
    link = lab.compute.disk("v").link("a")
    assert link is not None and link.state is LinkState.BUSY
    lab.compute.hold("v", "a", False)
    lab.clock.now_ms += codes.RETRY_MS
    assert lab.compute.disk("v").links == ()


def test_attach_by_force_takes_the_disk_from_its_holder_first(lab: Lab) -> None:
    lab.disk(share_max=1)
    lab.attach("a")
    disk = lab.attach("b", force=True)
    assert [(link.instance, link.state) for link in disk.links] == [("b", LinkState.ATTACHED)]
    assert lab.backing.done[-2:] == [("detach", "v", "z1"), ("attach", "v", "z2")]


def test_forced_detach_leaves_a_neighbour_in_the_same_zone_attached(lab: Lab) -> None:
    lab.disk()
    lab.attach("a")
    lab.attach("c")
    lab.compute.detach("v", "a", force=True)
    lab.pass_time()
    assert [link.instance for link in lab.compute.disk("v").links] == ["c"]
    assert lab.backing.done[-2:] == [("detach", "v", "z1"), ("attach", "v", "z1")]


def test_killed_server_goes_on_with_what_was_under_way(lab: Lab) -> None:
    lab.disk()
    lab.compute.attach("v", "a")
    lab.restart()
    link = lab.compute.disk("v").link("a")
    assert link is not None and link.state is LinkState.ATTACHING
    lab.pass_time()
    link = lab.compute.disk("v").link("a")
    assert link is not None and link.state is LinkState.ATTACHED


def test_transition_waits_for_a_volume_daemon_that_is_away(lab: Lab) -> None:
    lab.disk()
    lab.backing.down = True
    link = lab.attach("a").link("a")
    assert link is not None and link.state is LinkState.ATTACHING
    lab.backing.down = False
    lab.clock.now_ms += codes.RETRY_MS
    link = lab.compute.disk("v").link("a")
    assert link is not None and link.state is LinkState.ATTACHED


def test_terminated_machine_lets_go_of_its_disks(lab: Lab) -> None:
    lab.disk()
    lab.attach("a")
    lab.compute.remove_machine("a")
    lab.pass_time()
    assert lab.compute.disk("v").links == ()
    assert lab.backing.done[-1] == ("detach", "v", "z1")
