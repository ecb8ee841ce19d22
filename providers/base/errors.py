"""The few kinds of error, by what the caller must do.

YunheError
├── Conflict        somebody else was first: re-read, decide again
│   ├── AlreadyExists     a create-if-absent found the name taken
│   └── WrongOffset       an append's offset is not the object's size
├── Fenced          this owner is no longer the owner: stop, for good
├── Unavailable     the far side did not do it, or did not answer: back off and retry
│   └── OutcomeUnknown    it may or may not have happened; read back before concluding anything
├── NotFound        no such object, volume, topic …
├── Invalid         the input is wrong: fix it; nothing was changed
├── Corrupt         stored bytes fail their check: do not serve them; repair
├── Full            no room, and nothing was overwritten: push back
└── Internal        a bug here

SDK exceptions are translated into these in `providers/` only, and chained. Log where handled, not where raised.
"""

from __future__ import annotations

from typing import Any


class YunheError(Exception):
    """Base of all expected errors.

    `message` is one clear sentence; `hint`, where there is one, says what to do about it; `fields` hold the values
    (path,
    epoch, expected, actual) for logs and for `-o json`.
    """

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __str__(self) -> str:
        return self.message


class Conflict(YunheError):
    """Somebody else was first: re-read, decide again."""


class AlreadyExists(Conflict):
    """A create-if-absent found the name taken. It may be the caller's own earlier attempt: read back and compare
    ids.
    """


class WrongOffset(Conflict):
    """An append's offset is not the object's size. It may be the caller's own earlier attempt: compare the content."""


class Fenced(YunheError):
    """This owner is no longer the owner. Terminal for the epoch that met it."""


class Unavailable(YunheError):
    """The far side refused for now or could not be reached; nothing was changed there. Back off and retry."""


class OutcomeUnknown(Unavailable):
    """The request was sent and its answer lost (time-out, reset, 5xx, GCS's 429): it may have happened, or happen
    later.
    """


class NotFound(YunheError):
    """No such object, volume, topic or process."""


class Invalid(YunheError):
    """The input is wrong and nothing was changed."""


class Corrupt(YunheError):
    """Stored bytes fail their check. They are never served."""


class Full(YunheError):
    """No room; nothing was overwritten and nothing acked."""


class Internal(YunheError):
    """A bug here: an invariant does not hold."""


def invariant(condition: bool, message: str, **values: Any) -> None:
    """Assert what must hold even under `python -O`. Never for user input, which is `Invalid`.

    Raises:
        Internal: when `condition` is false; `values` are appended to the message.
    """
    if not condition:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise Internal(f"{message} ({shown})" if shown else message, **values)
