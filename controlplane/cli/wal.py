"""`yunhe wal switch CLUSTER --to MODE`: a running cluster's WAL becomes one of another mode, broker by broker, with no
failed produce. A shell over plan and apply: writing `wal.mode` into the spec does the same.
"""

from __future__ import annotations

import json
from typing import Any

from controlplane.cli import output
from controlplane.cli.client import Client
from controlplane.cli.output import Format
from controlplane.cli.watch import follow
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, sleep_blocking_ms
from providers.base.errors import Invalid, NotFound, Unavailable

MODES = ("regional-block", "block+express", "object", "zonal-block")
POLL_MS = 200


def switch(
    state_dir: StateDir, name: str, *, to: str, cloud: str | None, only_plan: bool, timeout_s: float, form: Format
) -> None:
    """Show the plan, carry it out, follow it to its end. Given again after an interruption it goes on where that
    stopped.

    Raises:
        Invalid: the cloud has not the means for that mode.
        NotFound: no such cluster.
        Unavailable: the control plane is down, or it was not done in time; it goes on.
    """
    if to not in MODES:
        raise Invalid(f"{to!r} is no WAL mode", hint=f"one of: {', '.join(MODES)}")
    client = Client(state_dir)
    cluster = _cluster(client, name, cloud)
    began_ms = SystemClock().monotonic_ms()
    try:
        shown = client.plan([(f"--to {to}", json.dumps(_with_mode(cluster, to)))])
    except Invalid as error:
        said = error.message.partition(": spec.wal: ")[2] or error.message
        hint = f"yunhe explain wal {cluster['spec']['cloud']} says what it can have"
        raise Invalid(said, hint=hint if "cannot have" in said else error.hint) from error
    if only_plan:
        output.data(shown["plan"], form, shown["text"])
        return
    steps: list[Any] = []
    if not shown["empty"]:
        output.progress(shown["text"])
        steps = follow(client, client.apply(str(shown["hash"])), timeout_s=timeout_s)["steps"]
    # Also of a plan that is empty because an earlier one, interrupted since, has said all that there is to say.
    brokers = _wait(client, name, timeout_s=timeout_s)
    took_ms = round(SystemClock().monotonic_ms() - began_ms)
    value = {
        "cluster": name,
        "cloud": cluster["spec"]["cloud"],
        "mode": to,
        "plan": shown["plan"],
        "steps": steps,
        "brokers": [{k: broker[k] for k in ("id", "name", "zone", "epoch", "walMode")} for broker in brokers],
        "took_ms": took_ms,
    }
    output.data(value, form, f"{name}: {len(brokers)} brokers serve on wal {to}, after {took_ms / 1000:.1f} s")


def _cluster(client: Client, name: str, cloud: str | None) -> dict[str, Any]:
    found = {c["metadata"]["name"]: c for c in client.objects("BrokerCluster")}
    if name not in found:
        raise NotFound(f"no BrokerCluster is named {name}", hint=f"known: {', '.join(found) or 'none'}")
    cluster = found[name]
    if cloud is not None and cluster["spec"]["cloud"] != cloud:
        raise NotFound(f"BrokerCluster {name} is in {cluster['spec']['cloud']}, not in {cloud}", hint="drop --cloud")
    return cluster


def _with_mode(cluster: dict[str, Any], mode: str) -> dict[str, Any]:
    """The object as it was applied, with another mode."""
    spec = {**cluster["spec"], "wal": {**cluster["spec"].get("wal", {}), "mode": mode}}
    return {**{k: v for k, v in cluster.items() if k != "status"}, "spec": spec}


def _wait(client: Client, name: str, *, timeout_s: float) -> list[dict[str, Any]]:
    """Wait until the cluster is Ready, which it is once all brokers serve on the WAL that they shall have; they."""
    clock = SystemClock()
    deadline, said = clock.monotonic_ms() + timeout_s * 1000, ""
    while True:
        status = client.objects("BrokerCluster", name)[0]["status"]
        if status.get("state") == "Ready":
            return list(status["brokers"])
        sentence = str(status.get("sentence", "not looked at yet"))
        if clock.monotonic_ms() > deadline:
            raise Unavailable(f"not done after {timeout_s:.0f} s: {sentence}", hint="it goes on; see yunhe status")
        if sentence != said:
            said = sentence
            output.progress(f"  {name}: {sentence}")
        sleep_blocking_ms(POLL_MS)
