"""How the CLI speaks: data on stdout as text, JSON or YAML; progress and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NoReturn

from providers.base.errors import YunheError


class Format(StrEnum):
    """Form of what is printed on stdout."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


def data(value: Any, form: Format, text: str) -> None:
    """Print `value` as JSON or YAML, or else `text`."""
    if form is Format.JSON:
        _out(json.dumps(value, indent=2, ensure_ascii=False))
    elif form is Format.YAML:
        import yaml

        _out(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n"))
    else:
        _out(text.rstrip("\n"))


def _out(text: str) -> None:
    # Bytes: a terminal in the C locale must not turn a name into a traceback.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


def progress(text: str) -> None:
    """One line about what is being done."""
    sys.stderr.buffer.write(text.encode() + b"\n")
    sys.stderr.buffer.flush()


def error(message: str, hint: str | None = None) -> None:
    """`error: …`, and after a blank line `hint: …`. A message of several lines lists several errors, each a line of its
    own.
    """
    lines = [f"error: {line}" for line in message.splitlines() or ["unknown"]]
    if hint:
        lines += ["", f"hint: {hint}"]
    progress("\n".join(lines))


def fail(message: str, hint: str | None = None) -> NoReturn:
    """Give up with one sentence."""
    raise YunheError(message, hint=hint)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, two spaces apart; readable without colour."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fields(pairs: Mapping[str, str]) -> str:
    """`name  value`, a line each."""
    width = max((len(name) for name in pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs.items())


def quiet_pipe() -> None:
    """After the reader of stdout has gone (`| head`), let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
