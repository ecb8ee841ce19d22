"""Runs a drill of databases by its name: on which database, with what a seed chooses. One run is
`database_run.py`'s."""

from __future__ import annotations

from typing import Any

from controlplane.drill.database_drills import recipe_of
from controlplane.drill.database_run import DatabaseRun
from controlplane.drill.points import drop_table
from controlplane.drill.report import Report
from controlplane.drill.runner import Runner
from controlplane.drill.seeds import Choices, fresh_seed
from controlplane.drill.verdict import DATABASE_DRILLS
from providers.base.errors import Invalid, NotFound, Unavailable

DATABASE_MODE = "object"
"""The WAL mode of a cloud database's own writes."""


class DatabaseRunner(Runner):
    """As `Runner`, over databases."""

    def run(self, name: str, cloud: str | None, *, seed: int | None = None, side: str | None = None) -> Report:
        """Run one drill on the first cloud database of `cloud`, or of the lab.

        Raises:
            Invalid: the drill takes no side. NotFound: no such cloud, or none with a database.
            Unavailable: it is not Ready, so that nothing was broken.
        """
        if side is not None:
            raise Invalid(f"{name} takes no side", hint="wal-loss does")
        target, edges = ready_database(self._status(), cloud)
        choices = Choices(fresh_seed(self._rng) if seed is None else seed)
        report = Report(name, target["cloud"], DATABASE_MODE, seed=choices.seed)
        self._say(f"  seed {choices.seed}, database {target['name']}")
        table = f"drill_{name.replace('-', '_')}_{self._rng.token()[:8]}"
        recipe = recipe_of(name, choices)
        one = DatabaseRun(
            DATABASE_DRILLS[name],
            target,
            edges,
            table,
            recipe,
            choices,
            report,
            clock=self._clock,
            say=self._say,
            status=self._status,
            breaker=self._breaker(),
        )
        one.execute()
        if not report.passed:
            self._say(f"  table {table} is kept, to be looked at")
            return report
        for url in (one.now()["http"][:1] or [None]) + [
            f"http://{node['host']}:{node['httpPort']}" for _, node in (one.edges if recipe.at_edges else ())
        ]:
            if url is not None:
                drop_table(url, table)
        return report


def ready_database(status: dict[str, Any], cloud: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first cloud database there, and those that upload to it, all Ready.

    Raises:
        NotFound: there is none. Unavailable: one is not Ready. Invalid: one speaks TLS.
    """
    databases = status.get("databases", [])
    clouds = list(dict.fromkeys(d["cloud"] for d in databases if d["role"] == "cloud"))
    if not clouds:
        raise Unavailable("no database runs here", hint="start one with `yunhe up examples/vehicle.yaml`")
    if cloud is not None and cloud not in clouds:
        raise NotFound(f"no cloud with a database is named {cloud}", hint=f"known: {', '.join(clouds)}")
    target = next(d for d in databases if d["role"] == "cloud" and d["cloud"] == (cloud or clouds[0]))
    edges = [d for d in databases if d["uploadTo"] == target["name"]]
    for one in (target, *edges):
        if one.get("tls"):
            raise Invalid(f"Database {one['name']} speaks TLS, and drills do not", hint="drill one without tls")
        if one["state"] != "Ready":
            raise Unavailable(
                f"Database {one['name']} is {one['state']}: {one['sentence']}",
                hint="a drill begins from Ready; see `yunhe status`",
            )
    return target, edges
