"""Over which stores the object-store suite runs, and what is expected to fail where."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from providers.base.objects import ObjectStore
from tests.conformance.judges import kinds
from tests.conformance.judges.real import sweep
from tests.conformance.stores import Kind, NotInstallable, Subject

Body = Callable[[ObjectStore, str], Awaitable[None]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(what): runs only over stores that have it (see Kind.has)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `subject`, a running store, runs over every kind that has what it needs."""
    if "subject" not in metafunc.fixturenames:
        return
    needs = [mark.args[0] for mark in metafunc.definition.iter_markers("needs")]
    able = [kind for kind in kinds() if all(kind.has(need) for need in needs)]
    metafunc.parametrize("subject", able, ids=[kind.name for kind in able], indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A gap is an expected failure, and a strict one: when it closes, its entry has to go."""
    for item in items:
        call = getattr(item, "callspec", None)
        kind = call.params.get("subject") if call is not None else None
        if isinstance(kind, Kind):
            assert isinstance(item, pytest.Function)
            reason = kind.gaps.get(_name(item, kind)) or kind.gaps.get(item.originalname)
            if reason is not None:
                strict = item.originalname not in kind.races
                item.add_marker(pytest.mark.xfail(reason=f"{kind.name}: {reason}", strict=strict))


def _name(item: pytest.Function, kind: Kind) -> str:
    """The test's name with its parameters, but not with the kind's."""
    parts = item.callspec.id.split("-")
    own = kind.name.split("-")
    for at in range(len(parts)):
        if parts[at : at + len(own)] == own:
            parts[at : at + len(own)] = []
            break
    return f"{item.originalname}[{'-'.join(parts)}]" if parts else item.originalname


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    kind: Kind = request.param
    try:
        running = Subject(kind, tmp_path_factory.mktemp(kind.name))
    except NotInstallable as why:
        pytest.skip(f"{kind.name}: {why}")
    yield running
    if not kind.creates_bucket:
        asyncio.run(_sweep(running, kind.prefix))
    running.close()


@pytest.fixture
def run(subject: Subject, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test's body with an open store and a prefix of its own; faults are off before and after."""

    prefix = f"{subject.kind.prefix}{tmp_path.name}/"

    def runner(body: Body) -> None:
        async def main() -> None:
            store = subject.open()
            try:
                if subject.kind.creates_bucket:
                    await store.ensure_bucket()
                await body(store, prefix)
            finally:
                await store.close()
                if not subject.kind.creates_bucket:
                    await _sweep(subject, prefix)

        subject.heal()
        try:
            asyncio.run(main())
        finally:
            subject.heal()

    return runner


async def _sweep(subject: Subject, prefix: str) -> None:
    """Where the bucket is somebody's own, nothing of the run stays in it."""
    store = subject.open()
    try:
        await sweep(store, prefix)
    finally:
        await store.close()
