"""What every DNS adapter checks of a record set before anything is sent, and how TXT values are quoted."""

from __future__ import annotations

import ipaddress
import re

from providers.base.dns import TYPES, RecordSet
from providers.base.errors import Invalid

TTL_S_MAX = 2**31 - 1
"""RFC 2181, section 8."""
NAME_BYTES_MAX = 253
VALUES_MAX = 100
"""Of one set: the smallest of the clouds' quotas."""
TXT_STRING_BYTES_MAX = 255
"""Of one character string (RFC 1035, section 3.3); a longer value is several, side by side."""

_LABEL = re.compile(r"(\*|[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)")


def check_zone(zone: str) -> str:
    """The zone's name, lower case and without the trailing dot.

    Raises:
        Invalid: it is no domain name.
    """
    plain = zone.lower().rstrip(".")
    _check_name(plain)
    return plain


def check_name(name: str, type: str, zone: str) -> None:
    """
    Raises:
        Invalid: no name in that zone, or not one of TYPES.
    """
    if type not in TYPES:
        raise Invalid(f"records of type {type} are not set here", hint=f"one of: {', '.join(TYPES)}")
    _check_name(name)
    if name != zone and not name.endswith("." + zone):
        raise Invalid(f"{name} is not in zone {zone}")


def check_record(record: RecordSet, zone: str) -> None:
    """
    Raises:
        Invalid: a name outside the zone, no values, a value that is none of its type, a TTL out of range.
    """
    check_name(record.name, record.type, zone)
    if not 0 <= record.ttl_s <= TTL_S_MAX:
        raise Invalid(f"{record.name}: a TTL of {record.ttl_s} s is not possible", hint=f"0 to {TTL_S_MAX}")
    if not 1 <= len(record.values) <= VALUES_MAX or len(set(record.values)) != len(record.values):
        hint = "delete the set to have none"
        raise Invalid(f"{record.name}: a set has 1 to {VALUES_MAX} different values", hint=hint)
    if record.type == "CNAME" and len(record.values) != 1:
        raise Invalid(f"{record.name}: a CNAME has one value")
    for value in record.values:
        _check_value(record.type, value)


def normal(record: RecordSet) -> RecordSet:
    """As `Dns` shows it: values sorted, names in lower case without the trailing dot."""
    values = [value if record.type == "TXT" else _plain(record.type, value) for value in record.values]
    return RecordSet(record.name.lower().rstrip("."), record.type, record.ttl_s, tuple(sorted(values)))


def quote_txt(value: str) -> str:
    """As a zone file has it: character strings in quotation marks, up to 255 bytes each."""
    parts = [value[at : at + TXT_STRING_BYTES_MAX] for at in range(0, len(value), TXT_STRING_BYTES_MAX)] or [""]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)


def unquote_txt(text: str) -> str:
    """The value of `quote_txt`'s text, or of what else a zone file may hold (unquoted strings, \\DDD escapes)."""
    found: list[str] = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', text):
        found.append(re.sub(r"\\(\d{3}|.)", _unescaped, quoted or bare))
    return "".join(found)


def _unescaped(match: re.Match[str]) -> str:
    escape = match.group(1)
    return chr(int(escape)) if len(escape) == 3 else escape


def _check_name(name: str) -> None:
    labels = name.split(".")
    wild = any(label == "*" for label in labels[1:])
    if len(name) > NAME_BYTES_MAX or wild or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(f"{name!r} is no domain name", hint="lower case, without the trailing dot")


def _check_value(type: str, value: str) -> None:
    try:
        match type:
            case "A":
                ipaddress.IPv4Address(value)
            case "AAAA":
                ipaddress.IPv6Address(value)
            case "CNAME":
                _check_name(_plain(type, value))
            case "SRV":
                numbers, target = value.split()[:3], value.split()[3:]
                if len(target) != 1 or not all(n.isdigit() and int(n) < 1 << 16 for n in numbers):
                    raise ValueError(value)
                if target != ["."]:
                    _check_name(target[0].lower().rstrip("."))
            case "TXT":
                if not value.isascii() or not value.isprintable():
                    raise ValueError(value)
    except ValueError as error:
        raise Invalid(f"{value!r} is no value of a record of type {type}") from error


def _plain(type: str, value: str) -> str:
    if type == "AAAA":
        return str(ipaddress.IPv6Address(value))
    if type == "SRV":
        *numbers, target = value.split()
        return " ".join([*numbers, target.lower().rstrip(".") or "."])
    return value.lower().rstrip(".") if type == "CNAME" else value
