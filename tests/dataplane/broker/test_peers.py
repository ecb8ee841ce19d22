"""Brokers of one cluster know each other by its secret; who does not know it is not heard, and hears nothing."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane.broker import peer_channel, peers
from dataplane.broker.peer_secrets import LOOK_MS, keep_fresh
from dataplane.broker.peers import TcpPeers
from providers.base.clock import SystemClock, SystemRng
from providers.base.errors import Unavailable
from providers.base.loops import run_loop
from tests.dataplane.broker.test_connections import until
from tests.sim.virtualtime import run

SECRET = b"a secret of the cluster's"
Address = tuple[str, int]


def with_listener(secret: bytes | None, test: Callable[[Address, list[Any]], Awaitable[None]]) -> None:
    async def main() -> None:
        heard: list[Any] = []

        async def handle(message: dict[str, Any]) -> dict[str, Any] | None:
            heard.append({k: v for k, v in message.items() if k != "request"})
            return {"echo": message.get("say")} if "request" in message else None

        listening = TcpPeers(known(secret), SystemRng())
        port = await listening.start("127.0.0.1", 0, handle)
        try:
            async with asyncio.timeout(20):
                await test(("127.0.0.1", port), heard)
        finally:
            await listening.close()

    run_loop(main())


def known(secret: bytes | None) -> tuple[bytes, ...]:
    return () if secret is None else (secret,)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_who_knows_the_secret_is_heard_and_answered(secret: bytes | None) -> None:
    async def test(address: Address, heard: list[Any]) -> None:
        speaking = TcpPeers(known(secret), SystemRng())
        for i in range(20):
            speaking.send(address, {"say": i})
        assert (await speaking.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        assert heard == [{"say": i} for i in range(20)] + [{"say": "x"}]
        await speaking.close()

    with_listener(secret, test)


@pytest.mark.parametrize(("listens", "speaks"), [(SECRET, b"another secret"), (SECRET, None), (None, SECRET)])
def test_who_does_not_is_neither_heard_nor_answered(listens: bytes | None, speaks: bytes | None) -> None:
    async def test(address: Address, heard: list[Any]) -> None:
        speaking = TcpPeers(known(speaks), SystemRng())
        with pytest.raises(Unavailable):
            await speaking.request(address, {"say": "x"}, 500)
        assert {"say": "x"} not in heard
        assert not speaking.refuses(address), "it is not for that reason dead"
        await speaking.close()

    with_listener(listens, test)


@pytest.mark.parametrize("how", ["forget", "close"])
def test_a_link_that_is_given_up_while_it_is_used_leaves_no_task_behind(how: str) -> None:
    """A task that nothing refers to any more is found by the collector of cycles, and told in the log."""

    async def test(address: Address, heard: list[Any]) -> None:
        trouble: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        before = asyncio.all_tasks()
        speaking = TcpPeers((), SystemRng())
        assert (await speaking.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        if how == "forget":
            speaking.forget_all_but(set())
        else:
            await speaking.close()
        await until(lambda: asyncio.all_tasks() <= before)
        gc.collect()
        assert trouble == []

    with_listener(None, test)


class Relay:
    """Between two brokers: it passes bytes on, keeps them, and may change them."""

    def __init__(self, target: Address, change: Callable[[int, bytes], list[bytes]]) -> None:
        self._target = target
        self._change = change
        self.frames: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> Address:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return ("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._tasks.append(asyncio.create_task(self._pass_on(there, writer, lambda _, frame: [frame])))
        await self._pass_on(reader, back, self._change)

    async def _pass_on(self, reader: Any, writer: Any, change: Callable[[int, bytes], list[bytes]]) -> None:
        number = 0
        try:
            while True:
                head = await reader.readexactly(4)
                frame = head + await reader.readexactly(int.from_bytes(head, "big"))
                self.frames.append(frame)
                for out in change(number, frame):
                    writer.write(out)
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()


@pytest.mark.parametrize(
    "change",
    [
        lambda n, frame: [frame, frame] if n == 2 else [frame],
        lambda n, frame: [] if n == 2 else [frame],
        lambda n, frame: [frame[:-2] + bytes([frame[-2] ^ 1]) + frame[-1:]] if n == 2 else [frame],
    ],
    ids=["repeated", "left out", "changed"],
)
def test_what_is_said_cannot_be_repeated_left_out_or_changed(change: Callable[[int, bytes], list[bytes]]) -> None:
    async def test(address: Address, heard: list[Any]) -> None:
        relay = Relay(address, change)
        through = await relay.start()
        speaking = TcpPeers((SECRET,), SystemRng())
        for i in range(10):
            speaking.send(through, {"say": i})
        await until(lambda: len(relay.frames) >= 6)
        await asyncio.sleep(0.1)
        # Frame 2 is the first one behind the greeting and its proof. The connection ends there; the next one, with its
        # own greeting, has what is said later.
        said = [message["say"] for message in heard]
        assert said == sorted(set(said)) and set(said) <= set(range(10))
        assert 1 not in said, "it came behind the frame that was not what it should be"
        await speaking.close()
        await relay.close()

    with_listener(SECRET, test)


def test_a_recorded_conversation_cannot_be_held_again() -> None:
    async def test(address: Address, heard: list[Any]) -> None:
        relay = Relay(address, lambda _, frame: [frame])
        through = await relay.start()
        speaking = TcpPeers((SECRET,), SystemRng())
        await speaking.request(through, {"say": "once"}, 5_000)
        await speaking.close()
        reader, writer = await asyncio.open_connection(*address)
        for frame in relay.frames:
            writer.write(frame)
        while await reader.read(1_000):
            pass
        assert heard == [{"say": "once"}]
        writer.close()
        await relay.close()

    with_listener(SECRET, test)


def test_a_proof_is_not_turned_back_on_who_made_it() -> None:
    """Somebody without the secret who lets the broker talk to itself."""

    async def test(address: Address, heard: list[Any]) -> None:
        first_reader, first = await asyncio.open_connection(*address)

        def frame(message: dict[str, Any]) -> bytes:
            body = json.dumps(message).encode()
            return len(body).to_bytes(4, "big") + body

        first.write(frame({"nonce": "mine"}))
        size = int.from_bytes(await first_reader.readexactly(4), "big")
        answer = json.loads(await first_reader.readexactly(size))
        first.write(frame({"proof": answer["proof"]}))
        assert await first_reader.read() == b"" and heard == []
        first.close()

    with_listener(SECRET, test)


def test_who_does_not_greet_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONNECT_TIMEOUT_S", 0.3)

    async def test(address: Address, heard: list[Any]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()

    with_listener(SECRET, test)


def test_strangers_at_a_time_are_few_and_send_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "UNKNOWN_MAX", 2)
    monkeypatch.setattr(peers, "CONNECT_TIMEOUT_S", 60)

    async def test(address: Address, heard: list[Any]) -> None:
        silent = [await asyncio.open_connection(*address) for _ in range(2)]
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b"", "two at a time"
        writer.close()
        # Its length alone ends it.
        silent[0][1].write((peer_channel.GREETING_BYTES_MAX + 1).to_bytes(4, "big"))
        assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()

    with_listener(SECRET, test)


# ---- the secret is changed

OLD, NEW = b"the secret until now", b"the secret from now on"
STEPS = [(OLD,), (NEW, OLD), (NEW,)]


@pytest.mark.parametrize(("listens", "speaks"), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)])
def test_brokers_that_are_one_step_of_a_change_apart_know_each_other(listens: int, speaks: int) -> None:
    async def main() -> None:
        listening, speaking = TcpPeers(STEPS[listens], SystemRng()), TcpPeers(STEPS[speaks], SystemRng())
        address = "127.0.0.1", await listening.start("127.0.0.1", 0, _echo)
        assert (await speaking.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        await speaking.close()
        await listening.close()

    run_loop(main())


@pytest.mark.parametrize(("listens", "speaks"), [((OLD,), (NEW,)), ((NEW,), (OLD,)), ((NEW, OLD), (SECRET,))])
def test_who_was_left_behind_by_two_steps_is_a_stranger(listens: tuple[bytes, ...], speaks: tuple[bytes, ...]) -> None:
    async def main() -> None:
        listening, speaking = TcpPeers(listens, SystemRng()), TcpPeers(speaks, SystemRng())
        address = "127.0.0.1", await listening.start("127.0.0.1", 0, _echo)
        with pytest.raises(Unavailable):
            await speaking.request(address, {"say": "x"}, 500)
        await speaking.close()
        await listening.close()

    run_loop(main())


def test_a_secret_that_is_not_accepted_any_more_cuts_whoever_rests_on_it_and_nobody_else() -> None:
    async def main() -> None:
        listening = TcpPeers((NEW, OLD), SystemRng())
        address = "127.0.0.1", await listening.start("127.0.0.1", 0, _echo)
        thief, broker = TcpPeers((OLD,), SystemRng()), TcpPeers((NEW, OLD), SystemRng())
        for one in (thief, broker):
            assert (await one.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        [of_broker] = [link._channel for link in broker._links.values()]
        listening.use((NEW,))
        with pytest.raises(Unavailable):
            await thief.request(address, {"say": "x"}, 500)
        assert (await broker.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        assert [link._channel for link in broker._links.values()] == [of_broker], "the same connection"
        # And where the broker that connects is the first to change.
        broker.use((SECRET, NEW))
        assert (await broker.request(address, {"say": "x"}, 5_000))["echo"] == "x"
        broker.use((SECRET,))
        with pytest.raises(Unavailable):
            await broker.request(address, {"say": "x"}, 500)
        for one in (thief, broker, listening):
            await one.close()

    run_loop(main())


async def _echo(message: dict[str, Any]) -> dict[str, Any] | None:
    return {"echo": message.get("say")} if "request" in message else None


def test_the_file_is_read_again_and_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        used: list[tuple[bytes, ...]] = []
        path = tmp_path / "peers.json"

        async def hold(content: str) -> None:
            path.write_text(content)
            await asyncio.sleep(LOOK_MS / 1_000)

        path.write_text(json.dumps({"secret": "x" * 16}))
        reading = asyncio.create_task(keep_fresh(str(path), (b"x" * 16,), used.append, SystemClock()))
        await asyncio.sleep(1.5 * LOOK_MS / 1_000)
        assert used == []
        for bad in ("{", json.dumps({"secret": "short"}), json.dumps({"secret": "x" * 16, "accepted": "y" * 16}), "[]"):
            await hold(bad)
        path.unlink()
        await asyncio.sleep(LOOK_MS / 1_000)
        assert used == [] and not reading.done()
        await hold(json.dumps({"secret": "y" * 16, "accepted": ["x" * 16]}))
        await hold(json.dumps({"secret": "y" * 16, "accepted": ["x" * 16]}))
        await hold(json.dumps({"secret": "y" * 16}))
        assert used == [(b"y" * 16, b"x" * 16), (b"y" * 16,)]
        reading.cancel()

    run(main())  # in virtual time


def test_a_secret_that_was_changed_while_the_broker_started_is_used(tmp_path: Path) -> None:
    async def main() -> None:
        used: list[tuple[bytes, ...]] = []
        path = tmp_path / "peers.json"
        path.write_text(json.dumps({"secret": "y" * 16}))
        reading = asyncio.create_task(keep_fresh(str(path), (b"x" * 16,), used.append, SystemClock()))
        await asyncio.sleep(1.5 * LOOK_MS / 1_000)
        assert used == [(b"y" * 16,)]
        reading.cancel()

    run(main())  # in virtual time
