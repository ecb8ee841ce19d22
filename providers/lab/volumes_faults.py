"""The gate before a volume daemon's requests: what is asked for in the words of `calls.py`, judged and counted once, as
it comes in.

A device's requests are of the service `volumes`. Creating, attaching, detaching, describing and deleting are the
cloud's control API even where a daemon answers it, and so of the service `compute`: an outage of the API leaves the
devices be.
A wait lengthens the time until the answer, not the time at which a write lands: the fence stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.base.clock import Clock
from providers.base.errors import Full, Invalid, Unavailable, YunheError
from providers.lab import volumes_protocol as wire
from providers.lab.calls import Call
from providers.lab.faults import CALM, Verdict
from providers.lab.gate import Gate
from providers.lab.volumes_connection import Connection, Request
from providers.lab.volumes_protocol import Op

_DEVICE: Mapping[int, str] = {
    Op.READ: "read",
    Op.WRITE: "write",
    Op.WRITE_SHARED: "write",
    **dict.fromkeys((Op.REGISTER, Op.RESERVE, Op.PREEMPT, Op.RELEASE, Op.RESERVATION), "reserve"),
}
_API: Mapping[int, str] = {
    Op.CREATE: "create",
    Op.ATTACH: "attach",
    Op.DETACH: "detach",
    Op.DESCRIBE: "describe",
    Op.DELETE: "delete",
}
LOST_MS = -1.0
"""In place of a wait: the answer is lost."""


class VolumeGate:
    """See the module."""

    def __init__(self, gate: Gate, clock: Clock) -> None:
        self.gate = gate
        self._clock = clock

    def severed(self, zone: str) -> bool:
        """Whether nobody in that zone reaches its attachments now."""
        return self.gate.faults.any() and self.gate.faults.severed(zone, self._clock.wall_ms())

    def stops(self, who: Connection, request: Request) -> bool:
        """Judge and count a request. True: it is done with, and nothing was changed."""
        if request.op == Op.WRITE_SHARED and self.gate.faults.quiet:  # what comes by far the most often
            size = request.second & 0xFFFFFFFF
            self.gate.meter.count(Call("volumes", "write", who.zone, size), bytes_in=size)
            return False
        call = _call(who, request)
        if call is None:
            return False
        faults = self.gate.faults
        verdict = CALM if faults.quiet else faults.judge(call, self._clock.wall_ms())
        stopped = False
        if verdict is not CALM:
            stopped = self._stopped(who, request, call, verdict)
        read = call.size if call.verb == "read" else 0
        self.gate.meter.count(call, bytes_in=call.size - read, bytes_out=read, failed=stopped)
        return stopped

    def _stopped(self, who: Connection, request: Request, call: Call, verdict: Verdict) -> bool:
        if verdict.unavailable:
            who.cut()
            return True
        if verdict.silent_ms:
            return True  # never answered: the client's own time-out ends it
        if verdict.drop_answer:
            who.mark(request.id, LOST_MS)
        elif verdict.latency_ms:
            who.mark(request.id, verdict.latency_ms)
        error = self._error(call, verdict)
        if error is not None:
            who.reply(request.id, *wire.error_status(error))
        return error is not None

    def _error(self, call: Call, verdict: Verdict) -> YunheError | None:
        if verdict.full:
            return Full("the disk under the volume is full")
        if verdict.broken:
            return Unavailable("the volume has I/O errors (EIO)")
        words = self.gate.words(verdict, control=call.service == "compute").error
        if words is None:
            return None
        status, code = words
        if call.service == "volumes":
            return Unavailable(f"the volume has I/O errors ({code})")
        said = f"the cloud's API answered {status} {code} to {call.verb}"
        return Invalid(said, hint="its credentials are refused") if status in (401, 403) else Unavailable(said)


def _call(who: Connection, request: Request) -> Call | None:
    verb = _DEVICE.get(request.op)
    if verb is not None:
        size = 0
        if request.op == Op.WRITE:
            size = len(request.payload)
        elif request.op == Op.WRITE_SHARED:
            size = request.second & 0xFFFFFFFF
        elif request.op == Op.READ:
            size = min(request.second, wire.PAYLOAD_BYTES_MAX)
        return Call("volumes", verb, who.zone, size)
    if request.op == Op.OPEN:
        return Call("volumes", "open", _zone(request))
    verb = _API.get(request.op)
    return None if verb is None else Call("compute", verb, _zone(request))


def _zone(request: Request) -> str:
    """The zone that a request names, "" when it names none or is malformed."""
    try:
        plain: Any = wire.decode(request.payload)
        return str(plain.get("zone", ""))
    except (Invalid, AttributeError):
        return ""
