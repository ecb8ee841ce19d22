"""What `yunhe lab …` does: a shell over `providers.lab.running`, with the state directory's rules."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.cli import output
from controlplane.cli.lab_text import clouds_text, faults_text, meter_text, status_text
from controlplane.cli.output import Format
from controlplane.server.files import StateDir
from providers.base.errors import Conflict, Invalid, NotFound, Unavailable, YunheError
from providers.lab import environment
from providers.lab.fault import Kind
from providers.lab.latency import described, duration_ms, profile
from providers.lab.launcher import LabCloud
from providers.lab.outages import Outage
from providers.lab.processes import resident_bytes
from providers.lab.running import DEFAULT_CLOUDS, RunningCloud, RunningLab, parse_cloud


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """Options of `yunhe lab fault add`, as they were written."""

    service: str
    verb: str
    zone: str
    rate: float
    seed: int
    latency: str
    status: int
    code: str
    requests_s: float
    bytes_s: str
    skew: str

    def fields(self) -> dict[str, Any]:
        """As a fault has them; what was not given is left out.

        Raises:
            Invalid: a size or a duration that is none.
        """
        made: dict[str, Any] = {
            "service": self.service,
            "verb": self.verb,
            "zone": self.zone,
            "latency": self.latency,
            "status": self.status,
            "code": self.code,
            "requests_s": self.requests_s,
            "bytes_s": _bytes(self.bytes_s),
            "skew_ms": _signed_ms(self.skew),
            "seed": self.seed,
        }
        return {**{name: value for name, value in made.items() if value}, "rate": self.rate}


def up(
    state_dir: StateDir,
    spec: Sequence[Path],
    named: Sequence[str],
    *,
    latency: str | None,
    control: bool,
    timeout_s: float,
    form: Format,
) -> None:
    """Start emulated clouds.

    Raises:
        Invalid: a cloud, the spec or the state directory is unusable; nothing was started.
        Unavailable: a process did not come up.
    """
    if latency is not None:
        profile(latency, "aws")
    wanted = _from_spec(spec) + [parse_cloud(text) for text in named]
    with state_dir.locked("lab up"):
        state_dir.create()
        running = RunningLab(state_dir.root)
        known = [found for name in running.lab.clouds() if (found := running.lab.cloud(name)) is not None]
        chosen = wanted or known or list(DEFAULT_CLOUDS)
        before = {record.pid for record in running.table.records() if running.table.alive(record.name)}
        clouds = running.up(chosen, timeout_s=timeout_s, control=control)
        started = sum(r.pid not in before for cloud in clouds for r in cloud.processes().values())
        for cloud in clouds:
            if latency is not None:
                cloud.set_latency(latency)
    what = f"started {started} processes" if started else "nothing to do: all of it runs already"
    output.progress(f"{what} in {state_dir.root}")
    if latency == "real":
        for cloud in clouds:
            for row in described(profile("real", cloud.address.provider)):
                output.progress(
                    f"{cloud.name} {row['service']} {row['verbs']}: {row['latency']} "
                    f"(“{row['words']}”, {row['source']}; confidence {row['confidence']})"
                )
    shown = [environment.described(cloud.address) for cloud in clouds]
    output.data({"clouds": shown}, form, clouds_text(shown))


def down(state_dir: StateDir, *, purge: bool) -> None:
    """Stop emulated clouds; with `purge`, remove their data too.

    Raises:
        Conflict: brokers or a control plane work on them.
        Unavailable: a process outlived SIGKILL.
    """
    if not state_dir.exists():
        output.progress(f"nothing was started in {state_dir.root}")
        return
    state_dir.check()
    with state_dir.locked("lab down"):
        running = RunningLab(state_dir.root)
        if purge and state_dir.store.exists():
            raise Conflict(
                f"{state_dir.root} holds what yunhe up has made, and these clouds are where its data are",
                hint="remove all of it with yunhe down --purge",
            )
        ended = running.down()
        if purge:
            shutil.rmtree(state_dir.root / "lab", ignore_errors=True)
            state_dir.purge()
    what = "data removed" if purge else f"data stay in {state_dir.root}"
    output.progress(f"stopped {ended} processes; {what}" if ended else f"nothing was running; {what}")


def status(state_dir: StateDir, *, form: Format) -> None:
    """Show it."""
    state_dir.check()
    shown = {"clouds": [_cloud_status(cloud) for cloud in RunningLab(state_dir.root).clouds()]}
    output.data(shown, form, status_text(shown))


def _cloud_status(cloud: RunningCloud) -> dict[str, Any]:
    alive = cloud.processes()
    endpoints = environment.described(cloud.address)["endpoints"]
    processes = [
        {
            "name": what,
            "pid": alive[what].pid if what in alive else None,
            "memory_bytes": resident_bytes(alive[what].pid) if what in alive else None,
            "address": address,
            "state": "Running" if what in alive else "Stopped",
            "log": alive[what].log if what in alive else None,
        }
        for what, address in endpoints.items()
        if address is not None
    ]
    shown: dict[str, Any] = {
        "name": cloud.name,
        "provider": cloud.address.provider,
        "region": cloud.address.region,
        "zones": list(cloud.address.zones),
        "processes": processes,
        "latency": None,
        "faults": [],
        "meter": None,
        "sentence": "it does not run",
    }
    if not alive:
        return shown
    try:
        bill = cloud.bill(cloud.meter(since_reset=True))
        requests = {name: round(per_s * bill.elapsed_s) for name, per_s in bill.per_second.items()}
        used = {"elapsed_s": bill.elapsed_s, "requests": requests, "usd": bill.usd}
        shown |= {"latency": cloud.latency(), "faults": cloud.faults(), "meter": used, "sentence": "it answers"}
    except YunheError as error:
        shown["sentence"] = error.message
    return shown


def env(state_dir: StateDir, name: str | None, *, form: Format) -> None:
    """Print one cloud's environment variables."""
    cloud = _one(state_dir, name)
    output.data(cloud.environment, form, environment.exports(cloud.environment))


def meter(state_dir: StateDir, name: str | None, *, since_reset: bool, reset: bool, form: Format) -> None:
    """Show, and with `reset` restart, the meters."""
    shown = []
    for cloud in _running(state_dir, name):
        counted = cloud.reset_meter() if reset else cloud.meter(since_reset=since_reset)
        bill = cloud.bill(counted)
        plain = {"name": cloud.name, "provider": cloud.address.provider, **counted, "bill": bill.plain()}
        shown.append(plain)
    total = sum(one["bill"]["usd"] for one in shown)
    output.data({"clouds": shown, "usd": total}, form, meter_text(shown, total))


# ---- faults


def fault_add(
    state_dir: StateDir, kind: Kind, name: str | None, for_: str, options: FaultOptions, *, form: Format
) -> None:
    """Set one fault."""
    fields, for_s = options.fields(), duration_ms(for_) / 1000
    cloud = _one(state_dir, name)
    made = cloud.fault(kind.value, for_s=for_s, **fields)
    _said(cloud, [made], form)


def fault_outage(
    state_dir: StateDir,
    outage: Outage,
    name: str | None,
    for_: str,
    zones: Sequence[str],
    seed: int,
    *,
    form: Format,
) -> None:
    """Rehearse an outage."""
    for_s = duration_ms(for_) / 1000
    cloud = _one(state_dir, name)
    _said(cloud, cloud.outage(outage.name, for_s=for_s, zones=zones, seed=seed), form)


def _said(cloud: RunningCloud, ids: Sequence[str], form: Format) -> None:
    made = [{"cloud": cloud.name, **one} for one in cloud.faults() if one["id"] in ids]
    output.data({"faults": made}, form, faults_text(made))


def fault_list(state_dir: StateDir, name: str | None, *, form: Format) -> None:
    """Show them."""
    made = [{"cloud": cloud.name, **one} for cloud in _running(state_dir, name) for one in cloud.faults()]
    output.data({"faults": made}, form, faults_text(made))


def fault_clear(state_dir: StateDir, name: str | None, ids: Sequence[str] | None, *, form: Format) -> None:
    """End faults.

    Raises:
        NotFound: no cloud has a fault of that id; nothing was cleared.
    """
    clouds = _running(state_dir, name)
    here = {cloud.name: [str(one["id"]) for one in cloud.faults()] for cloud in clouds}
    for one in ids or ():
        if not any(_is(found, one) for found_here in here.values() for found in found_here):
            known = ", ".join(sorted({i for found in here.values() for i in found})) or "none"
            raise NotFound(f"no fault is named {one}", hint=f"there are: {known}")
    cleared = []
    for cloud in clouds:
        mine = [i for i in here[cloud.name] if ids is None or any(_is(i, one) for one in ids)]
        if mine:
            cleared += [{"cloud": cloud.name, "id": i} for i in cloud.clear(mine)]
    text = "\n".join(f"cleared {one['id']} of {one['cloud']}" for one in cleared) or "there was none"
    output.data({"cleared": cleared}, form, text)


def _is(found: str, asked: str) -> bool:
    """An outage's faults are named after it, with a number."""
    return found == asked or found.startswith(f"{asked}.")


# ---- which clouds


def _from_spec(spec: Sequence[Path]) -> list[LabCloud]:
    if not spec:
        return []
    from controlplane.api.load import load_texts
    from controlplane.cli.plans import read_texts

    clouds = load_texts(read_texts(spec)).clouds
    made = [
        LabCloud(name, cloud.spec.provider, cloud.spec.region, cloud.spec.zones)
        for name, cloud in clouds.items()
        if cloud.spec.target == "lab"
    ]
    if not made:
        raise Invalid("the spec has no Cloud whose target is lab", hint="target: lab is the default")
    return made


def _running(state_dir: StateDir, name: str | None) -> list[RunningCloud]:
    state_dir.check()
    running = RunningLab(state_dir.root)
    if name is not None:
        return [running.cloud(name)]
    clouds = [cloud for cloud in running.clouds() if cloud.processes()]
    if not clouds:
        raise Unavailable(f"no emulated cloud runs in {state_dir.root}", hint="start some with yunhe lab up")
    return clouds


def _one(state_dir: StateDir, name: str | None) -> RunningCloud:
    clouds = _running(state_dir, name)
    if len(clouds) > 1:
        names = ", ".join(cloud.name for cloud in clouds)
        raise Invalid("more than one cloud is up", hint=f"say which with --cloud: {names}")
    return clouds[0]


def _bytes(text: str) -> float:
    from controlplane.api.quantities import Refused, parse_bytes

    if not text:
        return 0.0
    try:
        return float(parse_bytes(text))
    except Refused as error:
        raise Invalid(str(error), hint=error.hint) from error


def _signed_ms(text: str) -> float:
    sign = -1 if text.startswith("-") else 1
    return sign * duration_ms(text.lstrip("+-")) if text else 0.0
