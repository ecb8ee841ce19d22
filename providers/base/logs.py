"""Log lines: time, level, a constant event, then keys — `2026-11-24T02:03:04.567 WARNING fenced victims=[2]
reason=silent`.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """The event is the message; whatever was given as `extra` follows as key=value."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        keys = [f"{k}={v}" for k, v in vars(record).items() if k not in _STANDARD]
        line = " ".join([self.formatTime(record), record.levelname, record.getMessage(), *keys])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def say_error(error: Exception) -> None:
    """On standard error, why a process of ours could not start: one sentence and, after a blank line, the hint."""
    hint = getattr(error, "hint", None)
    print(f"error: {error}" + (f"\n\nhint: {hint}" if hint else ""), file=sys.stderr)


def configure(level: int = logging.INFO, stream: TextIO = sys.stderr) -> None:
    """Set up logging of a process of ours; libraries speak only from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("controlplane", "dataplane", "providers"):
        logging.getLogger(ours).setLevel(level)
