"""Points through ordinary HTTP: InfluxDB's line protocol in, SQL out. What drills of databases write and read back.

Each point says for itself where it belongs: its series, its number there, and a value that follows from both. No point
is sent twice, whatever became of its request: so one that is there twice was doubled by the database, also in a table
that merges nothing.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import requests

from controlplane.drill.probe import Ack
from providers.base.clock import Clock, sleep_blocking_ms
from providers.base.errors import Unavailable

BATCH = 20
"""Points a request."""
REQUEST_TIMEOUT_S = 5.0
SQL_TIMEOUT_S = 30.0
ERRORS_KEPT_MAX = 20
POINTS_MAX = 2_000_000
"""A writer ends at this bound: what it has sent is kept in memory."""
POLL_MS = 20

Urls = Callable[[], Sequence[str]]
"""Where the database can be written to now, the likeliest first."""


def value_of(series: str, number: int) -> int:
    """What the point carries."""
    return zlib.crc32(f"{series}:{number}".encode())


def sql(url: str, text: str) -> list[dict[str, Any]]:
    """Run statements; their outputs, as GreptimeDB's HTTP API has them.

    Raises:
        Unavailable: no answer, or a refusal, in its own words.
    """
    try:
        answer = requests.post(f"{url}/v1/sql", data={"sql": text}, timeout=SQL_TIMEOUT_S)
        plain = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise Unavailable(f"{url} does not answer: {error}") from error
    if answer.status_code != 200 or "output" not in plain:
        raise Unavailable(f"{url} refuses {text[:60]!r}: {plain.get('error', answer.status_code)}")
    return list(plain["output"])


def rows(url: str, select: str) -> list[list[Any]]:
    """The rows of a SELECT. Raises Unavailable."""
    [output] = sql(url, select)
    found: list[list[Any]] = output["records"]["rows"]
    return found


def create_table(url: str, table: str) -> None:
    """A table that merges nothing, acks what is on stable storage, and is put into files every second.

    Raises:
        Unavailable: it was not made.
    """
    options = "'append_mode' = 'true', 'auto_flush_interval' = '1s'"
    columns = "series STRING, ts TIMESTAMP(3) TIME INDEX, n BIGINT, v BIGINT, PRIMARY KEY (series)"
    sql(url, f"CREATE TABLE IF NOT EXISTS {table} ({columns}) WITH ({options})")


def drop_table(url: str, table: str) -> None:
    """Remove it; that it cannot be done is no reason to fail a drill."""
    try:
        sql(url, f"DROP TABLE IF EXISTS {table}")
    except Unavailable:
        pass


def read_points(url: str, table: str) -> list[tuple[str, int, int, int]]:
    """All points of the table: series, milliseconds, number, value. Raises Unavailable."""
    return [(str(s), _ms(ts), int(n), int(v)) for s, ts, n, v in rows(url, f"SELECT series, ts, n, v FROM {table}")]


def count_points(url: str, table: str) -> int:
    """How many there are. Raises Unavailable."""
    return int(rows(url, f"SELECT count(*) FROM {table}")[0][0])


def _ms(value: Any) -> int:
    """A timestamp of milliseconds, which formats write as a number or as ISO 8601 in UTC."""
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return int(value)


class Writer:
    """Writes one series at a steady pace from a thread of its own, until stopped. `index` stands for the series in
    acks, of which there is one a request."""

    def __init__(self, index: int, series: str, urls: Urls, table: str, *, clock: Clock, pause_ms: float) -> None:
        self.index = index
        self.series = series
        self.first_ms = int(clock.wall_ms())
        """Of the point with number 0; each next one is a millisecond later."""
        self._urls = urls
        self._table = table
        self._clock = clock
        self._pause_ms = pause_ms
        self._lock = threading.Lock()
        self._acks: list[Ack] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"writer {series}", daemon=True)
        self.sent = 0
        """Points sent so far, acked or not: numbers below it."""
        self.failed = 0
        """Requests without an ack."""
        self.errors: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; the request under way is waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * REQUEST_TIMEOUT_S)

    def acks(self) -> list[Ack]:
        """So far, in order of time."""
        with self._lock:
            return list(self._acks)

    def acked(self) -> set[int]:
        """Numbers of the acked points."""
        return {ack.number + i for ack in self.acks() for i in range(BATCH)}

    def _work(self) -> None:
        session = requests.Session()
        turn = 0
        while not self._stop.is_set() and self.sent < POINTS_MAX:
            urls = self._urls()
            first, self.sent = self.sent, self.sent + BATCH
            if urls and self._send(session, urls[turn % len(urls)], first):
                with self._lock:
                    self._acks.append(Ack(self.index, first, None, self._clock.monotonic_ms()))
            else:
                self.failed += 1
                turn += 1  # the next batch goes to the next address: a refused one may have been stored
            self._stop.wait(self._pause_ms / 1000)
        session.close()

    def _send(self, session: requests.Session, url: str, first: int) -> bool:
        body = "\n".join(
            f"{self._table},series={self.series} n={n}i,v={value_of(self.series, n)}i {self.first_ms + n}"
            for n in range(first, first + BATCH)
        )
        try:
            answer = session.post(
                f"{url}/v1/influxdb/api/v2/write",
                params={"precision": "ms"},
                data=body.encode(),
                timeout=REQUEST_TIMEOUT_S,
                # An ack of another node than the one that was asked is an ack as well; a redirected POST is not sent.
                allow_redirects=False,
            )
        except requests.RequestException as error:
            self._note(str(error))
            return False
        if answer.status_code in (200, 204):
            return True
        self._note(f"{answer.status_code} {answer.text[:200]}")
        return False

    def _note(self, error: str) -> None:
        if len(self.errors) < ERRORS_KEPT_MAX:
            self.errors.append(error)


def wait_for(what: Callable[[], bool], timeout_ms: float, clock: Clock) -> bool:
    """Whether it became so in time."""
    until = clock.monotonic_ms() + timeout_ms
    while not what():
        if clock.monotonic_ms() > until:
            return False
        sleep_blocking_ms(POLL_MS)
    return True


def merged(writers: Sequence[Writer]) -> list[Ack]:
    """Acks of all, in order of time."""
    return sorted((ack for writer in writers for ack in writer.acks()), key=lambda ack: ack.at_ms)


def acked_of(writers: Sequence[Writer]) -> Mapping[str, set[int]]:
    """Numbers of the acked points, by series."""
    return {writer.series: writer.acked() for writer in writers}
