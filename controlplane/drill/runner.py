"""Runs a drill by its name: which recipe, on which cloud, with what a seed chooses. One run is `run.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.cli.kafka_login import OPEN, KafkaLogin
from controlplane.cli.status import read_status
from controlplane.drill import losses, outages
from controlplane.drill.course import Status
from controlplane.drill.faults import Breaker, Faults
from controlplane.drill.probe import create_topic, delete_topic
from controlplane.drill.report import Report
from controlplane.drill.run import PARTITIONS, Recipe, Run
from controlplane.drill.seeds import Choices, fresh_seed
from controlplane.drill.verdict import DATABASE_DRILLS, DRILLS, SIDES, objectives, side_of
from controlplane.server.files import StateDir
from providers.base.clock import Clock, Rng
from providers.base.errors import Invalid, NotFound, Unavailable


class Runner:
    """Runs drills on the lab of one state directory, one at a time. `status` and `breaker` are the lab's own unless a
    test hands in others.
    """

    def __init__(
        self,
        state_dir: StateDir,
        *,
        clock: Clock,
        rng: Rng,
        say: Callable[[str], None],
        login: KafkaLogin = OPEN,
        status: Status | None = None,
        breaker: Callable[[], Breaker] | None = None,
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._say = say
        self._login = login
        self._status: Status = status or (lambda: read_status(state_dir))
        self._breaker: Callable[[], Breaker] = breaker or (lambda: Faults(state_dir, clock))

    def run(self, name: str, cloud: str | None, *, seed: int | None = None, side: str | None = None) -> Report:
        """Run one drill. Without `cloud`, on the first one of `yunhe status`; without `seed`, with a fresh one; without
        `side`, with the first that the cloud's WAL has.

        Raises:
            Invalid: no such drill, or one that this cloud cannot have. NotFound: no such cloud.
            Unavailable: the lab is not Ready, so that nothing was broken.
        """
        if name not in DRILLS:
            raise Invalid(f"no drill is named {name}", hint=f"one of: {', '.join([*DRILLS, *DATABASE_DRILLS])}")
        target = ready_cloud(self._status(), cloud)
        mode = target["wal"]["mode"]
        chosen_side = side_of(name, mode, side)
        drill = objectives(name, mode)
        zones = {b["zone"] for b in target["brokers"]}
        if drill.takes_over and len(zones) < 2:
            raise Invalid(
                f"{name} needs brokers in two zones, and {target['name']} has them in {len(zones)}",
                hint="nobody would be left to take over",
            )
        choices = Choices(fresh_seed(self._rng) if seed is None else seed)
        recipe = _recipe(name, chosen_side, target, choices)
        report = Report(name, target["name"], mode, seed=choices.seed, side=chosen_side)
        self._say(f"  seed {choices.seed}")
        topic = f"drill-{name}-{self._rng.token()[:8]}"
        create_topic(target["bootstrapServers"], topic, len(PARTITIONS), self._login)
        one = Run(
            drill,
            target,
            topic,
            recipe,
            choices,
            report,
            clock=self._clock,
            say=self._say,
            status=self._status,
            breaker=self._breaker(),
            login=self._login,
        )
        one.execute()
        if report.passed:
            for done in one.topics:
                delete_topic(target["bootstrapServers"], done, self._login)
        else:
            self._say(f"  topic {topic} is kept, to be looked at")
        return report


def _recipe(name: str, side: str | None, cloud: dict[str, Any], choices: Choices) -> Recipe:
    match name:
        case "broker-loss":
            return losses.BrokerLoss()
        case "zone-loss":
            return losses.ZoneLoss()
        case "zombie-broker":
            return losses.ZombieBroker()
        case "control-plane-loss":
            return losses.ControlPlaneLoss()
        case "wal-loss":
            assert side is not None  # every WAL mode has one
            return outages.wal_loss(side, cloud, choices)
        case "object-store-outage":
            return outages.object_store_outage(cloud, choices)
        case _:
            return outages.throttle(cloud, choices)


def ready_cloud(status: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The cloud named, or the first.

    Raises:
        NotFound: no such cloud. Unavailable: it is not Ready, or no lab runs.
    """
    clouds = {c["name"]: c for c in status["clouds"] if c["wal"] is not None}
    if name is not None and name not in clouds and any(c["name"] == name for c in status["clouds"]):
        raise Invalid(f"{name} has no brokers, and this drill breaks one", hint=f"with: {', '.join(clouds) or 'none'}")
    if not clouds:
        raise Unavailable("no lab runs here", hint="start one with `yunhe up examples/four-clouds.yaml`")
    chosen = name or next(iter(clouds))
    if chosen not in clouds:
        raise NotFound(f"no Cloud is named {chosen}", hint=f"known: {', '.join(clouds)}")
    found: dict[str, Any] = clouds[chosen]
    if found["state"] != "Ready":
        raise Unavailable(
            f"cloud {chosen} is {found['state']}: {found['sentence']}",
            hint="a drill begins from Ready; see `yunhe status`",
        )
    whole = set(SIDES[found["wal"]["mode"]])
    for broker in found.get("brokers", ()):
        if set(broker.get("walSides") or whole) < whole:
            raise Unavailable(
                f"broker {broker['name']} of {chosen} acks on {' and '.join(broker['walSides'])} alone",
                hint="a drill begins with whole WALs; the side comes back by itself, or with the broker's next life",
            )
    return found
