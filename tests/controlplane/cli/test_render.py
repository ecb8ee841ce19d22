"""`yunhe render`: manifests on stdout, notes on stderr; and `plan` and `apply` of the same spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from controlplane.api.load import load_texts
from controlplane.api.specs import Specs
from controlplane.apply.steps import steps_for
from controlplane.cli.main import app
from controlplane.plan.resolve import resolve
from providers.base.errors import Invalid

EXAMPLE = Path(__file__).parents[3] / "examples" / "kubernetes.yaml"


def test_render_prints_manifests_alone_and_notes_beside_them() -> None:
    shown = CliRunner().invoke(app, ["render", str(EXAMPLE)])
    assert shown.exit_code == 0, shown.output
    manifests = list(yaml.safe_load_all(shown.stdout))
    kinds = {manifest["kind"] for manifest in manifests}
    assert {"StatefulSet", "PodDisruptionBudget", "GreptimeDBCluster"} <= kinds
    assert "open edition of AutoMQ has no WAL but the object WAL" in shown.stderr
    plain = CliRunner().invoke(app, ["render", str(EXAMPLE), "-o", "json"])
    assert json.loads(plain.stdout) == manifests


def test_render_of_what_needs_no_kubernetes_says_so(tmp_path: Path) -> None:
    spec = EXAMPLE.with_name("four-clouds.yaml")
    refused = CliRunner().invoke(app, ["render", str(spec)])
    assert isinstance(refused.exception, Invalid)
    assert "nothing of this spec runs on Kubernetes" in refused.exception.message


def test_a_plan_shows_the_engines_and_their_apply_is_refused_where_no_operator_is(tmp_path: Path) -> None:
    planned = CliRunner().invoke(app, ["plan", str(EXAMPLE), "--state-dir", str(tmp_path)])
    assert planned.exit_code == 2, planned.output
    assert "note: orders: the open edition of AutoMQ has no WAL but the object WAL" in planned.stdout
    assert "a GreptimeDBCluster of 3 datanodes on Kubernetes" in planned.stdout
    specs = load_texts([("kubernetes.yaml", EXAMPLE.read_text())])
    with pytest.raises(Invalid, match="BrokerCluster orders, Database fleet: its engine runs on Kubernetes"):
        steps_for(specs, resolve(specs), Specs(), {})
