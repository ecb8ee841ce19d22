"""Drills: a fault, what must hold meanwhile, and a verdict with measured times. Benchmarks and the demo use the same
parts.

Open `runner.py` first (a drill by its name), then `run.py` (one run), `losses.py` and `outages.py` (what each drill
breaks, and what must hold), `faults.py` (what is broken and undone), `probe.py` (numbered records through an ordinary
Kafka client), `checker.py` (the judge, which shares no code with a broker), `verdict.py` (objectives, pure), `seeds.py`
(what a seed chooses, pure) and `report.py`. Drills of databases have their own: `database_runner.py`,
`database_run.py`, `database_drills.py`, `points.py` (points through HTTP) and `points_checker.py`.
It works from outside, on a running lab: through `status`, the protocols of clients and process ids. Imported by the
CLI, when asked.
"""
