"""`yunhe down`: stop what runs under a state directory, by pid and start time, and nothing else."""

from __future__ import annotations

from controlplane.cli import output
from controlplane.cli.lab import stop_everything
from controlplane.server.files import StateDir
from providers.base.errors import Unavailable


def down(state_dir: StateDir, *, purge: bool) -> None:
    """Stop everything; with `purge`, remove the state directory too.

    Raises:
        Unavailable: a process outlived SIGKILL.
        Invalid, Conflict: the state directory is another version's, or in use by another command.
    """
    if not state_dir.exists():
        output.progress(f"nothing was started in {state_dir.root}")
        return
    state_dir.check()
    with state_dir.locked("down"):
        ended, stuck = stop_everything(state_dir)
        if stuck:
            pids = ", ".join(str(p.pid) for p in stuck)
            raise Unavailable(
                f"{len(stuck)} processes outlived SIGKILL: {pids}", hint="they are stuck in the kernel; try again"
            )
        state_dir.ready.unlink(missing_ok=True)
        if purge:
            state_dir.purge()
    what = "data removed" if purge else f"data stays in {state_dir.root}"
    output.progress(f"stopped {ended} processes; {what}" if ended else f"nothing was running; {what}")
