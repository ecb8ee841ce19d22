"""What an agent must remember over its own death: the assignment, and which process is which broker or database."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dataplane.contract.assignment import Assignment, SparesWanted
from dataplane.contract.codec import from_json, to_json
from providers.base.errors import Corrupt, Invalid
from providers.base.files import replace_file


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A broker's or a database's process. A pid is reused by the kernel, pid and start time together are not."""

    port: int
    """The Kafka or HTTP port, picked once, so that a restarted process keeps its address."""
    pid: int | None = None
    start_time: int | None = None
    """Field 22 of /proc/<pid>/stat: clock ticks since boot."""
    mysql_port: int = 0
    """Of a cloud database's node, picked once."""
    postgres_port: int = 0
    """The same; 0 of one that was started before there was one, until it is started anew."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Everything in it is written before it is acted on."""

    assignment: Assignment | None = None
    processes: dict[str, ProcessRecord] = field(default_factory=dict)
    """By broker name."""
    databases: dict[str, ProcessRecord] = field(default_factory=dict)
    """By node name."""
    spares: SparesWanted = field(default_factory=SparesWanted)
    """The newest word that a broker passed on of how many spare ones shall run."""


class JournalFile:
    """The journal on disk: replaced as a whole, durable when `save` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Journal:
        """The journal, empty when there is none.

        Raises:
            Corrupt: it cannot be read as one.
        """
        try:
            return from_json(Journal, self._path.read_bytes())
        except FileNotFoundError:
            return Journal()
        except Invalid as error:
            raise Corrupt(
                f"{self._path} is not an agent's journal: {error}",
                hint="move it away; the agent then starts from its mailbox, and new brokers fence the running ones",
            ) from error

    def save(self, journal: Journal) -> None:
        replace_file(self._path, to_json(journal), durable=True)
