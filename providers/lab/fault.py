"""One fault: what it does to which requests, for how long, and whether that makes sense.

Everything about a fault is plain data, so that it travels to a process, is kept in a file and is shown in `status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from providers.base.errors import Invalid
from providers.lab.calls import GROUPS, SERVICES, VERB_GROUPS, VERBS
from providers.lab.latency import LATENCY_MS_MAX, Latency

FOR_MS_MAX = 86_400_000.0
"""A fault ends by itself, at the latest after a day."""
HOLD_MS_DEFAULT = 60_000.0
"""How long a request that is to time out is held before its connection is cut: longer than SDKs wait."""


class Kind(StrEnum):
    """What a fault does to a request that it matches."""

    LATENCY = "latency"
    """It waits."""
    ERROR = "error"
    """It is answered with an error, and nothing is done."""
    THROTTLE = "throttle"
    """Beyond a rate of requests or bytes it is answered as this cloud throttles, and nothing is done."""
    TIMEOUT = "timeout"
    """It is accepted and never answered; nothing is done."""
    RESET = "reset"
    """Its connection is cut, and nothing is done."""
    LOST = "lost"
    """It is done, and its answer is lost."""
    ZONE_LOSS = "zone-loss"
    """What the zone holds is gone: its Express buckets, its volume attachments, and callers that stand in it."""
    CLOUD_LOSS = "cloud-loss"
    """Nobody answers."""
    CLOCK_SKEW = "clock-skew"
    """The cloud's clock is off, so that it refuses signatures as too old or too new."""
    DISK_FULL = "disk-full"
    """Writes find no room."""
    SLOW_DISK = "slow-disk"
    """Reads and writes wait for the disk; with a rate of bytes, one behind the other."""
    IO_ERROR = "io-error"
    """A volume's reads and writes fail (EIO)."""


SEVERS = frozenset({Kind.RESET, Kind.ZONE_LOSS, Kind.CLOUD_LOSS})
"""Whoever asks finds nobody."""
_DISK = frozenset({"objects", "express", "volumes"})
_WRITES = frozenset({"put", "append", "copy", "part", "upload", "write"})
_DISK_VERBS = _WRITES | {"get", "read"}
SERVICES_OF: Mapping[Kind, frozenset[str]] = {
    Kind.DISK_FULL: _DISK,
    Kind.SLOW_DISK: _DISK,
    Kind.IO_ERROR: frozenset({"volumes"}),
    Kind.CLOCK_SKEW: frozenset(SERVICES) - {"volumes"},
}
VERBS_OF: Mapping[Kind, frozenset[str]] = {
    Kind.DISK_FULL: _WRITES,
    Kind.SLOW_DISK: _DISK_VERBS,
    Kind.IO_ERROR: frozenset({"read", "write"}),
}
"""What a kind can happen to; the others: anything."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. Empty text matches anything; times are milliseconds of the wall clock."""

    id: str
    kind: Kind
    from_ms: float
    until_ms: float
    service: str = ""
    """One of SERVICES, or `control`, `data`."""
    verb: str = ""
    """One of VERBS, or `reads`, `writes`."""
    zone: str = ""
    rate: float = 1.0
    """Share of the matching requests that it happens to."""
    seed: int = 0
    latency: str = ""
    """A `Latency`. Kinds other than latency and slow-disk add it to every request that they match."""
    status: int = 0
    """HTTP status of an error; 0: the kind's own."""
    code: str = ""
    """The cloud's code of an error; empty: the cloud's usual one for that status."""
    requests_s: float = 0.0
    bytes_s: float = 0.0
    skew_ms: float = 0.0
    """How far the cloud's clock is ahead; negative: behind."""
    hold_ms: float = HOLD_MS_DEFAULT
    outage: str = ""
    """The named outage that it is a part of."""
    times: int = -1
    """How many matching requests it applies to, then it is over; -1: no such end."""
    method: str = ""
    contains: str = ""
    """HTTP method and text of the request's target, for tests that know the wire."""
    transient: bool = False
    """Forgotten with the process."""

    def __post_init__(self) -> None:
        """Raises:
        Invalid: not a fault; one sentence says what is wrong.
        """
        _check(self)

    @staticmethod
    def of(plain: Mapping[str, Any], now_ms: float) -> Fault:
        """From what travels: the fields by name; `for_ms` from `after_ms` on instead of `from_ms` and `until_ms`.

        Raises:
            Invalid: an unknown field, a value of the wrong type, no end, or no possible fault.
        """
        if not isinstance(plain, Mapping):
            raise Invalid("a fault is an object of fields")
        given = dict(plain)
        if "for_ms" in given:
            begin = now_ms + _number("after_ms", given.pop("after_ms", 0))
            given["from_ms"] = begin
            given["until_ms"] = begin + _number("for_ms", given.pop("for_ms"))
        for name in ("id", "kind", "from_ms", "until_ms"):
            if name not in given:
                hint = "every fault ends by itself: say for how long" if name.endswith("_ms") else None
                raise Invalid(f"a fault needs {'for_ms' if name.endswith('_ms') else name}", hint=hint)
        for name, value in given.items():
            if name not in _TYPES:
                raise Invalid(f"unknown field {name!r} in a fault", hint=f"one of: {', '.join(_TYPES)}")
            if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and _TYPES[name] is not bool):
                raise Invalid(f"field {name!r} of a fault has the wrong type")
        try:
            given["kind"] = Kind(given["kind"])
        except ValueError as error:
            raise Invalid(f"no kind of fault is named {given['kind']!r}", hint=f"one of: {', '.join(Kind)}") from error
        fault = Fault(**given)
        if fault.until_ms > max(now_ms, fault.from_ms) + FOR_MS_MAX:
            raise Invalid("a fault ends by itself after at most a day", hint="say a shorter time")
        return fault

    def plain(self) -> dict[str, Any]:
        """All that is not a default."""
        return {name: value for name, value in asdict(self).items() if value != _DEFAULTS.get(name)}


_DEFAULTS = {field.name: field.default for field in fields(Fault)}
_TYPES: dict[str, Any] = {
    field.name: {"str": str, "Kind": str, "int": int, "float": (int, float), "bool": bool}[str(field.type)]
    for field in fields(Fault)
}


def _number(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Invalid(f"field {name!r} of a fault has the wrong type")
    return float(value)


def _check(fault: Fault) -> None:
    kind, known = fault.kind, (*SERVICES, *GROUPS)
    if not fault.id or len(fault.id) > 64 or not fault.id.replace("-", "").replace(".", "").isalnum():
        raise Invalid(f"{fault.id!r} cannot name a fault", hint="letters, digits, - and .; at most 64")
    if fault.service and fault.service not in known:
        raise Invalid(f"no service is named {fault.service!r}", hint=f"one of: {', '.join(known)}")
    verbs = (*VERBS, *VERB_GROUPS)
    if fault.verb and fault.verb not in verbs:
        raise Invalid(f"no verb is named {fault.verb!r}", hint=f"one of: {', '.join(verbs)}")
    allowed = SERVICES_OF.get(kind)
    if allowed is not None and fault.service and not allowed & services_of(fault.service):
        raise Invalid(f"{kind} is not a fault of {fault.service}", hint=f"of: {', '.join(sorted(allowed))}")
    if not 0 <= fault.rate <= 1:
        raise Invalid(f"a rate of {fault.rate} is not a probability", hint="from 0 to 1")
    if not fault.until_ms > fault.from_ms:
        raise Invalid("a fault ends after it begins", hint="say for how long, for example 60s")
    if not 0 <= fault.hold_ms <= LATENCY_MS_MAX or fault.requests_s < 0 or fault.bytes_s < 0:
        raise Invalid("times and rates of a fault are not negative")
    latency = Latency.of(fault.latency)
    match kind:
        case Kind.LATENCY if latency is None:
            raise Invalid("a latency fault needs a latency", hint="for example 50ms, or p50=20ms,p99=150ms")
        case Kind.ERROR if not 400 <= fault.status <= 599:
            raise Invalid("an error fault needs a status from 400 to 599", hint="for example 503")
        case Kind.THROTTLE if not (fault.requests_s or fault.bytes_s):
            raise Invalid("a throttle needs a rate of requests or bytes a second")
        case Kind.ZONE_LOSS if not fault.zone:
            raise Invalid("a zone's loss needs the zone")
        case Kind.CLOCK_SKEW if not fault.skew_ms:
            raise Invalid("a clock's skew needs how far it is off", hint="for example 20m, or -20m")
        case Kind.CLOCK_SKEW if fault.zone or fault.verb or fault.rate != 1:
            raise Invalid("a cloud has one clock: its skew takes no zone, verb or rate")
        case Kind.SLOW_DISK if latency is None and not fault.bytes_s:
            raise Invalid("a slow disk needs a latency or a rate of bytes a second")


def services_of(name: str) -> frozenset[str]:
    """The services that a service or a group names."""
    return GROUPS.get(name) or frozenset({name})
