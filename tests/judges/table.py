"""`python -m tests.judges.table`: run the judges, and write what they said to docs/compatibility.md.

Exit code 0 when nobody said no, 1 otherwise. Arguments go to pytest; with some, the table is printed and not written,
for a part of the judges is not the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "compatibility.md"
HEAD = """\
# Compatibility

Made by `make judges` from one run over a lab of two brokers (gcp, `regional-block`); not edited by hand. *Not judged*
means that the broker does not list what the judge asks for, or that the judge could not be had; the reason says which.

"""


def rendered(record: Sequence[Mapping[str, str]]) -> str:
    """The document."""
    counts = {verdict: sum(r["verdict"] == verdict for r in record) for verdict in ("yes", "no", "not judged")}
    lines = [HEAD, f"{counts['yes']} yes, {counts['no']} no, {counts['not judged']} not judged.\n\n"]
    lines += ["| judge | version | asked | verdict | reason |\n", "|---|---|---|---|---|\n"]
    for one in sorted(record, key=lambda r: (r["judge"], r["asked"], r["verdict"])):
        cells = (one["judge"], one["version"], one["asked"], one["verdict"], one["reason"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(lines)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        command = [sys.executable, "-m", "pytest", "-rfs", "--timeout", "200", *(sys.argv[1:] or ["tests/judges"])]
        env = {**os.environ, "YUNHE_JUDGES_RECORD": str(path)}
        done = subprocess.run(command, cwd=ROOT, env=env, check=False)
        if not path.exists():
            return done.returncode
        table = rendered(json.loads(path.read_text()))
    if sys.argv[1:]:
        print(table)
    else:
        TABLE.write_text(table)
        print(f"written: {TABLE.relative_to(ROOT)}")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
