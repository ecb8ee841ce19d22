"""The persistent reservation of a volume as pure functions of its state: what NVMe and SCSI call type "write
exclusive".

The generation counts registrations and preempts, not reserve and release, as PR IN's PRgeneration does (SPC-4,
5.12.3). Used by the volume daemon and by the in-process volumes.
"""

from __future__ import annotations

from dataclasses import replace

from providers.base.errors import Conflict, Fenced, Invalid
from providers.base.volumes import Reservation

UNRESERVED = Reservation(holder=None, registered=frozenset(), generation=0)


def register(state: Reservation, key: int, *, earlier: int | None) -> Reservation:
    """The attachment that was registered as `earlier` is `key` from now on; a reservation that it holds stays with it.

    Raises:
        Invalid: not a non-zero 64-bit key.
    """
    if not 0 < key < 1 << 64:
        raise Invalid(f"{key} is not a registration key", hint="keys are 64 bit and not zero")
    if key == earlier and key in state.registered:
        return state
    dropped = frozenset() if earlier is None else frozenset({earlier})
    holder = key if earlier is not None and state.holder == earlier else state.holder
    return Reservation(holder, (state.registered - dropped) | {key}, state.generation + 1)


def reserve(state: Reservation, key: int | None) -> Reservation:
    """`key` takes the free reservation, or has it already.

    Raises:
        Conflict: another key holds it; no registration.
    """
    _require_registered(state, key)
    if state.holder not in (None, key):
        raise Conflict(f"the reservation is held by {state.holder:#x}", holder=state.holder)
    return replace(state, holder=key)


def preempt(state: Reservation, key: int | None, victim: int) -> Reservation:
    """`key` takes the reservation from `victim`, whose registration goes.

    Raises:
        Conflict: `victim` is not the holder; no registration.
    """
    _require_registered(state, key)
    if state.holder == key:
        return state
    if state.holder != victim:
        raise Conflict(f"{victim:#x} does not hold the reservation", holder=state.holder, victim=victim)
    return Reservation(key, state.registered - {victim}, state.generation + 1)


def release(state: Reservation, key: int | None) -> Reservation:
    """`key` gives the reservation up, if it has it."""
    return replace(state, holder=None) if key is not None and state.holder == key else state


def require_writer(state: Reservation, key: int | None, *, once_registered: bool) -> None:
    """Whether an attachment may write.

    Raises:
        Fenced: another key holds the reservation, or the attachment has lost its registration.
    """
    if once_registered and (key is None or key not in state.registered):
        raise Fenced("this attachment's registration is gone", holder=state.holder)
    if state.holder is not None and state.holder != key:
        raise Fenced(f"the reservation is held by {state.holder:#x}", holder=state.holder)


def _require_registered(state: Reservation, key: int | None) -> None:
    if key is None or key not in state.registered:
        raise Conflict("this attachment is not registered", hint="register a key first", holder=state.holder)
