"""`yunhe move TOPIC-PARTITION --to BROKER`: plain Kafka to the cell's brokers; the control plane may be down."""

from __future__ import annotations

from typing import Any

from controlplane.cli import output
from controlplane.cli.kafka_login import KafkaLogin
from controlplane.cli.output import Format
from controlplane.cli.status import read_status
from controlplane.server.files import StateDir
from providers.base.clock import SystemClock, SystemRng, sleep_blocking_ms
from providers.base.errors import Invalid, NotFound, Unavailable

POLL_MS = 20


def move(
    state_dir: StateDir,
    partition: str,
    *,
    to: str,
    cloud: str | None,
    login: KafkaLogin,
    timeout_s: float,
    form: Format,
) -> None:
    """Move it, and wait until the brokers say that the new owner leads.

    Raises:
        Invalid, NotFound: no such partition, broker or cloud.
        Unavailable: no broker answers, or it was not done in time.
    """
    from controlplane.cli.kafka_admin import look, reassign
    from controlplane.cli.kafka_channel import connected

    topic, number = split(partition)
    chosen = _cloud(read_status(state_dir), cloud)
    target = _broker(chosen, to)
    clock = SystemClock()
    address = _answering(chosen)
    with connected(address, login, SystemRng(), timeout_s) as channel:
        before = after = look(channel, topic)
        place = before.partitions.get(number)
        if place is None:
            raise NotFound(f"topic {topic} has no partition {number}", hint=f"it has {len(before.partitions)}, from 0")
        began_ms = clock.monotonic_ms()
        if place.leader != target["id"]:
            controller = before.brokers.get(before.controller, address)
            reassign(controller, topic, number, target["id"], timeout_s=timeout_s, login=login)
        while after.partitions[number].leader != target["id"]:
            if clock.monotonic_ms() - began_ms > timeout_s * 1000:
                raise Unavailable(f"{partition} was not moved in time", hint="it may still be; see yunhe status")
            sleep_blocking_ms(POLL_MS)
            after = look(channel, topic)
    took_ms = round(clock.monotonic_ms() - began_ms)
    value = {
        "cloud": chosen["name"],
        "topic": topic,
        "partition": number,
        "from": place.leader,
        "to": target["id"],
        "leaderEpoch": after.partitions[number].leader_epoch,
        "took_ms": took_ms,
    }
    text = f"{partition} in {chosen['name']}: broker {place.leader} -> {target['id']} in {took_ms} ms"
    output.data(value, form, text if place.leader != target["id"] else f"{partition} is on broker {to} already")


def split(partition: str) -> tuple[str, int]:
    """`orders-3` as ("orders", 3).

    Raises:
        Invalid: not of that form.
    """
    topic, dash, number = partition.rpartition("-")
    if not dash or not topic or not (number.isascii() and number.isdigit()):
        raise Invalid(f"{partition!r} is not TOPIC-PARTITION", hint="for example orders-3")
    return topic, int(number)


def _cloud(status: dict[str, Any], name: str | None) -> dict[str, Any]:
    clouds = {cloud["name"]: cloud for cloud in status["clouds"] if cloud["brokers"]}
    if name is None and len(clouds) == 1:
        return dict(next(iter(clouds.values())))
    if name is None and clouds:
        raise Invalid("more than one cloud is up", hint=f"say which: --cloud {' | '.join(clouds)}")
    if name not in clouds:
        raise NotFound(f"no cloud {name} is up" if name else "no cloud is up", hint="see yunhe status")
    return dict(clouds[name])


def _broker(cloud: dict[str, Any], wanted: str) -> dict[str, Any]:
    for broker in cloud["brokers"]:
        if wanted in (str(broker["id"]), broker["name"], f"{cloud['name']}/{broker['name']}"):
            return dict(broker)
    known = ", ".join(f"{b['name']} ({b['id']})" for b in cloud["brokers"])
    raise NotFound(f"cloud {cloud['name']} has no broker {wanted}", hint=f"it has {known}")


def _answering(cloud: dict[str, Any]) -> tuple[str, int]:
    import socket

    for broker in cloud["brokers"]:
        if not broker.get("kafkaPort"):
            continue
        address = (str(broker.get("host") or "127.0.0.1"), int(broker["kafkaPort"]))
        try:
            socket.create_connection(address, timeout=1.0).close()
        except OSError:
            continue
        return address
    raise Unavailable(f"no broker of {cloud['name']} answers", hint=f"see yunhe status {cloud['name']}")
