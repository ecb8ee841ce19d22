"""How `yunhe lab …` reads as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.cli import output
from providers.lab.environment import exports

_SHOWN = ("service", "verb", "zone", "status", "code", "latency", "requests_s", "bytes_s", "skew_ms", "rate")


def clouds_text(clouds: Sequence[Mapping[str, Any]]) -> str:
    """Where each cloud is, and what to paste into a shell."""
    blocks = []
    for cloud in clouds:
        buckets = cloud["buckets"]
        lines = [f"{cloud['name']}   {cloud['provider']} {cloud['region']}, zones {', '.join(cloud['zones'])}"]
        rows = [("objects", cloud["endpoints"]["objects"]), ("bucket", buckets["standard"])]
        rows += [(f"express {zone}", name) for zone, name in buckets["express"].items()]
        rows += [(what, address) for what, address in cloud["endpoints"].items() if what != "objects" and address]
        rows.append(("credentials", cloud["credentials_file"]))
        width = max(len(what) for what, _ in rows)
        lines += [f"  {what.ljust(width)}  {value}" for what, value in rows]
        lines += ["", *(f"  {line}" for line in exports(cloud["environment"]).splitlines())]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def status_text(shown: Mapping[str, Any]) -> str:
    """Processes, then faults, then what was used."""
    if not shown["clouds"]:
        return "no emulated cloud was started here; start some with yunhe lab up"
    rows = [
        (
            cloud["name"],
            process["name"],
            str(process["pid"] or "-"),
            f"{process['memory_bytes'] / (1 << 20):.0f} MiB" if process["memory_bytes"] else "-",
            process["address"],
            process["state"],
        )
        for cloud in shown["clouds"]
        for process in cloud["processes"]
    ]
    blocks = [output.table(("CLOUD", "PROCESS", "PID", "MEMORY", "ADDRESS", "STATE"), rows)]
    faults = [{"cloud": cloud["name"], **fault} for cloud in shown["clouds"] for fault in cloud["faults"]]
    if faults:
        blocks.append(faults_text(faults))
    used = [
        (
            cloud["name"],
            cloud["latency"] or "-",
            *(str(cloud["meter"]["requests"][name]) for name in ("objects.put", "objects.get")),
            f"{cloud['meter']['usd']:.6f}",
        )
        for cloud in shown["clouds"]
        if cloud["meter"]
    ]
    if used:
        blocks.append(output.table(("CLOUD", "LATENCY", "PUTS", "GETS", "USD"), used))
    silent = [cloud for cloud in shown["clouds"] if cloud["sentence"] not in ("it answers", "it does not run")]
    blocks += [f"{cloud['name']}: {cloud['sentence']}" for cloud in silent]
    return "\n\n".join(blocks)


def faults_text(faults: Sequence[Mapping[str, Any]]) -> str:
    """One fault a line."""
    if not faults:
        return "no faults"
    rows = [
        (fault["cloud"], fault["id"], fault["kind"], _what(fault), _left(fault), str(fault["matched"]))
        for fault in faults
    ]
    return output.table(("CLOUD", "FAULT", "KIND", "OF", "LEFT", "REQUESTS"), rows)


def _what(fault: Mapping[str, Any]) -> str:
    said = [f"{name}={_number(fault[name])}" for name in _SHOWN if name in fault]
    return " ".join(said) or "everything"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _left(fault: Mapping[str, Any]) -> str:
    begins = f", begins in {fault['begins_in_s']:.0f} s" if fault["begins_in_s"] else ""
    return f"{fault['left_s']:.0f} s{begins}"


def meter_text(clouds: Sequence[Mapping[str, Any]], total: float) -> str:
    """A bill for each cloud."""
    rows = []
    for cloud in clouds:
        bill = cloud["bill"]
        for line in bill["lines"]:
            price = "price unknown" if line["usd"] is None else f"{line['usd']:.6f}"
            amount = f"{line['amount']:.0f}" if line["unit"] == "request" else f"{line['amount']:.6f}"
            rows.append((cloud["name"], line["service"], line["what"], f"{amount} {line['unit']}", price))
        month = "-" if bill["usd_month"] is None else f"{bill['usd_month']:.2f} a month at this pace"
        rows.append((cloud["name"], "all", f"in {bill['elapsed_s']:.0f} s", month, f"{bill['usd']:.6f}"))
    return f"{output.table(('CLOUD', 'SERVICE', 'WHAT', 'AMOUNT', 'USD'), rows)}\n\n{total:.6f} USD altogether"
