"""Entries, and the state machine that folds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from providers.base.errors import Corrupt

ENTRY_BYTES_MAX = 4 << 20
"""An entry goes into one single-request upload on every cloud."""

Command = dict[str, Any]
"""A JSON object; its `kind` names it. `commands.py` builds the cell's."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Who appends. `incarnation` is fresh for each process start; a writer has one append in flight (rule 2)."""

    name: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the log."""

    seq: int
    id: str
    """Random, fresh for each *proposal*: a retry of the same bytes under the same name keeps it, anything else gets a
    new one.
    """
    writer: Writer
    term: int
    """The controller's term that the writer knew; the fold decides whether it matters."""
    commands: tuple[Command, ...]
    level: int = 1
    """Feature level. A reader that does not know it stops; it does not skip."""

    def encode(self) -> bytes:
        return json.dumps(
            {
                "level": self.level,
                "seq": self.seq,
                "id": self.id,
                "writer": self.writer.name,
                "incarnation": self.writer.incarnation,
                "term": self.term,
                "commands": self.commands,
            },
            separators=(",", ":"),
        ).encode()

    @staticmethod
    def decode(data: bytes) -> Entry:
        """Raises Corrupt when the bytes are not an entry."""
        try:
            plain = json.loads(data)
            return Entry(
                seq=int(plain["seq"]),
                id=str(plain["id"]),
                writer=Writer(str(plain["writer"]), str(plain["incarnation"])),
                term=int(plain["term"]),
                commands=tuple(plain["commands"]),
                level=int(plain["level"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"not a ledger entry: {error}") from error


S = TypeVar("S")


class StateMachine(Protocol[S]):
    """A pure fold. `apply` may change `state` in place, but depends on nothing except its arguments."""

    level_max: int
    """Greatest feature level this code understands."""

    def initial(self) -> S: ...

    def apply(self, state: S, entry: Entry) -> Sequence[str | None]:
        """Fold one entry in; for each command None when accepted, else one sentence saying why it was rejected.

        Raises:
            Internal: a command of unknown kind: the reader stops.
        """
        ...

    def dump(self, state: S) -> Any:
        """The state as plain JSON values, for a snapshot."""
        ...

    def load(self, plain: Any) -> S: ...
