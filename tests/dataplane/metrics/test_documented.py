"""docs/metrics.md lists what there is: every family of every process, and no other."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from dataplane.agent.metrics import AgentMetrics
from dataplane.contract.database import DatabaseConfig, DatabaseRole, DatabaseSpec
from dataplane.metrics.page import Page
from dataplane.tsdb.edge.opening import opened
from dataplane.tsdb.process.cloud import CloudProcess
from dataplane.tsdb.process.edge import write_figures
from dataplane.tsdb.process.metrics import with_process
from providers.base.clock import SystemClock, SystemRng
from providers.base.registry import StoreAddress
from providers.memory.faults import Process, World
from providers.memory.objects import MemoryBucket, MemoryObjectStore
from tests.dataplane.agent.test_agent import Site
from tests.dataplane.broker.test_metrics import told
from tests.dataplane.tsdb.protocols.served import served
from tests.prometheus_text import Pages, read

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
CONVENTION = re.compile(r"(yunhe_(broker|agent|cloud|edge|http|object_store)|process)_[a-z_]+[a-z]\Z")


def database(role: DatabaseRole, folder: Path) -> DatabaseConfig:
    spec = DatabaseSpec("fleet", "a", role, "z", ())
    return DatabaseConfig("cell", StoreAddress("private", "b", "r"), spec, str(folder), str(folder / "ready"))


async def of_agent(folder: Path) -> Pages:
    return read(AgentMetrics("cell", Site(folder).agent(), lambda: (), SystemClock()).page().decode())


async def of_edge(folder: Path) -> Page:
    page, clock, rng = Page(), SystemClock(), SystemRng()
    async with opened(folder, "a", clock=clock, rng=rng, memory_bytes_max=16 << 20) as edge:
        write_figures(page, database(DatabaseRole.EDGE, folder), edge, None, None)
    return page


async def of_cloud(folder: Path) -> Page:
    page, clock, rng = Page(), SystemClock(), SystemRng()
    world = World(clock, rng)
    store = MemoryObjectStore(Process(world, "a"), MemoryBucket(world, "b"))
    process = CloudProcess(database(DatabaseRole.CLOUD, folder), store, clock=clock, rng=rng)
    process.figures(page)
    await process.close()
    return page


def everything(folder: Path) -> dict[str, Pages]:
    found = {}
    with told() as broker:
        found["Brokers"] = broker.page()
    found["Agents"] = asyncio.run(of_agent(folder / "agent"))
    found["Databases, cloud"] = read(asyncio.run(of_cloud(folder / "cloud")).text().decode())
    found["Databases, edge"] = read(asyncio.run(of_edge(folder / "edge")).text().decode())
    with served(figures=with_process(lambda _: None, SystemClock())) as server:
        found["Databases, HTTP"] = read(server.get("/metrics").text)
    return found


def table(pages: dict[str, Pages]) -> str:
    """A family that several processes have stands under the last heading, once."""
    families = {name: family for page in pages.values() for name, family in page.families.items()}
    counts = {name: sum(name in page.families for page in pages.values()) for name in families}
    parts = {part: [n for n in page.families if counts[n] == 1] for part, page in pages.items()}
    parts["All processes"] = [name for name in families if counts[name] > 1]
    lines = []
    for part, names in parts.items():
        lines += [f"### {part}", "", "| metric | type | what |", "|---|---|---|"]
        lines += [f"| `{name}` | {families[name].kind} | {families[name].about} |" for name in names]
        lines.append("")
    return "\n".join(lines)


def test_the_document_lists_what_there_is(tmp_path: Path) -> None:
    for folder in ("agent", "cloud", "edge"):
        (tmp_path / folder).mkdir()
    pages = everything(tmp_path)
    written = table(pages)
    text = DOCUMENT.read_text()
    above = text[: text.index("## All of them")] + "".join(text[text.index("## All of them") :].partition("### ")[:1])
    if os.environ.get("YUNHE_GOLDEN") == "write":
        DOCUMENT.write_text(above.rstrip("\n") + "\n\n" + written.rstrip("\n") + "\n")
    assert DOCUMENT.read_text() == above + written.rstrip("\n") + "\n"
    # What is said above the table names families that there are.
    families = {name for page in pages.values() for name in page.families}
    said = set(re.findall(r"\byunhe_[a-z_]+", above))
    assert {re.sub(r"_(bucket|sum|count)\Z", "", name) for name in said} <= families
    for page in pages.values():
        for name, family in page.families.items():
            assert CONVENTION.match(name), name
            assert (family.kind == "counter") == name.endswith("_total"), name
            assert family.kind != "histogram" or name.endswith("_seconds")
            assert not re.search(r"_(ms|milliseconds|kb|mib)(_|\Z)", name), "seconds and bytes"
            assert family.about.endswith("."), name
