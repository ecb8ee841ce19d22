"""An agent's mailbox and its reports: two ledgers an agent, the only way between a control plane and a cell.

    agents/<agent>/mailbox/ledger/…   assignment-published (by control planes), mailbox-claimed (by the agent)
    agents/<agent>/reports/ledger/…   report-published (by the agent)

The fold skips an assignment whose generation is not above the greatest so far, so that a control plane with a stale
read, or a late create, changes nothing. Mailbox entries are collected only up to what the
agent has reported as carried out (a whole segment behind two snapshots that the *agent* makes), so that an agent never
waits for a name that is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataplane.contract.assignment import AgentReport, Assignment, Generation
from dataplane.contract.codec import from_plain, to_plain
from dataplane.ledger.entry import Command, Entry, Writer
from dataplane.ledger.log import Ledger
from providers.base.clock import Clock, Rng
from providers.base.errors import Conflict, Internal
from providers.base.objects import ObjectStore


def mailbox_prefix(agent: str) -> str:
    """Where the agent's mailbox is in its cell's bucket."""
    return f"agents/{agent}/mailbox"


def reports_prefix(agent: str) -> str:
    """Where the agent's reports are."""
    return f"agents/{agent}/reports"


@dataclass(slots=True)
class MailboxState:
    """`claimed_by`: the newest incarnation of the agent. `newest`: the assignment with the greatest generation."""

    claimed_by: str | None = None
    newest: Assignment | None = None

    @property
    def generation(self) -> Generation | None:
        return self.newest.generation if self.newest is not None else None


class MailboxMachine:
    """`StateMachine[MailboxState]`."""

    level_max = 1

    def initial(self) -> MailboxState:
        return MailboxState()

    def apply(self, state: MailboxState, entry: Entry) -> Sequence[str | None]:
        return [self._apply(state, command, entry) for command in entry.commands]

    def _apply(self, state: MailboxState, command: Command, entry: Entry) -> str | None:
        match command["kind"]:
            case "assignment-published":
                assignment = from_plain(Assignment, command["assignment"])
                if state.generation is not None and assignment.generation <= state.generation:
                    return f"generation {assignment.generation} is not above {state.generation}"
                state.newest = assignment
            case "mailbox-claimed":
                state.claimed_by = command["incarnation"]
            case other:
                raise Internal(f"mailbox entry {entry.seq} has a command {other!r} that this version does not know")
        return None

    def dump(self, state: MailboxState) -> Any:
        return {"claimed_by": state.claimed_by, "newest": to_plain(state.newest)}

    def load(self, plain: Any) -> MailboxState:
        newest = plain["newest"]
        return MailboxState(plain["claimed_by"], from_plain(Assignment, newest) if newest is not None else None)


class ReportMachine:
    """`StateMachine` whose state is the newest report, in a list of at most one."""

    level_max = 1

    def initial(self) -> list[AgentReport]:
        return []

    def apply(self, state: list[AgentReport], entry: Entry) -> Sequence[str | None]:
        for command in entry.commands:
            if command["kind"] != "report-published":
                raise Internal(f"report entry {entry.seq} has a command {command['kind']!r} that is not known here")
            state[:] = [from_plain(AgentReport, command["report"])]
        return [None] * len(entry.commands)

    def dump(self, state: list[AgentReport]) -> Any:
        return to_plain(state)

    def load(self, plain: Any) -> list[AgentReport]:
        return [from_plain(AgentReport, item) for item in plain]


def open_mailbox(store: ObjectStore, agent: str, writer: Writer, *, clock: Clock, rng: Rng) -> Ledger[MailboxState]:
    """The agent's mailbox, for reading and appending; call `open` before use."""
    return Ledger(store, mailbox_prefix(agent), MailboxMachine(), writer, clock=clock, rng=rng)


def open_reports(
    store: ObjectStore, agent: str, writer: Writer, *, clock: Clock, rng: Rng
) -> Ledger[list[AgentReport]]:
    """The agent's reports; call `open` before use."""
    return Ledger(store, reports_prefix(agent), ReportMachine(), writer, clock=clock, rng=rng)


async def publish(mailbox: Ledger[MailboxState], assignment: Assignment) -> None:
    """Append an assignment.

    Raises:
        Conflict: its generation is not above the mailbox's newest: the publisher's store is behind.
        Unavailable: the bucket does not answer; it may have been appended.
    """
    plain = to_plain(assignment)
    appended = await mailbox.append(lambda state: [{"kind": "assignment-published", "assignment": plain}])
    if appended is not None and appended.rejections[0] is not None:
        raise Conflict(f"the mailbox of agent {assignment.agent} refuses an assignment: {appended.rejections[0]}")


async def claim(mailbox: Ledger[MailboxState], incarnation: str) -> None:
    """The agent process says that it is the one now; an earlier one that reads this stops its processes."""
    await mailbox.append(lambda state: [{"kind": "mailbox-claimed", "incarnation": incarnation}])


async def report(reports: Ledger[list[AgentReport]], what: AgentReport) -> None:
    """Append a report."""
    plain = to_plain(what)
    await reports.append(lambda state: [{"kind": "report-published", "report": plain}])
