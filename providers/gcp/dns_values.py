"""Names and values as Cloud DNS writes them, and as the contract does: names without the trailing dot, TXT unquoted."""

from __future__ import annotations

import ipaddress
import re

from providers.base.errors import Invalid

TXT_STRING_BYTES_MAX = 255
"""RFC 1035 §3.3: a TXT record is one or more strings of at most 255 bytes."""

_LABEL = re.compile(r"(\*|[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"\s*')


def canonical_name(name: str) -> str:
    """Lower case, without the trailing dot.

    Raises:
        Invalid: no domain name.
    """
    plain = name.lower().removesuffix(".")
    labels = plain.split(".")
    if len(plain) > 253 or not plain or not all(_LABEL.fullmatch(label) for label in labels) or "*" in labels[1:]:
        raise Invalid(f"{name!r} is no domain name", hint="labels of letters, digits and hyphens, joined by dots")
    return plain


def to_wire(type: str, value: str) -> str:
    """A value as an `rrdatas` entry.

    Raises:
        Invalid: no value of that type.
    """
    if type in ("A", "AAAA"):
        return _address(type, value)
    if type == "CNAME":
        return f"{canonical_name(value)}."
    if type == "SRV":
        parts = value.split()
        if len(parts) != 4 or not all(part.isdigit() and int(part) <= 65535 for part in parts[:3]):
            raise Invalid(f"{value!r} is no SRV value", hint="priority weight port target")
        target = "." if parts[3] == "." else f"{canonical_name(parts[3])}."
        return " ".join([*parts[:3], target])
    data = value.encode()
    pieces = [data[at : at + TXT_STRING_BYTES_MAX] for at in range(0, len(data), TXT_STRING_BYTES_MAX)] or [b""]
    return " ".join(f'"{_escaped(piece)}"' for piece in pieces)


def from_wire(type: str, data: str) -> str:
    """An `rrdatas` entry in the contract's form."""
    if type == "CNAME":
        return data.lower()
    if type == "SRV":
        head, _, target = data.rpartition(" ")
        return f"{head} {target.lower()}"
    if type != "TXT":
        return data
    strings = _STRING.findall(data)
    return "".join(_unescaped(each) for each in strings) if strings else data


def _address(type: str, value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise Invalid(f"{value!r} is no IP address") from error
    if (address.version == 4) != (type == "A"):
        raise Invalid(f"{value} is an IPv{address.version} address, which a record of type {type} does not hold")
    return str(address)


def _escaped(piece: bytes) -> str:
    # RFC 1035 §5.1: quotes and backslashes are escaped, and what is not printable is written in decimal.
    return "".join(
        f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}" for byte in piece
    )


def _unescaped(text: str) -> str:
    found = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 4].isdigit() and len(text[at + 1 : at + 4]) == 3:
            found.append(int(text[at + 1 : at + 4]) & 255)
            at += 4
            continue
        at += text[at] == "\\"
        found += text[at].encode()
        at += 1
    return found.decode(errors="replace")
