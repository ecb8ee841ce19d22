"""`pulumi up` of objects on the lab, by the real CLI."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from providers.lab.processes import ProcessTable
from tests.stacks.conftest import ROOT, Project

pytestmark = pytest.mark.timeout(400)

CLOUD = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: plant}
spec: {provider: private, region: plant, zones: [hall-a]}
"""
SPEC = (
    CLOUD
    + """\
---
apiVersion: yunhe.io/v1alpha1
kind: BrokerCluster
metadata: {name: plant}
spec: {cloud: plant, brokers: 1}
---
apiVersion: yunhe.io/v1alpha1
kind: Topic
metadata: {name: orders}
spec: {clusters: [plant], partitions: 2}
"""
)
EACH = """\
from stacks import resources as yunhe

cloud = yunhe.Cloud("plant", {"provider": "private", "region": "plant", "zones": ["hall-a"]}, accept_data_loss=True)
cluster = yunhe.BrokerCluster("plant", {"brokers": 1}, cloud, accept_data_loss=True)
topic = yunhe.Topic("orders", {"partitions": 2}, [cluster], accept_data_loss=True)
"""


def nothing_left(project: Project) -> None:
    assert not project.state_dir.exists()
    assert not ProcessTable(project.state_dir.root).everything()


def test_preview_shows_the_plan_that_the_command_line_makes_and_starts_nothing(project: Project) -> None:
    spec = ROOT / "examples" / "four-clouds.yaml"
    project.write(spec.read_text())
    shown = project.pulumi("preview")
    planned = json.loads(project.yunhe("plan", str(spec), "-o", "json").stdout)
    assert f"yunhe apply --plan {planned['plan'][:8]}" in shown
    assert "broker aws-use1/b-1" in shown
    assert "USD a month on real clouds" in shown
    nothing_left(project)


def test_a_stack_comes_up_stays_as_it_is_and_goes_without_a_trace(project: Project) -> None:
    project.write(SPEC)
    shown = project.pulumi("up", "--yes")
    assert "+ broker plant/b-1" in shown
    assert json.loads(project.yunhe("status", "-o", "json").stdout)["state"] == "Ready"
    again = project.pulumi("up", "--yes", "--skip-preview")
    assert "2 unchanged" in again
    # Data: a destroy is refused until the loss was accepted.
    refused = project.pulumi("destroy", "--yes", ok=False)
    assert "lose data for ever" in refused and "all records of the cluster: orders" in refused
    assert json.loads(project.yunhe("status", "-o", "json").stdout)["state"] == "Ready"
    project.set("acceptDataLoss", "true")
    project.pulumi("up", "--yes", "--skip-preview")
    token = project.state_dir.read_token()
    assert token not in json.dumps(project.state())
    project.pulumi("destroy", "--yes", "--skip-preview")
    nothing_left(project)
    assert not project.resources()


def test_drift_is_seen_by_refresh_and_undone_by_up(project: Project) -> None:
    project.write(SPEC)
    project.pulumi("up", "--yes", "--skip-preview")
    drifted = project.folder / "drifted.yaml"
    drifted.write_text(SPEC.replace("partitions: 2", "partitions: 2, configs: {retention.ms: 60000}"))
    assert project.yunhe("apply", str(drifted)).returncode == 0
    assert "~" in project.pulumi("refresh", "--yes", "--skip-preview")
    topic = next(o for o in project.resources()[0]["inputs"]["objects"] if o["kind"] == "Topic")
    assert topic["spec"]["configs"]["retention.ms"] == 60000
    shown = project.pulumi("up", "--yes")
    assert "retention.ms 60000 -> unset" in shown
    assert project.yunhe("diff", str(project.folder / "spec.yaml")).stdout.strip() == "no difference"


def test_a_refused_spec_has_the_command_lines_sentence_and_changes_nothing(project: Project) -> None:
    project.write(CLOUD, EACH.replace('"brokers": 1', '"brokers": 1, "wal": {"mode": "zonal-block"}'))
    shown = project.pulumi("up", "--yes", ok=False)
    assert "loses acked records when its zone dies, and that has not been accepted" in shown
    assert "acceptZoneLossRpo: true" in shown


def test_objects_as_resources_of_their_own_come_and_go_in_order(project: Project) -> None:
    project.write(SPEC, EACH)
    shown = project.pulumi("preview")
    assert "topic plant/orders" in shown
    project.pulumi("up", "--yes", "--skip-preview")
    assert [one["id"] for one in project.resources()] == ["Cloud/plant", "BrokerCluster/plant", "Topic/orders"]
    assert "4 unchanged" in project.pulumi("up", "--yes", "--skip-preview")
    project.pulumi("destroy", "--yes", "--skip-preview")
    nothing_left(project)


def test_what_is_applied_already_is_imported_by_name(project: Project) -> None:
    project.write(SPEC)
    assert project.yunhe("up", str(project.folder / "spec.yaml")).returncode == 0
    keys = "Cloud/plant,BrokerCluster/plant,Topic/orders"
    project.pulumi("import", "yunhe:index:Spec", "spec", keys, "--yes", "--protect=false", "--generate-code=false")
    assert project.resources()[0]["id"] == keys
    before = project.yunhe("get", "Topic", "-o", "json").stdout
    assert "nothing to do" not in project.pulumi("up", "--yes")
    assert project.yunhe("get", "Topic", "-o", "json").stdout == before
    assert "does not exist" in project.pulumi(
        "import", "yunhe:index:Topic", "x", "Topic/x", "--yes", "--generate-code=false", ok=False
    )


def test_an_interrupted_up_is_gone_on_with(project: Project) -> None:
    project.write(SPEC)
    process = subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "creating" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode != 0
    project.pulumi("up", "--yes", "--skip-preview")
    assert json.loads(project.yunhe("status", "-o", "json").stdout)["state"] == "Ready"
    assert len(project.resources()) == 1


def test_the_automation_api_does_the_same(project: Project) -> None:
    project.write(SPEC)

    def stack(*args: str) -> str:
        result = project.run(sys.executable, "-m", "stacks.cli", *args)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    spec = str(project.folder / "spec.yaml")
    assert "+ broker plant/b-1" in stack("preview", "--spec", spec)
    stack("up", "--spec", spec, "--accept-data-loss")
    assert "unchanged" in stack("refresh")
    stack("destroy")
    nothing_left(project)
