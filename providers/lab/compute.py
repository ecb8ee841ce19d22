"""The compute API of an emulated cloud, without a wire form: machines, disks and attachments that go through the states
real ones go through. Dialects (`control_*.py`) put each cloud's protocol before it.

A change is durable before its call returns; a transition that was under way when the server was killed goes on after
its restart. `settle` moves whatever is due: every call does it first, and the server's ticker does it when nobody asks.
Blocking and thread-safe.

Errors say by `fields["code"]` which case it is; the codes are the constants below.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from providers.base.clock import Clock
from providers.base.errors import Conflict, Full, Invalid, NotFound, Unavailable, YunheError
from providers.lab.compute_state import (
    GIB,
    Backing,
    Disk,
    DiskSpec,
    DiskState,
    Durations,
    Link,
    LinkState,
    Machine,
    Quotas,
    disk_of,
    disk_plain,
)
from providers.lab.state_file import StateFile

NO_SUCH_DISK = "no_such_disk"
NO_SUCH_INSTANCE = "no_such_instance"
NAME_TAKEN = "name_taken"
"""Conflict: there is a disk of that id already."""
NOT_READY = "not_ready"
"""Conflict: the disk is being created or deleted, or has failed."""
WRONG_ZONE = "wrong_zone"
UNSUPPORTED = "unsupported"
"""Invalid: this machine type cannot take a shared disk."""
IN_USE = "in_use"
"""Conflict: attached, and not to be shared (attach) or not to be deleted (delete)."""
SHARE_LIMIT = "share_limit"
ALREADY_ATTACHED = "already_attached"
"""Conflict: attached to that very machine."""
NOT_ATTACHED = "not_attached"
TOKEN_MISMATCH = "token_mismatch"
QUOTA = "quota"
INSTANCE_FULL = "instance_full"

TOKENS_MAX = 10_000
"""Idempotency tokens remembered; the oldest go first."""
RETRY_MS = 100
"""Until a transition that the volume daemon refused for now is tried again."""


class Compute:
    """One account's machines and disks in one region."""

    def __init__(
        self,
        file: StateFile,
        clock: Clock,
        *,
        durations: Durations | None = None,
        quotas: Quotas | None = None,
        backing: Backing | None = None,
    ) -> None:
        self._file = file
        self._clock = clock
        self._backing = backing
        self.durations = durations or Durations()
        self.quotas = quotas or Quotas()
        self._lock = threading.RLock()
        plain = file.load() or {}
        self._machines = {row["id"]: Machine(**row) for row in plain.get("machines", ())}
        self._disks = {row["spec"]["id"]: disk_of(row) for row in plain.get("disks", ())}
        self._tokens: dict[str, tuple[str, str]] = {k: (a, b) for k, (a, b) in plain.get("tokens", {}).items()}
        self._notes: dict[str, Any] = plain.get("notes", {})
        # When each transition is due, on the monotonic clock: a restart begins the wait anew.
        self._due: dict[tuple[str, str], float] = {}
        for disk in self._disks.values():
            self._schedule(disk)

    # ---- machines

    def machines(self) -> list[Machine]:
        """By id."""
        with self._lock:
            return sorted(self._machines.values(), key=lambda machine: machine.id)

    def machine(self, instance: str) -> Machine:
        """
        Raises:
            NotFound: NO_SUCH_INSTANCE.
        """
        with self._lock:
            if instance not in self._machines:
                raise NotFound(f"no instance {instance}", code=NO_SUCH_INSTANCE, instance=instance)
            return self._machines[instance]

    def put_machine(self, machine: Machine) -> None:
        """Add, or replace the one of that id."""
        with self._lock:
            self._save({**self._machines, machine.id: machine}, self._disks)

    def set_running(self, instance: str, running: bool) -> None:
        """Start or stop. Disks stay attached.

        Raises:
            NotFound: NO_SUCH_INSTANCE.
        """
        with self._lock:
            self.put_machine(replace(self.machine(instance), running=running))

    def remove_machine(self, instance: str) -> None:
        """Terminate: its disks are detached by force; one that is gone is passed over."""
        with self._lock:
            for disk in list(self._disks.values()):
                if disk.link(instance) is not None:
                    self.detach(disk.id, instance, force=True)
            self._save({k: m for k, m in self._machines.items() if k != instance}, self._disks)

    # ---- disks

    def disks(self) -> list[Disk]:
        """By id."""
        with self._lock:
            self.settle()
            return sorted(self._disks.values(), key=lambda disk: disk.id)

    def disk(self, disk_id: str) -> Disk:
        """
        Raises:
            NotFound: NO_SUCH_DISK.
        """
        with self._lock:
            self.settle()
            return self._find(disk_id)

    def create_disk(self, spec: DiskSpec, *, token: str = "", parameters: str = "") -> Disk:
        """Begin to create. With a `token`, a repetition that has the same `parameters` (any canonical text of the
        request) gets the first one's disk, whatever id its spec has.

        Raises:
            Conflict: NAME_TAKEN, TOKEN_MISMATCH.
            Full: QUOTA; `fields["quota"]` is the field of `Quotas`.
        """
        with self._lock:
            self.settle()
            if token and token in self._tokens:
                kept, disk_id = self._tokens[token]
                if kept != parameters:
                    raise Conflict("the token was used with other parameters", code=TOKEN_MISMATCH)
                if disk_id in self._disks:  # a deleted disk's token may be used again
                    return self._disks[disk_id]
            if spec.id in self._disks:
                raise Conflict(f"disk {spec.id} exists", code=NAME_TAKEN, disk=spec.id)
            if len(self._disks) >= self.quotas.disks_max:
                raise Full(f"{len(self._disks)} disks are the quota", code=QUOTA, quota="disks_max")
            used = sum(disk.spec.size_bytes for disk in self._disks.values())
            if used + spec.size_bytes > self.quotas.gib_max * GIB:
                raise Full(f"{self.quotas.gib_max} GiB are the quota", code=QUOTA, quota="gib_max")
            disk = Disk(spec, DiskState.CREATING, self._clock.wall_ms())
            tokens = {**self._tokens, token: (parameters, spec.id)} if token else self._tokens
            self._save(self._machines, {**self._disks, disk.id: disk}, tokens)
            self._start(disk.id, "", self.durations.create_ms)
            return disk

    def update_disk(self, disk_id: str, change: Callable[[Disk], Disk]) -> Disk:
        """Replace a disk's tags, attributes, size or degraded flag: `change` gets it and returns another.

        Raises:
            NotFound: NO_SUCH_DISK.
        """
        with self._lock:
            self.settle()
            return self._put(change(self._find(disk_id)))

    def delete_disk(self, disk_id: str) -> None:
        """Begin to delete; one that is being deleted is passed over.

        Raises:
            NotFound: NO_SUCH_DISK.
            Conflict: IN_USE, NOT_READY.
        """
        with self._lock:
            self.settle()
            disk = self._find(disk_id)
            if disk.links:
                raise Conflict(f"disk {disk_id} is attached to {disk.links[0].instance}", code=IN_USE, disk=disk_id)
            if disk.state is DiskState.CREATING:
                raise Conflict(f"disk {disk_id} is still being created", code=NOT_READY, disk=disk_id)
            if disk.state is not DiskState.DELETING:
                self._put(replace(disk, state=DiskState.DELETING))
                self._start(disk_id, "", self.durations.delete_ms)

    # ---- attachments

    def attach(
        self,
        disk_id: str,
        instance: str,
        *,
        device: str = "",
        force: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> Disk:
        """Begin to attach. `force` takes it from every other machine first, whatever those do.

        Raises:
            NotFound: NO_SUCH_DISK, NO_SUCH_INSTANCE.
            Invalid: WRONG_ZONE, UNSUPPORTED.
            Conflict: NOT_READY, ALREADY_ATTACHED, IN_USE, SHARE_LIMIT, INSTANCE_FULL.
        """
        with self._lock:
            self.settle()
            disk, machine = self._find(disk_id), self.machine(instance)
            self._require_attachable(disk, machine, force)
            links = disk.links
            if force:
                links = tuple(replace(link, state=LinkState.DETACHING, forced=True) for link in links)
                for link in links:
                    self._start(disk_id, link.instance, self.durations.detach_ms)
            now_ms = self._clock.wall_ms()
            fresh = Link(
                instance, machine.zone, LinkState.ATTACHING, device, since_ms=now_ms, attributes=attributes or {}
            )
            disk = self._put(replace(disk, links=(*links, fresh)))
            self._start(disk_id, instance, self.durations.attach_ms)
            return disk

    def detach(self, disk_id: str, instance: str, *, force: bool = False) -> Disk:
        """Begin to detach; a repetition changes nothing, but that `force` makes it a forced one. An ordinary detach
        of a disk that the guest holds stays BUSY until the guest lets go.

        Raises:
            NotFound: NO_SUCH_DISK.
            Conflict: NOT_ATTACHED.
        """
        with self._lock:
            self.settle()
            disk = self._find(disk_id)
            link = disk.link(instance)
            if link is None:
                raise Conflict(f"disk {disk_id} is not attached to {instance}", code=NOT_ATTACHED, disk=disk_id)
            if link.state in (LinkState.DETACHING, LinkState.BUSY) and (link.forced or not force):
                return disk
            disk = self._put(disk.with_link(replace(link, state=LinkState.DETACHING, forced=force or link.forced)))
            self._start(disk_id, instance, self.durations.detach_ms)
            return disk

    def hold(self, disk_id: str, instance: str, held: bool) -> None:
        """For tests: the guest holds the disk, or lets go of it.

        Raises:
            NotFound: NO_SUCH_DISK.
            Conflict: NOT_ATTACHED.
        """
        with self._lock:
            disk = self.disk(disk_id)
            link = disk.link(instance)
            if link is None:
                raise Conflict(f"disk {disk_id} is not attached to {instance}", code=NOT_ATTACHED, disk=disk_id)
            self._put(disk.with_link(replace(link, held=held)))

    def set_degraded(self, disk_id: str, degraded: bool) -> None:
        """For tests: the disk acks with one replica only, or with both again.

        Raises:
            NotFound: NO_SUCH_DISK.
        """
        self.update_disk(disk_id, lambda disk: replace(disk, degraded=degraded))

    def _require_attachable(self, disk: Disk, machine: Machine, force: bool) -> None:
        about = {"disk": disk.id, "instance": machine.id}
        if disk.state is not DiskState.AVAILABLE:
            raise Conflict(f"disk {disk.id} is {disk.state}", code=NOT_READY, **about)
        if machine.zone not in disk.spec.zones:
            raise Invalid(f"disk {disk.id} does not reach zone {machine.zone}", code=WRONG_ZONE, **about)
        if disk.link(machine.id) is not None:
            raise Conflict(f"disk {disk.id} is attached to {machine.id} already", code=ALREADY_ATTACHED, **about)
        if disk.spec.share_max > 1 and not machine.shares_volumes:
            raise Invalid(f"a {machine.kind} cannot take a shared disk", code=UNSUPPORTED, **about)
        if not force and len(disk.links) >= disk.spec.share_max:
            code = IN_USE if disk.spec.share_max == 1 else SHARE_LIMIT
            raise Conflict(f"disk {disk.id} has its {disk.spec.share_max} attachment(s)", code=code, **about)
        here = sum(1 for other in self._disks.values() if other.link(machine.id) is not None)
        if here >= self.quotas.disks_per_instance_max:
            raise Conflict(f"{machine.id} has its {here} disks", code=INSTANCE_FULL, **about)

    # ---- what a dialect wants remembered

    def note(self, key: str, value: Any) -> None:
        """Keep a JSON value durably (an operation's record …); None forgets it."""
        with self._lock:
            notes = {k: v for k, v in self._notes.items() if k != key}
            self._save(self._machines, self._disks, notes=notes if value is None else {**notes, key: value})

    def noted(self, key: str) -> Any:
        """What `note` kept under that key, or None."""
        with self._lock:
            return self._notes.get(key)

    # ---- transitions

    @property
    def unsettled(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._due)

    def settle(self) -> None:
        """Make happen what is due."""
        with self._lock:
            now = self._clock.monotonic_ms()
            # Detaches first: an attach by force waits until they are done.
            due = sorted((key for key, at in self._due.items() if at <= now), key=self._attaches)
            for disk_id, instance in due:
                self._due.pop((disk_id, instance), None)
                disk = self._disks.get(disk_id)
                if disk is None:
                    continue
                try:
                    self._step(disk, instance)
                except Unavailable:
                    self._due[disk_id, instance] = now + RETRY_MS

    def _attaches(self, key: tuple[str, str]) -> bool:
        disk = self._disks.get(key[0])
        link = disk.link(key[1]) if disk else None
        return link is not None and link.state is LinkState.ATTACHING

    def _step(self, disk: Disk, instance: str) -> None:
        link = disk.link(instance)
        if not instance:
            self._step_disk(disk)
        elif link is not None and link.state is LinkState.ATTACHING:
            if len(disk.links) > disk.spec.share_max:
                raise Unavailable(f"disk {disk.id} is still being taken from its holder")
            try:
                self._back(lambda backing: backing.attach(disk, link.zone))
            except Unavailable:
                raise
            except YunheError:
                self._put(disk.without(instance))  # as a cloud whose hypervisor refuses
            else:
                self._put(disk.with_link(replace(link, state=LinkState.ATTACHED)))
        elif link is not None and link.state in (LinkState.DETACHING, LinkState.BUSY):
            self._step_detach(disk, link)

    def _step_disk(self, disk: Disk) -> None:
        if disk.state is DiskState.CREATING:
            try:
                self._back(lambda backing: backing.create(disk))
            except Unavailable:
                raise
            except YunheError:
                self._put(replace(disk, state=DiskState.ERROR))
            else:
                self._put(replace(disk, state=DiskState.AVAILABLE))
        elif disk.state is DiskState.DELETING:
            self._back(lambda backing: backing.delete(disk))
            self._save(self._machines, {k: d for k, d in self._disks.items() if k != disk.id})

    def _step_detach(self, disk: Disk, link: Link) -> None:
        zone = link.zone
        neighbours = [
            other
            for other in disk.links
            if other.instance != link.instance and other.zone == zone and other.state is not LinkState.ATTACHING
        ]
        if not link.forced and (link.held or (not neighbours and self._is_open(disk, zone))):
            if link.state is not LinkState.BUSY:
                self._put(disk.with_link(replace(link, state=LinkState.BUSY)))
            self._start(disk.id, link.instance, RETRY_MS)
            return
        if link.forced or not neighbours:
            self._back(lambda backing: backing.detach(disk, zone))
        if link.forced and neighbours:
            # The daemon knows who holds a volume by zone only: a neighbour's handle is cut too, and opened again.
            self._back(lambda backing: backing.attach(disk, zone))
        self._put(disk.without(link.instance))

    def _is_open(self, disk: Disk, zone: str) -> bool:
        return self._backing is not None and self._backing.is_open(disk, zone)

    def _back(self, act: Callable[[Backing], None]) -> None:
        if self._backing is not None:
            act(self._backing)

    # ---- state

    def _find(self, disk_id: str) -> Disk:
        if disk_id not in self._disks:
            raise NotFound(f"no disk {disk_id}", code=NO_SUCH_DISK, disk=disk_id)
        return self._disks[disk_id]

    def _put(self, disk: Disk) -> Disk:
        disk = replace(disk, version=disk.version + 1)
        self._save(self._machines, {**self._disks, disk.id: disk})
        return disk

    def _start(self, disk_id: str, instance: str, duration_ms: float) -> None:
        self._due[disk_id, instance] = self._clock.monotonic_ms() + duration_ms

    def _schedule(self, disk: Disk) -> None:
        if disk.state is DiskState.CREATING:
            self._start(disk.id, "", self.durations.create_ms)
        if disk.state is DiskState.DELETING:
            self._start(disk.id, "", self.durations.delete_ms)
        for link in disk.links:
            if link.state is not LinkState.ATTACHED:
                attaching = link.state is LinkState.ATTACHING
                duration_ms = self.durations.attach_ms if attaching else self.durations.detach_ms
                self._start(disk.id, link.instance, duration_ms)

    def _save(
        self,
        machines: Mapping[str, Machine],
        disks: Mapping[str, Disk],
        tokens: Mapping[str, tuple[str, str]] | None = None,
        *,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """On disk first, then in memory: a write that fails changes nothing."""
        kept = dict(list((self._tokens if tokens is None else tokens).items())[-TOKENS_MAX:])
        notes = self._notes if notes is None else notes
        self._file.save(
            {
                "machines": [asdict(machine) for machine in machines.values()],
                "disks": [disk_plain(disk) for disk in disks.values()],
                "tokens": kept,
                "notes": notes,
            }
        )
        self._machines, self._disks, self._tokens = dict(machines), dict(disks), kept
        self._notes = dict(notes)
