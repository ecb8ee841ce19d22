"""The operator's process: its threads, and how it begins and ends.

    main      health, webhook, lease
    worker    while this replica leads: the store, the reconcilers, the desk and the engines
    watches   while it leads: kopf, which would take the signals of the main thread for itself

The store's calls block for as long as the API server takes, so what must not wait (lease, webhook) is elsewhere. A
replica that loses the lease ends, and whoever runs it starts it anew: nothing of what it believed is left.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from controlplane.operator.admitting import Admitting
from controlplane.operator.desk import Desk
from controlplane.operator.engine_objects import EngineObjects
from controlplane.operator.engine_turns import EngineTurns
from controlplane.operator.engines import Engines
from controlplane.operator.events import Events
from controlplane.operator.lease import Election, LeaseSettings
from controlplane.operator.manifests import HEALTH_PORT, WEBHOOK_PORT
from controlplane.operator.watching import Index, watch
from controlplane.reconcile.world import World
from controlplane.server.files import StateDir
from controlplane.server.host import LocalHost, LocalPlaces
from controlplane.server.service import Service
from controlplane.store.kube_api import Kube
from controlplane.store.kubernetes import KubernetesStore
from providers.base.clock import Clock, Rng, SystemClock, SystemRng
from providers.base.errors import Invalid, Unavailable, YunheError
from providers.base.garbage import collect_less_often

log = logging.getLogger(__name__)

BEAT_MS = 1_000.0
SILENT_MAX_MS = 60_000.0
"""A leader whose worker has not turned its loop for so long is not alive: its calls of the API server take 5 s each."""
STOP_WITHIN_S = 15.0
ENGINES_TIMEOUT_S = (2.0, 20.0)
"""Their calls hold nobody up, and a large cluster's pods take a while to list."""
WEBHOOK_AGAIN_MS = 10_000.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    namespace: str
    state_dir: Path
    """For clouds with target lab, whose processes run on this host."""
    kubeconfig: Path | None = None
    """None: as the pod that this runs in."""
    host: str = "0.0.0.0"
    health_port: int = HEALTH_PORT
    webhook_port: int = WEBHOOK_PORT
    webhook: bool = True
    approve: bool = False
    lease: LeaseSettings = field(default_factory=LeaseSettings)


async def operate(options: Options) -> int:
    """Run until SIGTERM or SIGINT, or until the lease is lost. Returns the exit status: 0 after a signal.

    Raises:
        Invalid: there is no way to the API server, or an address cannot be bound.
    """
    clock, rng = SystemClock(), SystemRng()
    me = f"{socket.gethostname()}-{rng.token()[:8]}"
    kube = Kube(options.kubeconfig)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    election = Election(kube, options.namespace, me, clock=clock, rng=rng, settings=options.lease)
    leader = _Leader(options, kube, me, election, clock, rng)
    health = await _serve_health(options, leader)
    collect_less_often()
    admitting = asyncio.create_task(_admit(options, clock), name="webhook")
    stopping = asyncio.create_task(stopped.wait(), name="signal")
    try:
        leading = asyncio.create_task(election.lead(), name="election")
        await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.done():
            await _ended(leading)
            return 0
        return await _lead(leader, election, stopping)
    finally:
        await _ended(stopping)
        await _ended(admitting)
        await health.cleanup()
        kube.close()


async def _lead(leader: _Leader, election: Election, stopping: asyncio.Task[bool]) -> int:
    """Until something ends it."""
    losing = asyncio.create_task(election.lost(), name="lease")
    working, watching = (asyncio.wrap_future(ended) for ended in leader.start())
    ends: set[asyncio.Future[Any]] = {losing, working, watching, stopping}
    done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    asked = stopping in done
    if losing in done:
        log.error("leads no longer: %s", losing.result())
    for task in (working, watching):
        if task in done and (error := task.exception()) is not None:
            log.error("%s", error.message if isinstance(error, YunheError) else f"a bug: {error!r}", exc_info=error)
    # The lease is kept until nothing is written any more.
    leader.stop()
    await asyncio.wait({working, watching}, timeout=STOP_WITHIN_S)
    held = not losing.done()
    await _ended(losing)
    if held and working.done():
        await asyncio.to_thread(election.release)
    return 0 if asked else 1


class _Leader:
    """What runs while this replica leads."""

    def __init__(self, options: Options, kube: Kube, me: str, election: Election, clock: Clock, rng: Rng) -> None:
        self._options, self._kube, self._me, self._clock, self._rng = options, kube, me, clock, rng
        self._election = election
        self._index = Index(self._wake)
        self._desk: Desk | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_watching = threading.Event()
        self._beat_ms: float | None = None
        self._engines: dict[str | None, Engines] = {}

    @property
    def alive(self) -> bool:
        """Whether the worker, if there is one, turns its loop."""
        return self._beat_ms is None or self._clock.monotonic_ms() - self._beat_ms < SILENT_MAX_MS

    @property
    def leads(self) -> bool:
        return self._desk is not None

    def start(self) -> tuple[Future[None], Future[None]]:
        """Begin; the futures end when worker and watches do."""
        watching = watch(self._index, self._kube, self._options.namespace, self._stop_watching)
        return _in_thread("worker", self._work()), _in_thread("watches", watching)

    def stop(self) -> None:
        """From the main thread."""
        self._stop_watching.set()
        self._end()

    def _end(self) -> None:
        """The worker; from any thread. When it is there already, for `start` comes before everything else."""
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _wake(self) -> None:
        if self._loop is not None and self._desk is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._desk.wake)

    async def _work(self) -> None:
        options, clock, rng = self._options, self._clock, self._rng
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        store = await self._store()
        state_dir = StateDir(options.state_dir)
        places = LocalPlaces(state_dir, lambda: world.desired().specs, clock=clock, rng=rng)
        world = World(store, places, LocalHost(state_dir), clock=clock, rng=rng)
        service = Service(store, world, clock=clock, rng=rng)
        engines = EngineTurns(self._engines_of, world, self._index.snapshot, options.namespace)
        events = Events(self._kube, options.namespace, self._me, store.behind, clock=clock)
        self._desk = Desk(
            self._kube, options.namespace, store, world, service, self._index, engines, events,
            clock=clock, approve=options.approve,
        )  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                for work in (service.run(), self._desk.run(), engines.run(), self._beat()):
                    group.create_task(work)
        except* asyncio.CancelledError:
            pass
        except* YunheError as errors:
            raise errors.exceptions[0] from None
        finally:
            try:
                await service.close()
            finally:
                await asyncio.to_thread(store.close)

    async def _store(self) -> KubernetesStore:
        """Opened, however long the API server takes; the lease ends it where that is too long."""
        while True:
            try:
                return await asyncio.to_thread(
                    KubernetesStore,
                    self._kube,
                    self._options.namespace,
                    clock=self._clock,
                    lost=self._end,
                    leads=lambda: self._election.holds,
                )
            except Unavailable as error:
                log.info("the store cannot be opened now: %s", error.message)
                await self._clock.sleep_ms(BEAT_MS)

    def _engines_of(self, context: str | None) -> Engines:
        """Raises Invalid where no kubeconfig has that context."""
        if context not in self._engines:
            kube = Kube(self._options.kubeconfig, context=context, timeout_s=ENGINES_TIMEOUT_S)
            self._engines[context] = Engines(EngineObjects(kube))
        return self._engines[context]

    async def _beat(self) -> None:
        while True:
            self._beat_ms = self._clock.monotonic_ms()
            await self._clock.sleep_ms(BEAT_MS)


async def _serve_health(options: Options, leader: _Leader) -> web.AppRunner:
    """Raises Invalid: the address is taken."""

    async def healthz(_: web.Request) -> web.Response:
        if not leader.alive:
            return web.Response(status=503, text="the worker has not answered for a minute\n")
        return web.Response(text="leads\n" if leader.leads else "follows\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.health_port).start()
    except OSError as error:
        await runner.cleanup()
        raise Invalid(
            f"port {options.health_port}, for health, cannot be had: {error.strerror}", hint="give --health-port"
        ) from error
    log.info("health is told on port %d", runner.addresses[0][1])
    return runner


async def _admit(options: Options, clock: Clock) -> None:
    """Serve the webhook, on every replica; where it cannot be set up, again a little later."""
    if not options.webhook:
        return
    kube = Kube(options.kubeconfig)
    admitting = Admitting(kube, options.namespace, clock)
    said = ""
    try:
        while True:
            try:
                await admitting.start(options.host, options.webhook_port)
                break
            except (YunheError, OSError) as error:
                sentence = error.message if isinstance(error, YunheError) else str(error)
                if sentence != said:
                    log.error("the webhook does not answer yet: %s", sentence)
                said = sentence
                await clock.sleep_ms(WEBHOOK_AGAIN_MS)
        await asyncio.Event().wait()
    finally:
        await admitting.stop()
        kube.close()


def _in_thread(name: str, work: Coroutine[Any, Any, None]) -> Future[None]:
    """Run it in a loop of its own; the future has how it ended."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            asyncio.run(work)
        except asyncio.CancelledError:
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel it, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})
