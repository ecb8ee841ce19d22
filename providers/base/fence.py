"""The contract's fence over a device's persistent reservation commands: what `BlockDevice` promises of register,
reserve, preempt, release and reservation, whichever way the commands travel (block-layer ioctls, iSCSI).

The device enforces; this adds what its commands leave open:

- PREEMPT of a key that is registered but does not hold the reservation removes the registration and succeeds (SPC-4
  5.12.11.2.3). The contract wants `Conflict`, so the holder is read before, and again after.
- Once nobody holds the reservation, anybody may write, also who was fenced (SPC-4 5.12.1). A handle that once met the
  loss of its registration refuses to write until it registers again; for one that has not met it nothing but the
  new holder's staying is a fence, which is why recoverers keep the reservation (design §5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from providers.base.errors import Conflict, Fenced, Invalid, Unavailable, invariant
from providers.base.scsi import TYPES
from providers.base.volumes import Reservation

NOBODYS_KEY, NOBODYS_VICTIM = 1, 2
"""Keys that nobody registers: a WAL's name a node and an epoch in their upper bits."""
READ_ATTEMPTS_MAX = 4
"""Readings of a state that changes between its parts; each costs a round trip."""


@dataclass(frozen=True, slots=True)
class DeviceReservation:
    """What the device says. `keys`: one for each registered initiator. `exclusive`: only the holder may write."""

    holder: int | None
    keys: tuple[int, ...]
    generation: int
    exclusive: bool = True
    type_name: str = TYPES[1]


class ReservationCommands(Protocol):
    """A device's commands. Those that answer bool say False for a reservation conflict.

    Every one may raise `Unavailable` (not done, or unanswered: all of them may be repeated), `NotFound` (the device is
    gone) and `Invalid` (it has no reservations, or this process may not use them).
    """

    async def register(self, key: int) -> bool:
        """Register this initiator under `key`, whatever it was registered as."""
        ...

    async def reserve(self, key: int) -> bool: ...

    async def release(self, key: int) -> bool: ...

    async def preempt(self, key: int, victim: int) -> bool:
        """With abort of the victim's commands where the device has it."""
        ...

    async def read(self) -> DeviceReservation: ...


class Fence:
    """One handle's side of the fence."""

    def __init__(self, commands: ReservationCommands, name: str) -> None:
        """`name`: of the volume, for messages."""
        self._commands = commands
        self._name = name
        self._key: int | None = None
        self._lost: Fenced | None = None

    @property
    def key(self) -> int | None:
        """The key under which this handle registered last."""
        return self._key

    def check(self) -> None:
        """Before a write. The device checks too, and its word counts.

        Raises:
            Fenced: this handle has met the loss of its registration.
        """
        if self._lost is not None:
            raise Fenced(self._lost.message, **self._lost.fields)

    def refused(self, why: str, *, cause: BaseException | None = None) -> Fenced:
        """What to raise when the device refused a write. A handle that is registered stays fenced from now on."""
        error = Fenced(f"volume {self._name}: {why}")
        error.__cause__ = cause
        if self._key is not None:
            self._lost = error
        return error

    async def probe(self) -> None:
        """Whether the device can be fenced by this process at all, asked when it is opened rather than found out in a
        takeover: a preempt under a key that is not the sender's is refused as a conflict, and does nothing.

        Raises:
            Invalid: it cannot, or not with abort where that is asked for.
        """
        await self.state()
        invariant(not await self._commands.preempt(NOBODYS_KEY, NOBODYS_VICTIM), "a preempt by nobody does nothing")

    async def register(self, key: int) -> None:
        if not 0 < key < 1 << 64:
            raise Invalid(f"{key} is not a registration key", hint="keys are 64 bit and not zero")
        if not await self._commands.register(key):
            raise Unavailable(f"volume {self._name} refused to register key {key:#x}")
        self._key, self._lost = key, None
        if (await self._commands.read()).keys.count(key) > 1:
            # An earlier life of this process, over another session or host, is registered under the same key: it
            # loses that, and what it has under way is refused. PREEMPT spares the sender's own registration (SPC-4
            # 5.12.11.2). An NVMe host with several controllers is there several times, too; preempting itself does
            # nothing.
            await self._commands.preempt(key, key)

    async def reserve(self) -> None:
        key = self._registered()
        if not await self._commands.reserve(key):
            raise await self._conflict("cannot be reserved")

    async def preempt(self, victim: int) -> None:
        if not 0 < victim < 1 << 64:
            raise Invalid(f"{victim} is not a registration key", hint="keys are 64 bit and not zero")
        key = self._registered()
        state = await self.state()
        if key not in state.registered:
            raise Conflict(f"volume {self._name}: this attachment's registration is gone", holder=state.holder)
        if state.holder == key:
            return
        if state.holder != victim:
            raise self._not_holder(victim, state)
        if not await self._commands.preempt(key, victim):
            raise await self._conflict(f"was not taken from {victim:#x}")
        state = await self.state()
        if state.holder != key:
            # It gave the reservation up, or lost it, between the reading and the preempt.
            raise self._not_holder(victim, state)

    async def release(self) -> None:
        if self._key is not None and (await self.state()).holder == self._key:
            await self._commands.release(self._key)

    async def state(self) -> Reservation:
        """Read by requests issued now.

        Raises:
            Invalid: the volume is reserved in a way that does not keep others from writing.
        """
        found = await self._commands.read()
        if found.holder is not None and not found.exclusive:
            raise Invalid(
                f"volume {self._name} is reserved as {found.type_name!r}, which does not fence",
                hint="somebody else uses it: give the broker a volume of its own",
                holder=found.holder,
            )
        state = Reservation(found.holder, frozenset(found.keys), found.generation)
        if self._key is not None and self._key not in state.registered and self._lost is None:
            self.refused("this attachment's registration is gone")
        return state

    def _registered(self) -> int:
        if self._key is None:
            raise Conflict(f"volume {self._name}: this attachment is not registered", hint="register a key first")
        return self._key

    def _not_holder(self, victim: int, state: Reservation) -> Conflict:
        return Conflict(
            f"volume {self._name}: {victim:#x} does not hold the reservation", holder=state.holder, victim=victim
        )

    async def _conflict(self, what: str) -> Conflict:
        holder = (await self.state()).holder
        held = "nobody" if holder is None else f"{holder:#x}"
        return Conflict(f"volume {self._name} {what}: held by {held}", holder=holder)
