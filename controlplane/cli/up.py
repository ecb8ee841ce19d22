"""`yunhe up SPEC`: check the spec, start what does not run, apply, wait for Ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controlplane.cli import output
from controlplane.cli.client import Client
from controlplane.cli.lab import Launch, cells_of
from controlplane.cli.output import Format
from controlplane.cli.plans import read_texts
from controlplane.cli.status import render
from controlplane.cli.watch import follow, wait_ready
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock


def up(state_dir: StateDir, spec: Sequence[Path], *, timeout_s: float, form: Format) -> None:
    """Bring a spec up in the lab.

    Raises:
        Invalid: the spec or the state directory is unusable; nothing was started.
        Unavailable: not all is Ready in time; what was begun goes on.
    """
    from controlplane.cli.plans import desired_after

    clock = SystemClock()
    began_ms = clock.monotonic_ms()
    texts = read_texts(spec)
    desired = desired_after(state_dir, texts)
    cells = cells_of(desired)
    with state_dir.locked("up"):
        state_dir.create()
        launch = Launch(state_dir)
        launch.all(cells, timeout_s=timeout_s)
        if launch.started:
            clouds = f"{len(cells)} cloud{'s' if len(cells) != 1 else ''}"
            output.progress(f"started {len(launch.started)} processes for {clouds} in {state_dir.root}")
        client = Client(state_dir)

        def left_s() -> float:
            return max(1.0, timeout_s - (clock.monotonic_ms() - began_ms) / 1000)

        shown = client.plan(texts)
        if shown["empty"]:
            output.progress("nothing to apply" if launch.started else "nothing to do: it is up already")
        else:
            output.progress(shown["text"])
            follow(client, client.apply(shown["hash"]), timeout_s=left_s())
        status = wait_ready(client, timeout_s=left_s())
    output.progress(f"all Ready after {(clock.monotonic_ms() - began_ms) / 1000:.1f} s")
    output.data(status, form, render(status))
