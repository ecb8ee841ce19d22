"""`yunhe explain wal CLOUD`, word for word. After a wanted change: YUNHE_GOLDEN=write, then read the diff."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from controlplane.api.load import load
from controlplane.api.specs import Specs
from controlplane.plan.explain import explain_plain, render_explain
from controlplane.plan.model import Recorded
from controlplane.plan.plan import make_plan
from controlplane.plan.render import render_plan
from controlplane.plan.resolve import choice_for
from providers.base.errors import NotFound

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
CLOUDS = {"aliyun-hz": "regional-block", "azure-eus": "regional-block", "gcp-usc1": "regional-block",
          "aws-use1": "block+express", "plant-7": "object"}  # fmt: skip


def examples() -> Specs:
    return load([ROOT / "examples" / "four-clouds.yaml", ROOT / "examples" / "private.yaml"])


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("YUNHE_GOLDEN") == "write":
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_explain_reads_as_agreed(cloud: str) -> None:
    assert_golden(f"explain-wal-{cloud}.txt", render_explain(choice_for(examples(), cloud), cloud))


def test_plan_reads_as_agreed() -> None:
    assert_golden("plan-four-clouds.txt", render_plan(make_plan(examples(), Recorded())))


@pytest.mark.parametrize(("cloud", "mode"), CLOUDS.items())
def test_explain_as_json_has_the_same_facts(cloud: str, mode: str) -> None:
    plain = json.loads(json.dumps(explain_plain(choice_for(examples(), cloud), cloud)))
    assert (plain["cloud"], plain["mode"]) == (cloud, mode)
    assert plain["reasons"]
    assert {"regional-block", "block+express", "object", "zonal-block"} - {mode} <= {
        r["mode"] for r in plain["rejected"]
    }
    known = cloud not in ("aliyun-hz", "plant-7")
    assert (plain["price"]["total"] is not None) is known


def test_explain_of_an_unknown_cloud_names_the_known_ones() -> None:
    with pytest.raises(NotFound) as caught:
        choice_for(examples(), "azure")
    assert "aliyun-hz" in (caught.value.hint or "")
