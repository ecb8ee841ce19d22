"""The store of a single replica: one SQLite file, every change synced."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controlplane.store.base import (
    OPERATIONS_KEPT_MAX,
    PLANS_KEPT_MAX,
    STORE_VERSION,
    Key,
    Operation,
    Plain,
    StepRecord,
    StepState,
    StoredPlan,
)
from dataplane.contract.assignment import Generation
from providers.base.clock import Clock
from providers.base.errors import Conflict, Corrupt, Full, Invalid, Unavailable, YunheError

BUSY_TIMEOUT_S = 5.0
"""The CLI reads the file now and then while the server is down; nobody else writes."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE status (kind TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, name)) STRICT;
CREATE TABLE recorded (one INTEGER PRIMARY KEY CHECK (one = 1), value TEXT NOT NULL) STRICT;
CREATE TABLE plans (seq INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT UNIQUE NOT NULL, value TEXT NOT NULL) STRICT;
CREATE TABLE operations (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, outcome TEXT, value TEXT NOT
NULL) STRICT;
"""


class SqliteStore:
    """`Store` in one file. Calls may come from any thread; they are short (one small transaction) and take turns."""

    def __init__(self, path: Path, *, clock: Clock, read_only: bool = False) -> None:
        """Open, or create unless `read_only`.

        Raises:
            Invalid: made by another version; `read_only` and there is none.
            Corrupt, Full, Unavailable.
        """
        self._path = path
        self._lock = threading.Lock()
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        with self._translated():
            self._db = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._translated():
                if not read_only:
                    path.chmod(0o600)
                    self._db.execute("PRAGMA journal_mode=WAL")
                    self._db.execute("PRAGMA synchronous=FULL")
                self._open_schema(clock, read_only)
        except BaseException:
            self._db.close()
            raise

    def _open_schema(self, clock: Clock, read_only: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not read_only:
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            # A store begun anew outgrows the one before it, as far as the clock tells; `outgrow` covers the rest.
            numbers = {"incarnation": clock.wall_ms(), "generation": 0, "revision": 0}
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", numbers.items())
            self._db.execute(f"PRAGMA user_version={STORE_VERSION}")
            self._db.execute("COMMIT")
        elif version != STORE_VERSION:
            raise Invalid(
                f"{self._path} was made by another version of yunhe (store version {version}, here {STORE_VERSION})",
                hint="use that version, or another --state-dir",
            )

    # ── recorded, plans ──────────────────────────────────────────────────────────────────────────────────────────────

    def recorded(self) -> Plain | None:
        with self._reading() as db:
            row = db.execute("SELECT value FROM recorded").fetchone()
        return self._decode(row[0]) if row else None

    def revision(self) -> int:
        with self._reading() as db:
            return self._meta(db, "revision")

    def accept(self, plan: StoredPlan, operation: Operation) -> None:
        with self._writing() as db:
            revision = self._meta(db, "revision")
            if plan.base != revision:
                raise Conflict(
                    f"plan {plan.hash[:8]} is stale: made on revision {plan.base}, and revision {revision} is applied",
                    hint="run `yunhe plan` again and look at it",
                    expected=plan.base,
                    actual=revision,
                )
            db.execute("INSERT OR REPLACE INTO recorded VALUES (1, ?)", (_encode(plan.recorded),))
            db.execute("UPDATE meta SET value = value + 1 WHERE name = 'revision'")
            db.execute("UPDATE operations SET outcome = 'Superseded' WHERE outcome IS NULL")
            db.execute(
                "INSERT INTO operations (id, outcome, value) VALUES (?, ?, ?)",
                (operation.id, operation.outcome, _encode(asdict(operation))),
            )
            db.execute(
                "DELETE FROM operations WHERE outcome IS NOT NULL AND seq <= (SELECT max(seq) FROM operations) - ?",
                (OPERATIONS_KEPT_MAX,),
            )

    def put_plan(self, plan: StoredPlan) -> None:
        value = {"base": plan.base, "recorded": plan.recorded, "shown": plan.shown}
        with self._writing() as db:
            # Made again, the same plan becomes the newest.
            db.execute("DELETE FROM plans WHERE hash = ?", (plan.hash,))
            db.execute("INSERT INTO plans (hash, value) VALUES (?, ?)", (plan.hash, _encode(value)))
            db.execute("DELETE FROM plans WHERE seq <= (SELECT max(seq) FROM plans) - ?", (PLANS_KEPT_MAX,))

    def plan(self, hash_: str) -> StoredPlan | None:
        with self._reading() as db:
            rows = db.execute(
                "SELECT hash, value FROM plans WHERE substr(hash, 1, length(?)) = ? LIMIT 2", (hash_, hash_)
            ).fetchall()
        if len(rows) > 1:
            raise Invalid(f"more than one plan begins with {hash_!r}", hint="give more of the hash")
        if not rows:
            return None
        full, text = rows[0]
        value = self._decode(text)
        return StoredPlan(full, value["base"], value["recorded"], value["shown"])

    # ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put_operation(self, operation: Operation) -> None:
        with self._writing() as db:
            db.execute(
                "UPDATE operations SET outcome = ?, value = ? WHERE id = ? AND outcome IS NULL",
                (operation.outcome, _encode(asdict(operation)), operation.id),
            )

    def operation(self, id_: str) -> Operation | None:
        with self._reading() as db:
            row = db.execute("SELECT outcome, value FROM operations WHERE id = ?", (id_,)).fetchone()
        return self._operation(*row) if row else None

    def unfinished(self) -> Sequence[Operation]:
        with self._reading() as db:
            rows = db.execute("SELECT outcome, value FROM operations WHERE outcome IS NULL ORDER BY seq").fetchall()
        return [self._operation(*row) for row in rows]

    def _operation(self, outcome: str | None, text: str) -> Operation:
        plain = self._decode(text)
        steps = tuple(StepRecord(**{**step, "state": StepState(step["state"])}) for step in plain["steps"])
        return Operation(**{**plain, "steps": steps, "outcome": outcome})

    # ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def put_status(self, key: Key, status: Plain) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO status VALUES (?, ?, ?)", (*key, _encode(status)))

    def status(self, key: Key) -> Plain:
        with self._reading() as db:
            row = db.execute("SELECT value FROM status WHERE kind = ? AND name = ?", key).fetchone()
        return self._decode(row[0]) if row else {}

    def statuses(self) -> dict[Key, Plain]:
        with self._reading() as db:
            rows = db.execute("SELECT kind, name, value FROM status ORDER BY kind, name").fetchall()
        return {(kind, name): self._decode(value) for kind, name, value in rows}

    def forget_status(self, key: Key) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM status WHERE kind = ? AND name = ?", key)

    # ── generations ──────────────────────────────────────────────────────────────────────────────────────────────────

    def next_generation(self) -> Generation:
        with self._writing() as db:
            db.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")
            return Generation(self._meta(db, "incarnation"), self._meta(db, "generation"))

    def outgrow(self, seen: Generation) -> None:
        with self._writing() as db:
            mine = Generation(self._meta(db, "incarnation"), self._meta(db, "generation"))
            if seen > mine:
                db.execute("UPDATE meta SET value = ? WHERE name = 'incarnation'", (seen.incarnation + 1,))
                db.execute("UPDATE meta SET value = 0 WHERE name = 'generation'")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ── the edge ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _meta(db: sqlite3.Connection, name: str) -> int:
        return int(db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])

    def _decode(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise Corrupt(f"{self._path} holds a value that cannot be read") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: sqlite3.Error) -> YunheError:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code; extended ones sit above it
            case sqlite3.SQLITE_FULL:
                return Full(f"the disk that holds {self._path} is full", hint="make room; nothing was changed")
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return Corrupt(
                    f"{self._path} is damaged", hint="restore it from a backup, or move it away: the cells keep running"
                )
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return Invalid(f"{self._path} cannot be opened: {error}", hint="check the directory's permissions")
        return Unavailable(f"{self._path}: {error}")


def _encode(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
