"""Every kind of fault over every dialect, seen by the adapters through the clouds' real SDKs: each comes out as the
kind of error that says what to do, and leaves in the store what it should."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from providers.base.blocking import StoreSettings
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Invalid, NotFound, OutcomeUnknown, Unavailable, YunheError
from providers.base.objects import ObjectStore
from providers.lab.admin import HttpAdmin
from tests.conformance.stores import ADMIN_TOKEN, KINDS, Kind, ObjectServer, start_object_server

WIRE = [kind for kind in KINDS if kind.dialect is not None]
ONCE = StoreSettings(retry_max=0)
QUICK = StoreSettings(read_timeout_ms=2_000, call_timeout_ms=4_000, retry_max=0)
"""Where the client's own time-out is what ends a call."""


class Cloud:
    """One running store of a kind, its faults, and the adapter on it."""

    def __init__(self, kind: Kind, tmp_path: Path) -> None:
        assert kind.dialect is not None
        self.kind = kind
        self.server: ObjectServer = start_object_server(kind.dialect, tmp_path)
        self.admin = HttpAdmin(kind.name, self.server.port, ADMIN_TOKEN)
        self._keys = 0

    def fault(self, kind: str, **fields: Any) -> None:
        one = {"id": "f", "kind": kind, "for_ms": 30_000, **fields}
        self.admin.call("POST", "/-/faults", {"add": [one]})

    def clear(self) -> None:
        self.admin.call("POST", "/-/faults", {"clear": "all"})

    def run(self, body: Callable[[ObjectStore], Awaitable[None]], settings: StoreSettings = ONCE) -> None:
        async def main() -> None:
            module = importlib.import_module(f"providers.{self.kind.provider}.objects")
            address = self.server.address(self.kind.bucket, self.kind.provider)
            store = module.open_store(address, clock=SystemClock(), rng=SystemRng(), settings=settings)
            try:
                await body(store)
            finally:
                await store.close()

        asyncio.run(main())

    def key(self) -> str:
        self._keys += 1
        return f"k/{self._keys}"


@pytest.fixture(scope="module", params=WIRE, ids=lambda kind: kind.name)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(request.param, tmp_path_factory.mktemp(request.param.name))

    async def first(store: ObjectStore) -> None:
        await store.ensure_bucket()

    try:
        made.run(first, StoreSettings())  # whatever either side imports at the first request is imported then
        yield made
    finally:
        made.server.close()


@pytest.fixture
def cloud(running: Cloud) -> Iterator[Cloud]:
    running.clear()
    yield running
    running.clear()


async def caught(ask: Awaitable[Any]) -> YunheError:
    with pytest.raises(YunheError) as found:
        await ask
    return found.value


NOT_DONE: dict[str, dict[str, Any]] = {
    "error 503": {"kind": "error", "status": 503},
    "error 500": {"kind": "error", "status": 500},
    "error 429": {"kind": "error", "status": 429},
    "throttle": {"kind": "throttle", "requests_s": 0.001},
    "timeout": {"kind": "timeout"},
    "reset": {"kind": "reset"},
    "cloud-loss": {"kind": "cloud-loss"},
    "disk-full": {"kind": "disk-full"},
}


@pytest.mark.parametrize("what", NOT_DONE)
def test_a_refused_write_is_unavailable_or_unknown_and_is_never_there(cloud: Cloud, what: str) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(f"{key}-warm", b"x")  # the session, and the SDK's own first questions
        cloud.fault(**{**NOT_DONE[what], "verb": "writes"})
        if what == "throttle":
            with pytest.raises(Unavailable):  # a second's worth, here one request, comes through
                await store.put(f"{key}-first", b"x", if_absent=True)
                await store.put(key, b"x", if_absent=True)
        else:
            assert isinstance(await caught(store.put(key, b"x", if_absent=True)), Unavailable)
        cloud.clear()
        with pytest.raises(NotFound):
            await store.get(key)

    cloud.run(body, QUICK if what == "timeout" else ONCE)


@pytest.mark.parametrize("what", [what for what in NOT_DONE if what not in ("disk-full", "throttle")])
def test_a_refused_read_is_unavailable_and_its_outcome_is_no_question(cloud: Cloud, what: str) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(key, b"x")
        cloud.fault(**{**NOT_DONE[what], "verb": "reads"})
        error = await caught(store.get(key))
        assert isinstance(error, Unavailable) and not isinstance(error, OutcomeUnknown)
        cloud.clear()
        assert await store.get(key) == b"x"

    cloud.run(body, QUICK if what == "timeout" else ONCE)


@pytest.mark.parametrize("what", ["timeout", "reset", "cloud-loss"])
def test_a_write_without_an_answer_is_an_unknown_outcome(cloud: Cloud, what: str) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put(cloud.key(), b"x")
        cloud.fault(**{**NOT_DONE[what], "verb": "writes"})
        assert isinstance(await caught(store.put(cloud.key(), b"x", if_absent=True)), OutcomeUnknown)

    cloud.run(body, QUICK if what == "timeout" else ONCE)


def test_a_lost_answer_is_an_unknown_outcome_and_the_object_is_there(cloud: Cloud) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(f"{key}-warm", b"x")
        cloud.fault("lost", verb="writes")
        assert isinstance(await caught(store.put(key, b"mine", if_absent=True)), OutcomeUnknown)
        cloud.clear()
        assert await store.get(key) == b"mine"

    cloud.run(body)


def test_a_refused_key_is_invalid_with_a_hint(cloud: Cloud) -> None:
    async def body(store: ObjectStore) -> None:
        await store.put(cloud.key(), b"x")
        cloud.fault("error", status=403)
        for ask in (store.put(cloud.key(), b"x", if_absent=True), store.get("k/1")):
            error = await caught(ask)
            assert isinstance(error, Invalid) and error.hint

    cloud.run(body)


def test_a_clock_twenty_minutes_off_refuses_every_signature(cloud: Cloud) -> None:
    if cloud.kind.dialect == "gcp":
        pytest.skip("a token that Google gave stays good; asking for one is what fails (tests/providers/gcp)")
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(key, b"x")
        cloud.fault("clock-skew", skew_ms=1_200_000)
        assert isinstance(await caught(store.put(f"{key}-2", b"x", if_absent=True)), Unavailable | Invalid)
        cloud.clear()
        assert await store.get(key) == b"x"

    cloud.run(body)


@pytest.mark.parametrize("fields", [{"kind": "latency"}, {"kind": "slow-disk"}], ids=lambda fields: fields["kind"])
def test_a_slow_store_answers_late_and_right(cloud: Cloud, fields: dict[str, Any]) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(f"{key}-warm", b"x")
        cloud.fault(**fields, latency="150ms")
        began = time.monotonic()
        await store.put(key, b"x", if_absent=True)
        assert time.monotonic() - began >= 0.15
        assert await store.get(key) == b"x"

    cloud.run(body)


def test_a_full_disk_still_serves_what_it_holds(cloud: Cloud) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(key, b"x")
        cloud.fault("disk-full")
        assert await store.get(key) == b"x"
        assert isinstance(await caught(store.put(f"{key}-2", b"y")), Unavailable)
        await store.delete([key])

    cloud.run(body)


def test_other_verbs_go_on_beside_a_fault_of_one(cloud: Cloud) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(key, b"x")
        cloud.fault("error", status=503, verb="list")
        assert isinstance(await caught(store.list("k/")), Unavailable)
        assert await store.get(key) == b"x"
        await store.put(f"{key}-2", b"y", if_absent=True)

    cloud.run(body)


def test_the_meter_counts_what_the_client_sent(cloud: Cloud) -> None:
    puts, gets, size = 17, 23, 3_000
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(f"{key}-warm", b"x")
        cloud.admin.call("POST", "/-/meter", {"reset": True})
        for i in range(puts):
            await store.put(f"{key}-{i}", b"p" * size, if_absent=True)
        for i in range(gets):
            await store.get(f"{key}-{i % puts}")
        await store.head(f"{key}-0")
        await store.list("k/")
        await store.delete([f"{key}-0"])

    cloud.run(body)
    service = "express" if cloud.kind.express else "objects"
    rows = {
        row["verb"]: row for row in cloud.admin.call("GET", "/-/meter?since=reset")["rows"] if row["service"] == service
    }
    assert (rows["put"]["requests"], rows["get"]["requests"]) == (puts, gets)
    assert (rows["head"]["requests"], rows["delete"]["requests"]) == (1, 1)
    assert puts * size <= rows["put"]["bytes_in"] <= puts * (size + 1_000), "GCS puts metadata into the body"
    assert rows["get"]["bytes_out"] == gets * size
    assert rows["list"]["requests"] >= 1
    assert all(row["failed"] == 0 for row in rows.values())


def test_what_a_fault_refuses_is_not_billed_and_a_lost_answer_is(cloud: Cloud) -> None:
    key = cloud.key()

    async def body(store: ObjectStore) -> None:
        await store.put(f"{key}-warm", b"x")
        cloud.admin.call("POST", "/-/meter", {"reset": True})
        cloud.fault("error", status=503, verb="writes")
        await caught(store.put(f"{key}-1", b"x", if_absent=True))
        cloud.clear()
        cloud.fault("lost", verb="writes")
        await caught(store.put(f"{key}-2", b"x", if_absent=True))

    cloud.run(body)
    rows = cloud.admin.call("GET", "/-/meter?since=reset")["rows"]
    assert sum(row["failed"] for row in rows if row["verb"] == "put") == 1
    assert sum(row["requests"] for row in rows if row["verb"] == "put") == 1


GARBAGE: list[tuple[str, Any]] = [
    ("/-/faults", {"add": [{"kind": "reset"}]}),
    ("/-/faults", {"add": [{"id": "g", "kind": "reset", "for_ms": 10}, {"id": "h", "kind": "boom", "for_ms": 10}]}),
    ("/-/faults", {"add": {"id": "g"}}),
    ("/-/faults", {"add": [7]}),
    ("/-/faults", {"add": [], "clear": "all"}),
    ("/-/faults", {"clear": "every"}),
    ("/-/faults", {"clear": ["nope"]}),
    ("/-/faults", {"rules": [{"no_such_field": 1}]}),
    ("/-/faults", {"rules": 5}),
    ("/-/faults", {}),
    ("/-/faults", {"add": [{"id": "g", "kind": "error", "status": 503, "for_ms": 1e18}]}),
    ("/-/latency", {"profile": "imagined"}),
    ("/-/meter", {"reset": "please"}),
    ("/-/nothing", {}),
]


def test_garbage_in_admin_calls_changes_nothing(cloud: Cloud) -> None:
    cloud.fault("latency", latency="1ms")
    for target, body in GARBAGE:
        with pytest.raises((Invalid, NotFound)) as found:
            cloud.admin.call("POST", target, body)
        assert "\n" not in found.value.message
        shown = cloud.admin.call("GET", "/-/faults")
        assert [one["id"] for one in shown["faults"]] == ["f"] and shown["latency"] == "off", (target, body)


def test_admin_calls_need_the_token(cloud: Cloud) -> None:
    stranger = HttpAdmin("x", cloud.server.port, "not-it")
    for method, target in (("GET", "/-/faults"), ("POST", "/-/faults"), ("GET", "/-/meter")):
        with pytest.raises(Unavailable, match="403"):
            stranger.call(method, target, {"clear": "all"} if method == "POST" else None)


def test_a_restarted_server_keeps_its_faults_its_profile_and_its_count(tmp_path: Path) -> None:
    kind = next(kind for kind in WIRE if kind.name == "aws")
    cloud = Cloud(kind, tmp_path)
    with cloud.server as server:

        async def some(store: ObjectStore) -> None:
            await store.ensure_bucket()
            for i in range(5):
                await store.put(f"k/{i}", b"x" * 100)

        cloud.run(some)
        cloud.fault("error", status=503, verb="list", rate=0.5, seed=11)
        cloud.admin.call("POST", "/-/latency", {"profile": "real"})
        assert server.stop() == 0
        server.start()
        shown = cloud.admin.call("GET", "/-/faults")
        assert [(one["kind"], one["rate"], one["seed"]) for one in shown["faults"]] == [("error", 0.5, 11)]
        assert shown["latency"] == "real" and 0 < shown["faults"][0]["left_s"] <= 30
        counted = cloud.admin.call("GET", "/-/meter")
        assert sum(row["requests"] for row in counted["rows"] if row["verb"] == "put") == 5
        [held] = [row for row in counted["standing"] if row["what"] == "objects"]
        assert held["bytes"] == 500 and held["gib_hours"] > 0
        server.kill()
        server.start()
        assert [one["kind"] for one in cloud.admin.call("GET", "/-/faults")["faults"]] == ["error"], "kill -9, too"
