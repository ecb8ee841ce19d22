"""Faults, profile and meter of one process over time and over restarts, on a clock that only moves when told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from providers.base.capabilities import capabilities_of
from providers.lab.bill import bill
from providers.lab.calls import Call
from providers.lab.gate import Gate, SkewedClock
from providers.lab.meter import GIB, ROWS_MAX, Meter
from providers.lab.wire import Exchange

HOUR_MS = 3_600_000


class HandClock:
    """The wall clock of a test."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms

    def monotonic_ms(self) -> float:
        return float(self.now_ms)

    def wall_ms(self) -> int:
        return self.now_ms

    async def sleep_ms(self, duration_ms: float) -> None:
        raise AssertionError("nothing here waits")


def gate(clock: HandClock, folder: Path | None = None, provider: str = "aws", **more: Any) -> Gate:
    return Gate(provider, clock=clock, dialect="s3", admin_token="t", folder=folder, **more)


def add(to: Gate, kind: str, for_ms: float, **fields: Any) -> tuple[int, dict[str, Any]]:
    one = {"id": kind, "kind": kind, "for_ms": for_ms, **fields}
    return to.admin("POST", "/-/faults", json.dumps({"add": [one]}).encode())


def put(key: str = "k") -> Exchange:
    return Exchange("PUT", f"/b/{key}", "put", "b", key, 100)


def test_a_fault_counts_down_and_goes_by_itself() -> None:
    clock = HandClock()
    here = gate(clock)
    assert add(here, "reset", 101_000)[0] == 200
    assert here.judge(put()).unavailable
    clock.now_ms += 100_000
    assert here.shown()["faults"][0]["left_s"] == 1.0
    clock.now_ms += 1_000
    assert here.judge(put()).calm and here.shown()["faults"] == []


def test_faults_outlive_a_restart_and_end_while_the_process_is_down(tmp_path: Path) -> None:
    clock = HandClock()
    first = gate(clock, tmp_path)
    add(first, "reset", 10_000)
    add(first, "error", 60_000, status=503, seed=4, rate=0.5)
    assert len(gate(clock, tmp_path).shown()["faults"]) == 2
    clock.now_ms += 30_000
    assert [one["id"] for one in gate(clock, tmp_path).shown()["faults"]] == ["error"]
    clock.now_ms += 40_000
    assert gate(clock, tmp_path).shown()["faults"] == []


def test_a_restart_goes_on_where_the_draws_were(tmp_path: Path) -> None:
    clock = HandClock()
    whole, first = gate(clock), gate(clock, tmp_path)
    for one in (whole, first):
        add(one, "error", 60_000, status=503, rate=0.5, seed=9)
    expected = [whole.judge(put()) for _ in range(60)]
    seen = [first.judge(put()) for _ in range(25)]
    first.keep()
    second = gate(clock, tmp_path)
    assert seen + [second.judge(put()) for _ in range(35)] == expected


@pytest.mark.parametrize("name", ["faults.json", "meter.json"])
def test_a_damaged_file_takes_the_rehearsal_and_not_the_cloud(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("{", "[]", '{"faults": 7, "latency": "off"}', '{"rows": 1}', "null"):
        (tmp_path / name).write_text(damage)
        assert gate(HandClock(), tmp_path).judge(put()).calm
        assert "are dropped" in capsys.readouterr().err


def test_a_cloud_answers_in_its_own_words() -> None:
    for provider, throttled in (
        ("aws", (503, "SlowDown")),
        ("azure", (503, "ServerBusy")),
        ("gcp", (429, "rateLimitExceeded")),
        ("aliyun", (503, "QpsLimitExceeded")),
    ):
        here = gate(HandClock(), provider=provider)
        add(here, "throttle", 60_000, requests_s=0.001)
        here.judge(put())
        assert here.judge(put()).error == throttled
    here = gate(HandClock(), provider="aliyun")
    add(here, "throttle", 60_000, requests_s=0.001)
    control = Exchange("POST", "/ CreateDisk", "CreateDisk")
    here.judge(control, Call("compute", "create"))
    assert here.judge(control, Call("compute", "create")).error == (400, "Throttling.User")


def test_the_skewed_clock_is_the_clouds_and_not_the_faults() -> None:
    clock = HandClock()
    here, cloud = gate(clock), SkewedClock(clock)
    cloud.faults = here.faults
    add(here, "clock-skew", 10_000, skew_ms=1_200_000)
    assert cloud.wall_ms() == clock.now_ms + 1_200_000
    clock.now_ms += 10_000
    assert cloud.wall_ms() == clock.now_ms


def test_space_is_counted_by_how_long_it_stood() -> None:
    clock = HandClock()
    stands = {"objects": 0}
    here = gate(clock, standing=lambda: stands)
    here.observe()
    clock.now_ms += HOUR_MS
    stands = {"objects": 2 * GIB}
    here.observe()
    clock.now_ms += 3 * HOUR_MS
    stands = {"objects": GIB}
    [row] = here.metered(since_reset=False)["standing"]
    assert row == {"what": "objects", "bytes": GIB, "gib_hours": pytest.approx(6)}
    clock.now_ms += HOUR_MS
    assert here.metered(since_reset=False)["standing"][0]["gib_hours"] == pytest.approx(7)


def test_a_new_run_counts_from_its_beginning_and_the_whole_goes_on(tmp_path: Path) -> None:
    clock = HandClock()
    here = gate(clock, tmp_path)
    for _ in range(3):
        here.note(put())
    counted = json.loads(json.dumps(here.admin("POST", "/-/meter", b'{"reset": true}')[1]))
    assert [row["requests"] for row in counted["rows"]] == [3], "what the run before has used"
    clock.now_ms += 5_000
    here.note(put())
    here.keep()
    again = gate(clock, tmp_path)
    assert [row["requests"] for row in again.metered(since_reset=True)["rows"]] == [1]
    assert again.metered(since_reset=True)["elapsed_s"] == 5
    assert [row["requests"] for row in again.metered(since_reset=False)["rows"]] == [4]


def test_the_meters_memory_is_bounded_whatever_callers_say() -> None:
    meter = Meter(0)
    for number in range(2 * ROWS_MAX):
        meter.count(Call("objects", "put", caller_zone=f"zone-{number}"))
    rows = meter.snapshot(0)["rows"]
    assert len(rows) <= ROWS_MAX + 1 and sum(row["requests"] for row in rows) == 2 * ROWS_MAX


def test_a_bill_is_the_catalogues_prices_and_unknown_ones_are_named() -> None:
    meter = Meter(0)
    for _ in range(1000):
        meter.count(Call("objects", "put", size=4096), bytes_in=4096)
        meter.count(Call("objects", "get"), bytes_out=4096)
        meter.count(Call("objects", "delete"))
        meter.count(Call("objects", "put"), failed=True)
    meter.count(Call("express", "append", "use1-az4", 0, "use1-az5"), bytes_in=GIB)
    meter.observe({"objects": 10 * GIB, "volume:zonal": 20 * GIB}, 0)
    meter.observe({"objects": 10 * GIB, "volume:zonal": 20 * GIB}, 73 * HOUR_MS)
    made = bill(meter.snapshot(73 * HOUR_MS), capabilities_of("aws", "us-east-1", ("use1-az4", "use1-az5")))
    usd = {(line.service, line.what): line.usd for line in made.lines}
    assert usd["objects", "put requests"] == pytest.approx(0.005)
    assert usd["objects", "get requests"] == pytest.approx(0.0004)
    assert usd["express", "uploaded"] == pytest.approx(0.0032)
    assert usd["network", "between zones"] == pytest.approx(0.02)
    assert usd["objects", "space"] == pytest.approx(10 * 0.023 / 10)
    assert usd["volume:zonal", "space"] == pytest.approx(20 * 0.08 / 10)
    assert not any("delete" in what for _, what in usd), "deletes are free"
    private = bill(meter.snapshot(73 * HOUR_MS), capabilities_of("private", "site", ("site",)))
    assert "objects space" in private.unpriced
