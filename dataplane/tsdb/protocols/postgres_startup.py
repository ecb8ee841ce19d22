"""What a client says of itself when it connects: who it is, which database it wants, and its settings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from dataplane.tsdb.protocols import postgres_messages as messages

_OURS = ("user", "database", "options", "replication")
_OPTION = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Startup:
    """A StartupMessage."""

    user: str
    database: str
    """Empty: it names none."""
    settings: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    """Options of newer protocols."""


def read(first: messages.First) -> Startup:
    """Raises Violation: another protocol, or nobody."""
    if first.code >> 16 != 3:
        said = f"{first.code >> 16}.{first.code & 0xFFFF}"
        raise messages.Violation(f"unsupported frontend protocol {said}: server supports 3.0", "0A000")
    found = messages.startup_parameters(first.body)
    user = found.get("user", "")
    if not user:
        raise messages.Violation("no PostgreSQL user name specified in startup packet", "28000")
    if found.get("replication", "off").lower() not in ("off", "false", "no", "0"):
        raise messages.Violation("replication is not there", "0A000")
    settings = [(name, value) for name, value in found.items() if name not in _OURS and not name.startswith("_pq_.")]
    return Startup(
        user,
        found.get("database", ""),
        (*_options(found.get("options", "")), *settings),
        tuple(name for name in found if name.startswith("_pq_.")),
    )


def _options(written: str) -> list[tuple[str, str]]:
    """Of `-c name=value --name=value`."""
    try:
        words = shlex.split(written)
    except ValueError:
        raise messages.Violation("the options of the startup packet cannot be read", "22023") from None
    found = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "-c" and at + 1 < len(words):
            at += 1
            word = words[at]
        elif word.startswith(("-c", "--")):
            word = word[2:]
        else:
            word = ""
        match = _OPTION.fullmatch(word)
        if match is None:
            raise messages.Violation("of the startup packet's options only -c name=value is there", "22023")
        found.append((match[1], match[2]))
        at += 1
    return found
