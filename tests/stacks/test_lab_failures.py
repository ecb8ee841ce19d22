"""What goes wrong on the way of `pulumi up`, and what must not be seen of it, by the real CLI."""

from __future__ import annotations

import json

import pytest

from providers.lab.running import RunningLab
from tests.stacks.conftest import Project
from tests.stacks.test_lab_stack import CLOUD, EACH

pytestmark = pytest.mark.timeout(400)

HIDDEN = "account-4711-of-nobody"
SECRET = f"""\
import pulumi
from stacks import resources as yunhe

where = {{"provider": "private", "region": "plant", "zones": ["hall-a"], "account": pulumi.Output.secret("{HIDDEN}")}}
cloud = yunhe.Cloud("plant", where, accept_data_loss=True)
"""


def test_a_step_that_failed_is_gone_on_with_by_the_next_up(project: Project) -> None:
    project.write(CLOUD, EACH.partition("cluster =")[0])
    project.pulumi("up", "--yes", "--skip-preview")
    plant = RunningLab(project.state_dir.root).cloud("plant")
    plant.fault("error", service="objects", status=503, for_s=600)
    project.write(CLOUD, EACH.replace('{"brokers": 1}, cloud', '{"brokers": 1}, cloud, timeout_s=6'))
    failed = project.pulumi("up", "--yes", "--skip-preview", ok=False)
    assert "not done after 6 s" in failed and "run up again" in failed
    assert [one["id"] for one in project.resources()] == ["Cloud/plant", "BrokerCluster/plant"]
    assert json.loads(project.yunhe("status", "-o", "json").stdout)["state"] != "Ready"
    plant.clear()
    project.write(CLOUD, EACH)
    project.pulumi("up", "--yes", "--skip-preview")
    assert [one["id"] for one in project.resources()] == ["Cloud/plant", "BrokerCluster/plant", "Topic/orders"]
    assert not any(one.get("initErrors") for one in project.resources())
    assert json.loads(project.yunhe("status", "-o", "json").stdout)["state"] == "Ready"


def test_a_secret_in_a_spec_is_seen_neither_in_the_output_nor_in_the_state(project: Project) -> None:
    project.write(CLOUD, SECRET)
    shown = project.pulumi("up", "--yes", "--diff")
    [cloud] = project.resources()
    assert cloud["inputs"]["objects"] and HIDDEN not in json.dumps(project.state())
    # It did arrive.
    [applied] = json.loads(project.yunhe("get", "Cloud", "-o", "json").stdout)
    assert applied["spec"]["account"] == HIDDEN
    project.write(CLOUD, SECRET.replace(HIDDEN, f"{HIDDEN}-either"))
    shown += project.pulumi("up", "--yes", "--diff")
    assert "account [secret] -> [secret]" in shown
    again = project.pulumi("up", "--yes", "--skip-preview")
    assert "2 unchanged" in again
    shown += project.pulumi("stack", "export") + project.pulumi("destroy", "--yes", "--skip-preview")
    assert HIDDEN not in shown
