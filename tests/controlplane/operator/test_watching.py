"""The index is never older than the newest of what was heard and listed, in whatever order they come."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.operator.watching import Index


def custom(name: str, version: int, generation: int = 1, **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "resourceVersion": str(version), "generation": generation}
    return {"apiVersion": "yunhe.io/v1alpha1", "kind": "Topic", "metadata": metadata, "spec": {}, "status": status}


@pytest.mark.parametrize("seed", range(30))
def test_lists_that_began_before_a_change_bring_nothing_back(seed: int) -> None:
    """A history of creates, changes and deletions, told late and out of step with lists of older revisions."""
    rng = random.Random(seed)
    there: dict[str, dict[str, Any]] = {}
    history: list[tuple[str, dict[str, Any]]] = []
    pictures: list[tuple[int, list[dict[str, Any]]]] = [(0, [])]
    for revision in range(1, 120):
        name = f"t{rng.randrange(8)}"
        if name in there and rng.random() < 0.4:
            history.append(("DELETED", custom(name, revision)))
            del there[name]
        else:
            history.append(("MODIFIED" if name in there else "ADDED", custom(name, revision)))
            there[name] = custom(name, revision)
        pictures.append((revision, list(there.values())))
    index = Index(lambda: None)
    for told in range(len(history)):
        index.heard(*history[told])
        if rng.random() < 0.2:
            revision, picture = pictures[rng.randrange(max(0, told - 10), told + 2)]
            index.replace("Topic", picture, revision)
        known = {name: c["metadata"]["resourceVersion"] for (_, name), c in index.snapshot().items()}
        shall = {c["metadata"]["name"]: c["metadata"]["resourceVersion"] for c in pictures[told + 1][1]}
        assert known == shall, f"after revision {told + 1}"


def test_only_what_a_user_changes_is_news() -> None:
    news: list[int] = []
    index = Index(lambda: news.append(1))
    index.heard(None, custom("t", 1))
    index.heard("MODIFIED", custom("t", 2, state="Ready"))
    assert len(news) == 1
    index.heard("MODIFIED", custom("t", 3, generation=2))
    index.heard("DELETED", custom("t", 4))
    assert len(news) == 3
    index.heard("MODIFIED", custom("t", 3, generation=2))
    assert not index.snapshot() and len(news) == 3, "late news of what is gone"
