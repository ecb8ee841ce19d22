"""`yunhe database render`: what it writes, and that `plan` says where to go instead of running it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from controlplane.cli.main import app

SPEC = """\
apiVersion: yunhe.io/v1alpha1
kind: Cloud
metadata: {name: gcp}
spec: {provider: gcp, region: us-central1, zones: [us-central1-a, us-central1-b]}
---
apiVersion: yunhe.io/v1alpha1
kind: Database
metadata: {name: fleet}
spec:
  role: cloud
  cloud: gcp
  engine: greptimedb
  tables:
    - name: motor
      columns:
        - {name: vehicle, type: string, role: tag}
        - {name: ts, type: timestamp_ms, role: time}
        - {name: rpm, type: int64}
"""


def test_a_greptimedb_is_rendered_and_not_run(tmp_path: Path) -> None:
    spec, to = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(SPEC)
    run = CliRunner().invoke
    made = run(app, ["database", "render", "fleet", "-f", str(spec), "--bucket", "b-1", "--to", str(to), "-o", "json"])
    assert made.exit_code == 0, made.output
    assert sorted(json.loads(made.stdout)) == sorted(path.name for path in to.iterdir())
    assert tomllib.loads((to / "standalone.toml").read_text())["storage"]["bucket"] == "b-1"
    assert 'TIME INDEX ("ts")' in (to / "tables.sql").read_text()
    assert "writes every row again" in (to / "copy.sql").read_text()
    several = spec.with_name("several.yaml")
    several.write_text(SPEC.replace("engine:", "nodes: 2\n  engine:"))
    refused = run(app, ["database", "render", "fleet", "-f", str(several), "--bucket", "b-1"])
    assert refused.exit_code != 0 and "etcd" in str(refused.exception or refused.output)
    planned = run(app, ["plan", str(spec), "--state-dir", str(tmp_path / "state")])
    assert planned.exit_code != 0 and "yunhe database render fleet" in str(
        getattr(planned.exception, "hint", "") or planned.output
    )
