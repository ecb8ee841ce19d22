"""Runs the SDK's clients against a ring in Python and compares what arrives: `check.py TARGET_FOLDER`, by `test.sh`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SDK = Path(__file__).parent
ROWS = 5_003

PYTHON = """
import sys
from yunhe_edge import Edge, EdgeError
with Edge(sys.argv[1]) as edge:
    columns = [("ts", "timestamp[ms]", "time"), ("name", "string", "field"), ("raw", "binary", "field")]
    columns.append(("v", "float64", "field"))
    table = edge.declare(sys.argv[2], columns, decimals={"v": 2}, create=True)
    for at in range(int(sys.argv[3])):
        edge.write_row(table, [at, None if at % 2 else f"n{at}", bytes([at % 256]), at * 0.01], wait_ms=10_000)
    edge.flush()
    try:
        edge.declare("none", columns)
        raise SystemExit("a table that is not there was declared")
    except EdgeError as error:
        assert error.status == "not-found" and "none" in str(error), error
"""


def run(*command: str | Path, ends: int = 0) -> str:
    """Its output. It must end with that code."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    if done.returncode != ends:
        raise SystemExit(f"{Path(command[0]).name} ended with {done.returncode}, not {ends}")
    return done.stdout


def main() -> None:
    target = Path(sys.argv[1])
    os.environ["YUNHE_EDGE_LIBRARY"] = str(target / "libyunhe_edge.so")
    os.environ["PYTHONPATH"] = f"{SDK.parent}:{SDK / 'python'}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "ring.sock"
        libraries = ["-lpthread", "-ldl", "-lm"]
        for language, compiler, flags in (("c", "cc", ["-std=c11"]), ("cpp", "c++", ["-std=c++17"])):
            source = SDK / "examples" / f"quick.{language}"
            include = ["-I", SDK / "include"]
            warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-sign-compare", "-Wno-missing-field-initializers"]
            archive = target / "libyunhe_edge.a"
            run(compiler, *flags, *warnings, *include, source, archive, *libraries, "-o", folder / language)
        command = [sys.executable, "-m", "tests.dataplane.tsdb.ring.recorder", str(socket)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            while not (folder / "ready").exists():
                if server.poll() is not None:
                    raise SystemExit("the ring's server did not start")
            said = run(folder / "c", socket, "from_c", str(ROWS))
            assert "columns" in said, said
            run(folder / "cpp", socket, "from_cpp", str(ROWS))
            run(target / "examples" / "writer", socket, "from_rust", str(ROWS))
            run(target / "examples" / "writer", socket, "from_dead", str(ROWS), "kill", ends=-6)
            run(sys.executable, "-c", PYTHON, socket, "from_python", str(ROWS))
            found, _ = server.communicate("", timeout=60)
        finally:
            server.kill()
            server.wait()
    rows = json.loads(found)
    numbers = range(ROWS)
    rust = [["c-é", n, None if n % 3 == 0 else n / 2, n % 2 == 0] for n in numbers]
    expected = {
        "from_c": [["c-1", n, n / 2, None if n % 3 == 0 else n % 7] for n in numbers],
        "from_cpp": [[n, n / 2] for n in numbers],
        "from_rust": rust,
        "from_dead": rust,
        "from_python": [[n, None if n % 2 else f"n{n}", f"{n % 256:02x}", n / 100] for n in numbers],
    }
    for table, wanted in expected.items():
        assert rows.get(table) == wanted, f"{table}: {len(rows.get(table, []))} rows, or others than were written"
    print(f"C, C++, Rust, Python and a writer that died: {ROWS} rows each, as written; no allocation on the hot path")


if __name__ == "__main__":
    main()
