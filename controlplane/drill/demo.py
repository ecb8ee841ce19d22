"""`make demo`: the main job, from nothing to a verdict. Exit code 0 only if all of it held.

Four emulated clouds come up from `examples/four-clouds.yaml`; in each an ordinary Kafka client produces and consumes;
the control plane is killed and traffic goes on; a broker is killed
and another zone's broker takes over. Everything is stopped at the end, whatever happens.
"""

from __future__ import annotations

import sys
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, Producer

from controlplane.cli import output
from controlplane.cli.main import run as yunhe
from controlplane.cli.status import read_status
from controlplane.drill.cli import interrupted_by_sigterm
from controlplane.drill.runner import Runner
from controlplane.server.files import StateDir
from providers.base.clock import Clock, SystemClock, SystemRng
from providers.base.errors import YunheError

SPEC = Path(__file__).parents[2] / "examples" / "four-clouds.yaml"
STATE_DIR = Path(".yunhe-demo")
TOPIC = "orders"
RECORDS = 1_000
CLIENT_TIMEOUT_MS = 30_000


def main() -> int:
    clock = SystemClock()
    state_dir = StateDir(STATE_DIR.absolute())
    where = ["--state-dir", str(state_dir.root)]
    began_ms = clock.monotonic_ms()
    rows: list[tuple[str, str, str]] = []
    held = stopped = False
    try:
        with interrupted_by_sigterm():
            # What a demo that was killed has left behind.
            if yunhe(["down", "--purge", *where]) == 0:
                held = _all_of_it(state_dir, where, clock, rows)
    except KeyboardInterrupt:
        rows.append(("all of it", "NO", "interrupted"))
    except (YunheError, KafkaException) as error:
        output.error(str(error), getattr(error, "hint", None))
    finally:
        output.progress("stopping")
        stopped = yunhe(["down", "--purge", *where]) == 0
    rows.append(("everything stops", _yes(stopped), "no process is left" if stopped else "see above"))
    print(output.table(("WHAT", "HELD", "DETAIL"), rows))
    verdict = "PASS" if held and stopped else "FAIL"
    print(f"\ndemo  {verdict}  {(clock.monotonic_ms() - began_ms) / 1000:.0f} s")
    return 0 if verdict == "PASS" else 1


def _all_of_it(state_dir: StateDir, where: list[str], clock: Clock, rows: list[tuple[str, str, str]]) -> bool:
    if yunhe(["up", str(SPEC), *where]) != 0:
        rows.append(("four clouds come up", "NO", "see above"))
        return False
    clouds = read_status(state_dir)["clouds"]
    rows.append(("four clouds come up", "yes", ", ".join(f"{c['name']} {c['wal']['mode']}" for c in clouds)))
    held = True
    for cloud in clouds:
        output.progress(f"producing and consuming in {cloud['name']}")
        acked, read = _round_trip(cloud["bootstrapServers"], clock)
        good = acked == read == RECORDS
        held &= good
        rows.append((f"a Kafka client in {cloud['name']}", _yes(good), f"{acked} acked, {read} consumed"))
    runner = Runner(state_dir, clock=clock, rng=SystemRng(), say=output.progress)
    wanted = [("control-plane-loss", c["name"]) for c in clouds[:1]]
    # One cloud of each WAL mode that four-clouds.yaml has.
    wanted += [("broker-loss", name) for name in {c["wal"]["mode"]: c["name"] for c in clouds}.values()]
    for drill, name in wanted:
        output.progress(f"drill {drill} in {name}")
        report = runner.run(drill, name)
        print(report.text())
        held &= report.passed
        plain = report.to_plain()
        lost = "an unknown number" if plain["acked_lost"] is None else plain["acked_lost"]
        detail = f"{lost} of {plain['acked']} acked records lost, {plain['failed_produces']} produces failed"
        if drill == "broker-loss" and plain["rto_ms"] is not None:
            detail += f", first ack after {plain['rto_ms'] / 1000:.1f} s"
        rows.append((f"{drill} in {name}", _yes(report.passed), detail))
    return held


def _round_trip(bootstrap: str, clock: Clock) -> tuple[int, int]:
    """(records acked, distinct records consumed through a group)."""
    acked: set[bytes] = set()
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0})

    def count(error: object, message: Message) -> None:
        value = message.value()
        if error is None and value is not None:
            acked.add(value)

    for i in range(RECORDS):
        producer.produce(TOPIC, value=b"demo-%d" % i, on_delivery=count)
        producer.poll(0)
    producer.flush(CLIENT_TIMEOUT_MS / 1000)
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "demo", "auto.offset.reset": "earliest", "log_level": 0}
    )
    read: set[bytes] = set()
    deadline = clock.monotonic_ms() + CLIENT_TIMEOUT_MS
    try:
        consumer.subscribe([TOPIC])
        while len(read) < len(acked) and clock.monotonic_ms() < deadline:
            for message in consumer.consume(1_000, timeout=0.2):
                value = message.value()
                if message.error() is None and value is not None:
                    read.add(value)
    finally:
        consumer.close()
    return len(acked), len(read & acked)


def _yes(held: bool) -> str:
    return "yes" if held else "NO"


if __name__ == "__main__":
    sys.exit(main())
